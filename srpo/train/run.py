"""Runs a training from its settings: the library side of `srpo train` and `srpo precompute`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import HfArgumentParser, TrainerCallback

from srpo.data.rejected import REJECTED_FILE, rejected_lines
from srpo.data.source import Source, columns_of, evaluation_source
from srpo.disk import held, writable_folder, write_file
from srpo.errors import ConfigError, OutputError
from srpo.settings import expect_kinds, expect_known
from srpo.train.adapters import lora_config, quantisation
from srpo.train.arguments import GROUPS, DataArguments, ModelArguments, RunArguments, known_settings
from srpo.train.config import SRPOConfig
from srpo.train.validation import expect_consistent

if TYPE_CHECKING:
    from srpo.train.dataset import TreeDataset
    from srpo.train.trainer import SRPOTrainer

log = logging.getLogger("srpo")

# (trainer, evaluation data, run settings) → a callback that draws and judges answers. The caller supplies it, as
# training does not import the evaluation.
Watcher = Callable[["SRPOTrainer", Source, RunArguments], TrainerCallback]


def train(
    config: SRPOConfig,
    model: ModelArguments,
    data: DataArguments,
    run: RunArguments,
    *,
    command: Sequence[str] = (),
    watch: Watcher | None = None,
) -> Mapping[str, float]:
    """Trains a model with the given settings and saves it to `config.output_dir`.

    Args:
        command: words of the command line, for the run record and the model card.
        watch: makes the callback that draws and judges answers at every evaluation, for `eval_revisions`.

    Returns:
        The final metrics; `{"complete": steps}` if the run was complete before.

    Raises:
        SRPOError: a mistake in settings, data or model, before the first step wherever possible.
    """
    expect_consistent(config, model, data, run)
    if run.eval_revisions is not None and watch is None:
        raise ConfigError("only `srpo train` draws drafts at evaluations", where="eval_revisions", fix="leave it out")
    folder = writable_folder(Path(str(config.output_dir)))  # before the model is read, not after training
    with held(folder) if config.process_index == 0 else nullcontext():
        trainer, rows, test_rows = _trainer(config, model, data)
        _log_resolved(trainer)
        trainer.command = command
        if run.eval_revisions is not None and watch is not None and test_rows is not None:
            trainer.add_callback(watch(trainer, test_rows, run))

        def record() -> None:
            from srpo.train.run_record import data_of, write_record

            settings = {**config.to_dict(), **asdict(model), **asdict(data), **asdict(run)}
            write_record(folder, command=command, settings=settings, data=data_of(trainer.source, trainer.pairs))
            _write_rejected(folder, [(rows, trainer.pairs), (test_rows, trainer.eval_dataset)])

        trainer.at_start = record  # only when this run really starts: the record of another run stays unchanged
        result = trainer.train(resume_from_checkpoint=run.resume)
        if trainer.start.complete:
            return {"complete": result.global_step}
        trainer.save_model()
        begun = trainer.start.manifest
        if begun and begun.step >= trainer.state.global_step:  # only the save was missing: no loss was computed
            return {key: value for key, value in result.metrics.items() if key != "train_loss"}
        return result.metrics


class Precomputed(NamedTuple):
    """Result of `precompute`: number of all pairs, number of those that this call computed, and the cache folder."""

    pairs: int
    scored: int
    folder: Path


def precompute(config: SRPOConfig, model: ModelArguments, data: DataArguments) -> Precomputed:
    """Computes and caches every reference log-prob that a run with these settings needs.

    Raises:
        OutputError: the cache cannot be written.
        SRPOError: a mistake in settings, data or model, as in `train`.
    """
    from srpo.model.reference.cached import CachedReference
    from srpo.train.prepare_reference import sets_of

    expect_consistent(config, model, data)
    config.precompute_ref_log_probs = True
    config.expect_still_reference()
    folder = writable_folder(config.reference_cache_folder(), "--reference_cache")
    config.output_dir = str(folder)  # transformers creates this folder and puts nothing into it
    trainer, _, _ = _trainer(config, model, data)
    reference = trainer.reference
    assert isinstance(reference, CachedReference), "precompute_ref_log_probs asks for a cache"
    if reference.unkept:
        fix = "name another --reference_cache"
        raise OutputError(f"cannot be written ({reference.unkept})", where=str(folder), fix=fix)
    return Precomputed(sum(map(len, sets_of(trainer))), reference.scored, folder)


def train_with(settings: Mapping[str, Any]) -> Mapping[str, float]:
    """Trains with the settings in a dict, named as in a settings file; resumes the run in their `output_dir`, if any.

    Returns the final metrics, as `train` does.

    Raises:
        ConfigError: an unknown setting.
        SRPOError: a mistake in settings, data or model, as in `train`.
    """
    expect_known(settings, known_settings(), where="settings", verb="train")
    expect_kinds(settings, GROUPS)
    config, model, data, run = HfArgumentParser(GROUPS).parse_dict({**settings, "resume": True})
    return train(config, model, data, run)


def _trainer(
    config: SRPOConfig, model: ModelArguments, data: DataArguments
) -> tuple[SRPOTrainer, Source, Source | None]:
    """Creates the trainer of a run; returns it with the sources of its training and evaluation rows (None without)."""
    from srpo.model.weights.precision import base_dtype
    from srpo.train.trainer import SRPOTrainer

    dtype, reason = base_dtype(model.dtype or "", adapter=model.use_peft, device=config.device.type)
    options = {"dtype": dtype, "attn_implementation": model.attn_implementation, "revision": model.model_revision}
    if model.base_model:
        options["base_model"] = model.base_model
    options |= quantisation(model, dtype, config.device.type)
    config.model_init_kwargs = {**options, **config.loading_options()}
    rows = data.source()
    test_rows = _test_source(config, data)
    if config.eval_strategy != "no" and test_rows is None:
        fix = "add `--eval_dataset_name …`, or leave eval_strategy out"
        raise ConfigError("no data to evaluate on", where="eval_strategy", fix=fix)
    try:
        trainer = SRPOTrainer(
            model=str(model.model_name_or_path),
            ref_model=model.ref_model_name_or_path,
            args=config,
            train_dataset=rows,
            eval_dataset=test_rows,
            peft_config=lora_config(model, disable_dropout=config.disable_dropout),
        )
    except (ValueError, ImportError) as error:  # transformers rejects a setting, or a library is missing
        raise ConfigError(str(error).strip().splitlines()[0], where="settings") from None
    log.info("srpo: %s", reason)
    return trainer, rows, test_rows


def _log_resolved(trainer: SRPOTrainer) -> None:
    """Logs the β, α, reference, template, precision and pairs that the run will use."""
    data, args = trainer.pairs, trainer.args
    for name, source in (("beta", "arXiv 2406.01660, TL;DR"), ("alpha", "arXiv 2406.01660, Section 5")):
        default = next(each.default for each in fields(SRPOConfig) if each.name == name)
        value = getattr(args, name)
        log.info("srpo: %s %g (%s)", name, value, f"default: {source}" if value == default else "given")
    log.info("srpo: reference: %s", trainer.reference.kind)
    if args.max_tokens_per_batch:
        over = sum(data.size(i) > args.max_tokens_per_batch for i in range(len(data)))
        log.info("srpo: at most %d tokens at once; %d pairs are larger", args.max_tokens_per_batch, over)
    log.info("srpo: revision template: %s", trainer.renderer.template.name)
    log.info("srpo: precision: %s", "bfloat16" if args.bf16 else "float16" if args.fp16 else "as loaded")
    log.info("srpo: %d pairs; sharing prefixes saves a factor of %.2f in tokens", len(data), data.sharing)


def _write_rejected(folder: Path, sources: Iterable[tuple[Source | None, TreeDataset | None]]) -> None:
    """Writes rejected.jsonl in the run folder: the rows left out, with reasons. Removes an old file if there are none.

    `sources` holds each source of rows with the data set made of it.
    """
    file = folder / REJECTED_FILE
    lines = [line for source, made in sources if source and made for line in rejected_lines(source, made.rejects)]
    if lines:
        write_file(file, "".join(f"{line}\n" for line in lines).encode())
        log.info("srpo: rows left out are in %s", file)
    else:
        file.unlink(missing_ok=True)


def _test_source(config: SRPOConfig, data: DataArguments) -> Source | None:
    """Source of evaluation pairs: `eval_dataset_name`, otherwise the test split of a training set with splits."""
    if data.eval_dataset_name:
        how = (columns_of(data.map), data.rankings, data.dataset_test_split, data.dataset_config)
        return evaluation_source(data.eval_dataset_name, *how)
    source = replace(data.source(), split=data.dataset_test_split)
    return source if config.eval_strategy != "no" and source.has_splits else None
