"""Creates the reference that the settings of a run ask for, and prepares it before the first step."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.errors import ConfigError, OutputError
from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import MovingReference, Reference
from srpo.progress import Progress
from srpo.sequences.tree import PrefixTree
from srpo.train.compiled import compile_layers
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset
from srpo.train.durable.identity import device_name
from srpo.train.microbatches import pieces
from srpo.train.prompts import batches_of, groups_of
from srpo.train.split_weights import expect_splittable, on_training_device, split_reference, splitting
from srpo.train.view import TrainerView

CHECKED_ROWS = 4
log = logging.getLogger("srpo")

Settle = Callable[[nn.Module, list[PrefixTree]], str]


def make_reference(policy: nn.Module, ref_model: nn.Module | None, args: SRPOConfig) -> Reference | CachedReference:
    """Creates the reference of a run from `ref_model`, or for None from the policy as it is now.

    The settings decide whether its log-probs are cached and whether it moves.
    """
    if args.sync_ref_model:
        return MovingReference(policy, ref_model)
    if (folder := args.reference_folder()) is None:
        return Reference(policy, ref_model)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    about: dict[str, Any] = {"device": device_name(args.device), "precision": precision}
    return CachedReference(policy, folder, ref_model, **about, multiple=args.pad_to_multiple_of)


def make_ready(trainer: TrainerView, settle: Settle) -> None:
    """Prepares the trainer's reference before the first step.

    Places a reference with weights of its own on its devices. With a cache it also checks a few cached log-probs, and
    under `precompute_ref_log_probs` computes and stores the missing ones.

    Args:
        settle: function of a model and a few trees; checks and returns the attention back-end of the run.

    Raises:
        ConfigError: a setting that does not work with weights split over processes, or pictures to be padded.
    """
    args, reference = trainer.args, trainer.reference
    expect_splittable(trainer)
    if args.pad_to_multiple_of and any(data.pictures for data in sets_of(trainer)):
        raise ConfigError("rows with pictures are not padded", where="pad_to_multiple_of", fix="leave it out")

    def placed(frozen: nn.Module) -> nn.Module:
        return split_reference(trainer, compile_layers(frozen) if args.compile_layers else frozen)

    # This comes first: a reference scored on the wrong device would be cached under the name of the right one.
    reference.prepare(placed)
    if isinstance(reference, CachedReference):
        with trainer.accelerator.autocast(), on_training_device(trainer):
            _fill(trainer, reference, settle)


def _fill(trainer: TrainerView, reference: CachedReference, settle: Settle) -> None:
    """Checks a few cached log-probs, and computes missing ones under `precompute_ref_log_probs`.

    If all are cached then, no reference model is kept in memory.
    """
    args = trainer.args
    sets = [data for data in sets_of(trainer) if len(data)]
    if not sets:
        reference.begin(complete=False)
        return
    batch = args.precompute_ref_batch_size or args.per_device_train_batch_size
    first = [sets[0].tree(i) for i in range(min(batch, len(sets[0])))]
    backend = settle(trainer.model, first)
    with args.main_process_first(desc="checking cached reference log-probs"):  # others see the result on disk
        if args.process_index == 0:
            _recheck(reference, sets, backend)
    missing = {id(data): _missing(reference, data, backend) for data in sets}
    total, lacking = sum(map(len, sets)), sum(map(len, missing.values()))
    log.info("srpo: cached reference log-probs: %d of %d pairs, in %s", total - lacking, total, reference.folder)
    if lacking and args.precompute_ref_log_probs:
        _score(trainer, reference, [(data, missing[id(data)]) for data in sets], backend, batch)
        lacking = sum(len(_missing(reference, data, backend)) for data in sets)  # above 0 after a full disk or a nan
    if lacking and splitting(trainer) != "no":
        why = reference.unkept or "they are not finite"
        raise OutputError(f"{lacking} rows could not be kept ({why})", where=str(reference.folder))
    reference.begin(complete=not lacking)
    if not lacking and reference.model is None:
        log.info("srpo: no reference model in memory: all of its log-probs are cached")


def _score(
    trainer: TrainerView,
    reference: CachedReference,
    rows: list[tuple[TreeDataset, list[int]]],
    backend: str,
    batch: int,
) -> None:
    """Computes and caches missing reference log-probs; every process computes a part, then waits for the others.

    Args:
        rows: each data set with the indices of its missing pairs.
        batch: pairs in a batch.
    """
    args, accelerator = trainer.args, trainer.accelerator
    every = [(data, part) for data, missing in rows for part in _batches(data, missing, batch)]
    mine = every[accelerator.process_index :: accelerator.num_processes]
    with Progress("pairs of the reference", sum(len(part) for _, part in mine)) as progress:
        for data, part in mine:
            trees = [data.tree(i) for i in part]
            for piece in pieces({"trees": trees}, args.max_tokens_per_batch, backend):
                reference.six_logps(piece["trees"], backend)
            for _ in trees:
                progress.step()
    accelerator.wait_for_everyone()


def _batches(data: TreeDataset, missing: list[int], size: int) -> list[list[int]]:
    """Makes batches of `size` indices of missing pairs; pairs of a prompt share a tree, so they go together."""
    groups = groups_of(data, sorted(missing, key=data.size))
    return batches_of(groups, size)


def _recheck(reference: CachedReference, sets: list[TreeDataset], backend: str) -> None:
    """Compares a few cached log-probs with those computed now; if they differ, the cached files are not used.

    The pairs are drawn by a random generator of their own, so the run's random numbers stay as they are.
    """
    for data in sets:
        cached = sorted(set(range(len(data))) - set(_missing(reference, data, backend)))
        some = random.Random().sample(cached, min(CHECKED_ROWS, len(cached)))
        if not reference.recheck([data.tree(i) for i in some], backend):
            return


def _missing(reference: CachedReference, data: TreeDataset, backend: str) -> list[int]:
    return reference.missing([data.row_content(i) for i in range(len(data))], data.trees[0], backend)


def sets_of(trainer: TrainerView) -> list[TreeDataset]:
    """Returns a trainer's training set and all its evaluation sets."""
    evaluation = trainer.eval_dataset
    sets = [trainer.train_dataset, *(evaluation.values() if isinstance(evaluation, Mapping) else [evaluation])]
    return [data for data in sets if isinstance(data, TreeDataset)]


class Following(TrainerCallback):
    """Callback that moves the reference towards the policy every `ref_model_sync_steps` optimiser steps."""

    def __init__(self, reference: MovingReference, config: SRPOConfig) -> None:
        self.reference, self.config = reference, config

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.config.ref_model_sync_steps == 0:
            self.reference.follow(self.config.ref_model_mixup_alpha)
