"""The reference of a run: which one its settings ask for, and what has to be done before its first step."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from time import monotonic
from typing import Any

from transformers import TrainerCallback

from srpo.errors import ConfigError
from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import MovingReference, Reference
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset
from srpo.train.durable.identity import device_name
from srpo.train.microbatches import pieces

CHECKED_ROWS = 4
EVERY = 10.0  # seconds between lines of progress
log = logging.getLogger("srpo")


def make_reference(policy: Any, ref_model: Any, args: SRPOConfig) -> Reference | CachedReference:
    """The reference that the settings ask for, of the policy as it is now."""
    if args.sync_ref_model:
        return MovingReference(policy, ref_model)
    if (folder := args.reference_folder()) is None:
        return Reference(policy, ref_model)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    return CachedReference(policy, folder, ref_model, device=device_name(args.device), precision=precision)


def make_ready(trainer: Any) -> None:
    """What comes before the first step: rows that are kept are tried, missing ones scored if that is asked for, and
    what is left of the reference goes where it is needed."""
    args, reference = trainer.args, trainer.reference
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        for name in ("reference_cache", "precompute_ref_log_probs", "sync_ref_model", "max_tokens_per_batch"):
            if getattr(args, name):
                # One process may have to compute what the next one finds, and sharded weights need all at once.
                raise ConfigError("not with weights that are spread over processes", where=name, fix="leave it out")
    # First: a model of its own that stayed where it was loaded would be scored there, and kept as scored elsewhere.
    reference.prepare(lambda frozen: trainer.accelerator.prepare_model(frozen, evaluation_mode=True))
    if isinstance(reference, CachedReference):
        with trainer.accelerator.autocast():
            _fill(trainer, reference)


def _fill(trainer: Any, reference: CachedReference) -> None:
    args = trainer.args
    sets = [data for data in sets_of(trainer) if len(data)]
    if not sets:
        reference.begin(complete=False)
        return
    batch = args.precompute_ref_batch_size or args.per_device_train_batch_size
    first = [sets[0].trees[i] for i in range(min(batch, len(sets[0])))]
    backend = trainer._settled(trainer.model, first)
    with args.main_process_first(desc="trying kept reference log-probs"):  # the others find it set aside
        if args.process_index == 0:
            _try(reference, sets, backend)
    missing = {id(data): _missing(reference, data, backend) for data in sets}
    total, lacking = sum(map(len, sets)), sum(map(len, missing.values()))
    log.info("srpo: reference log-probs of %d of %d pairs are kept in %s", total - lacking, total, reference.folder)
    if lacking and args.precompute_ref_log_probs:
        _score(trainer, reference, [(data, missing[id(data)]) for data in sets], backend, batch)
        lacking = sum(len(_missing(reference, data, backend)) for data in sets)  # a full disk, or a nan, leaves some
    reference.begin(complete=not lacking)
    if not lacking and reference.model is None:
        log.info("srpo: no copy of the reference is made: every log-prob of it is there")


def _score(trainer: Any, reference: CachedReference, rows: list[Any], backend: str, batch: int) -> None:
    """Every process scores its part of what is missing."""
    args, accelerator = trainer.args, trainer.accelerator
    every = [(data, i) for data, missing in rows for i in sorted(missing, key=data.size)]  # like sizes together
    mine = every[accelerator.process_index :: accelerator.num_processes]
    said = monotonic()
    for start in range(0, len(mine), batch):
        trees = [data.trees[i] for data, i in mine[start : start + batch]]
        for piece in pieces({"trees": trees}, args.max_tokens_per_batch, backend):
            reference.six_logps(piece["trees"], backend)
        if monotonic() - said > EVERY or start + batch >= len(mine):
            said = monotonic()
            done = min(start + batch, len(mine)) * accelerator.num_processes
            log.info("srpo: reference log-probs: %d of %d pairs", min(done, len(every)), len(every))
    accelerator.wait_for_everyone()


def _try(reference: CachedReference, sets: list[TreeDataset], backend: str) -> None:
    """Scores a few of the kept rows again; others each time, and without touching a generator that anything uses."""
    for data in sets:
        kept = sorted(set(range(len(data))) - set(_missing(reference, data, backend)))
        some = random.Random().sample(kept, min(CHECKED_ROWS, len(kept)))
        if not reference.recheck([data.trees[i] for i in some], backend):
            return


def _missing(reference: CachedReference, data: TreeDataset, backend: str) -> list[int]:
    return reference.missing([data.row_content(i) for i in range(len(data))], data.trees[0], backend)


def sets_of(trainer: Any) -> list[TreeDataset]:
    """All that a run is trained and evaluated on."""
    evaluation = trainer.eval_dataset
    sets = [trainer.train_dataset, *(evaluation.values() if isinstance(evaluation, Mapping) else [evaluation])]
    return [data for data in sets if isinstance(data, TreeDataset)]


# ---------------------------------------------------------------------- a reference that moves


class Following(TrainerCallback):
    """Moves the reference after every so many optimiser steps."""

    def __init__(self, reference: MovingReference) -> None:
        self.reference = reference

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.ref_model_sync_steps == 0:
            self.reference.follow(args.ref_model_mixup_alpha)
