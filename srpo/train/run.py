"""Settings from YAML and flags → a training run. What `srpo train` calls, and anybody with a settings file may."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from srpo.data.read import Source, columns_of
from srpo.data.rejected import REJECTED_FILE, rejected_lines
from srpo.disk import held, writable_folder, write_file
from srpo.errors import ConfigError, OutputError, UsageError, did_you_mean
from srpo.settings import expect_kinds, expect_known
from srpo.settings_file import read_settings as read_file
from srpo.train.config import PRESETS, SRPOConfig

log = logging.getLogger("srpo")


@dataclass
class ModelArguments:
    """Which model to train and how to load it; names and defaults are TRL's."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or hub name of the model to train."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub name of another reference; unset: the model as it is now."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: str = field(default="float32", metadata={"help": "auto, float32, bfloat16 or float16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention outside the packed step."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Modules that get an adapter."})


@dataclass
class DataArguments:
    """Which preference pairs; names are TRL's."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A JSONL, JSON, CSV or Parquet file, or a folder or name that `datasets` can load."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a named data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a named data set to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split of a named data set to evaluate on."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "What to evaluate on; a file, a folder or a name, as above."}
    )
    map: str | None = field(
        default=None, metadata={"help": "Columns of other names, ours=theirs: prompt=instruction,chosen=good."}
    )
    rankings: str = field(
        default="all", metadata={"help": "Pairs of a ranked list: all, or best-worst: a best over a worst."}
    )


@dataclass
class RunArguments:
    """The run itself."""

    preset: str | None = field(default=None, metadata={"help": "A published configuration: " + ", ".join(PRESETS)})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})
    eval_revisions: int | None = field(
        default=None, metadata={"help": "Draw and revise this often at every evaluation, and log the scores."}
    )
    eval_judge: str | None = field(
        default=None, metadata={"help": "Who scores them: exact_match, rouge_l, module:function, …; none costs money."}
    )
    eval_prompts: int = field(default=64, metadata={"help": "Prompts that are answered then."})
    eval_temperature: float = field(default=1.0, metadata={"help": "At which; 0 is greedy."})
    eval_max_new_tokens: int = field(default=128, metadata={"help": "Tokens of each answer then."})


# (trainer, what it evaluates on, settings of the run) → a callback: evaluation is handed in, training knows none.
Watcher = Callable[[Any, Source, RunArguments], Any]
GROUPS: tuple[Any, ...] = (SRPOConfig, ModelArguments, DataArguments, RunArguments)


def known_settings(more: Iterable[Any] = ()) -> list[str]:
    """Every key a settings file may hold."""
    return [f.name for group in (*GROUPS, *more) for f in fields(group) if f.init]


def read_settings(path: str, more: Iterable[Any] = ()) -> dict[str, Any]:
    """A flat YAML file of settings.

    Args:
        more: groups of settings that it may hold beside those of a training.

    Raises:
        InputError: no such file.
        ConfigError: not a flat mapping, or a key that is not a setting.
    """
    found = read_file(path)
    settings = {key: value for key, value in found.items() if key != "evaluate"}  # a recipe's section for that verb
    expect_known(settings, known_settings(more), where=path, verb="train")
    return settings


def train(
    config: SRPOConfig,
    model: ModelArguments,
    data: DataArguments,
    run: RunArguments,
    *,
    command: Sequence[str] = (),
    watch: Watcher | None = None,
) -> Mapping[str, float]:
    """Trains and saves to `config.output_dir`; returns the final metrics, or how many steps a run that was complete
    already had taken, as `complete`.

    Args:
        command: the words of the command line, for the record of the run and the model card.
        watch: makes what draws and judges at every evaluation, where `eval_revisions` asks for it.

    Raises:
        SRPOError: any mistake in settings, data or model, before a step is taken wherever that is possible.
    """
    _expect_named(model, data)
    _expect_sense(config, model, run)
    folder = writable_folder(Path(str(config.output_dir)))  # found out before the model is read, not after training
    with held(folder) if config.process_index == 0 else nullcontext():
        return _run(config, model, data, run, command, watch)


def _run(
    config: SRPOConfig,
    model: ModelArguments,
    data: DataArguments,
    run: RunArguments,
    command: Sequence[str],
    watch: Watcher | None,
) -> Mapping[str, float]:
    from srpo.train.run_record import data_of, write_record

    _expect_watchable(config, run, watch)
    trainer, rows, test_rows = _trainer(config, model, data)
    _say(trainer)
    trainer.command = command
    if run.eval_revisions is not None and watch is not None and test_rows is not None:
        trainer.add_callback(watch(trainer, test_rows, run))

    def record() -> None:
        settings = {**config.to_dict(), **asdict(model), **asdict(data), **asdict(run)}
        write_record(
            Path(str(config.output_dir)),
            command=command,
            settings=settings,
            data=data_of(trainer.source, trainer.train_dataset),
        )
        _keep_rejected(config, [(rows, trainer.train_dataset), (test_rows, trainer.eval_dataset)])

    trainer.at_start = record  # not before it is sure that this run is to be: the record of another stays as it is
    result = trainer.train(resume_from_checkpoint=run.resume)
    if trainer.start.complete:
        return {"complete": result.global_step}
    trainer.save_model()
    begun = trainer.start.manifest
    if begun and begun.step >= trainer.state.global_step:  # nothing was left but to save: no loss was computed
        return {key: value for key, value in result.metrics.items() if key != "train_loss"}
    return result.metrics


class Precomputed(NamedTuple):
    """What `precompute` did: pairs there are, how many of them were scored now, and where all are kept."""

    pairs: int
    scored: int
    folder: Path


def precompute(config: SRPOConfig, model: ModelArguments, data: DataArguments) -> Precomputed:
    """Has every reference log-prob that a run with these settings needs computed and kept.

    Raises:
        OutputError: they cannot be kept.
        SRPOError: any mistake in settings, data or model, as `train` would find it.
    """
    from srpo.train.prepare_reference import sets_of

    _expect_named(model, data)
    _expect_sense(config, model)
    config.precompute_ref_log_probs = True
    config.expect_still_reference()
    folder = writable_folder(config.kept_in(), "--reference_cache")
    config.output_dir = str(folder)  # transformers makes it, and there is nothing else to be put there
    trainer, _, _ = _trainer(config, model, data)
    if problem := trainer.reference.unkept:
        raise OutputError(f"cannot be written ({problem})", where=str(folder), fix="name another --reference_cache")
    return Precomputed(sum(map(len, sets_of(trainer))), trainer.reference.scored, folder)


def _expect_sense(config: SRPOConfig, model: ModelArguments, run: RunArguments | None = None) -> None:
    """Settings that say one thing and would do another are refused.

    Raises:
        ConfigError: there is one.
    """
    if config.resume_from_checkpoint:
        what = f"{config.resume_from_checkpoint!r} would not be believed: a run goes on from its own newest checkpoint"
        raise ConfigError(what, where="resume_from_checkpoint", fix="use --resume")
    if run and run.eval_judge and run.eval_revisions is None:
        fix = "add `--eval_revisions …`, or leave it out"
        raise ConfigError("nothing is drawn that it could judge", where="eval_judge", fix=fix)
    for each in fields(model):
        if each.name.startswith("lora_") and getattr(model, each.name) != each.default and not model.use_peft:
            what = "given without use_peft, and all weights would be trained"
            raise ConfigError(what, where=each.name, fix="add `--use_peft`, or leave it out")
    for name in ("model_name_or_path", "ref_model_name_or_path"):
        value = getattr(model, name)
        if value and Path(value).resolve() == Path(str(config.output_dir)).resolve():
            what = f"{value} is output_dir: the run would write over what it begins with"
            raise ConfigError(what, where=name, fix="name another --output_dir")
    _expect_attention(model.attn_implementation)
    if config.metric_for_best_model and config.eval_strategy != "no":
        _expect_measured(config.metric_for_best_model.removeprefix("eval_"), config, run)


def _expect_measured(metric: str, config: SRPOConfig, run: RunArguments | None) -> None:
    """A metric that there is none of would end the run at its first evaluation."""
    from srpo.maths.objective import OBJECTIVES
    from srpo.train.metrics import names_of

    known = names_of(OBJECTIVES[config.objective])
    drawn = run is not None and run.eval_revisions is not None  # has names that whoever watches gives
    if metric not in known and not drawn:
        fix = did_you_mean(metric, known)
        raise ConfigError(
            f"{metric!r}", where="metric_for_best_model", expected="one of " + ", ".join(sorted(known)), fix=fix
        )


def _expect_attention(name: str | None) -> None:
    if name is None:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    known = [each for each in known if "|" not in each and not each.startswith("srpo_")]  # of generation, and our own
    if name not in known and "/" not in name and "|" not in name:  # with a slash it is a kernel on the hub
        expected, fix = "one of " + ", ".join(known), did_you_mean(name, known)
        raise ConfigError(f"{name!r}", where="attn_implementation", expected=expected, fix=fix)


def _expect_named(model: ModelArguments, data: DataArguments) -> None:
    for name, value in (("model_name_or_path", model.model_name_or_path), ("dataset_name", data.dataset_name)):
        if not value:
            raise UsageError(f"no {name}", fix=f"add `--{name} …` or put it in the settings file")


def _trainer(config: SRPOConfig, model: ModelArguments, data: DataArguments) -> tuple[Any, Source, Source | None]:
    """The trainer of these settings, before its first step, with the sources it was given."""
    from srpo.train.trainer import SRPOTrainer

    options = {"dtype": model.dtype, "attn_implementation": model.attn_implementation, "revision": model.model_revision}
    config.model_init_kwargs = {**options, **config.loading_options()}
    rows = _source(data, str(data.dataset_name), data.dataset_train_split)
    test_rows = _test_source(config, data)
    if config.eval_strategy != "no" and test_rows is None:
        fix = "add `--eval_dataset_name …`, or leave eval_strategy out"
        raise ConfigError("nothing to evaluate on", where="eval_strategy", fix=fix)
    try:
        trainer = SRPOTrainer(
            model=str(model.model_name_or_path),
            ref_model=_reference(model, config),
            args=config,
            train_dataset=rows,
            eval_dataset=test_rows,
            peft_config=_lora(model) if model.use_peft else None,
        )
    except (ValueError, ImportError) as error:  # transformers' word for a setting it cannot serve, or a missing library
        raise ConfigError(str(error).strip().splitlines()[0], where="settings") from None
    return trainer, rows, test_rows


def _expect_watchable(config: SRPOConfig, run: RunArguments, watch: Watcher | None) -> None:
    if run.eval_revisions is None:
        return
    if not run.eval_judge or watch is None:
        raise ConfigError("nobody to judge them", where="eval_revisions", fix="add `--eval_judge …`")
    if config.eval_strategy == "no":
        fix = "add `--eval_strategy steps --eval_steps …`"
        raise ConfigError("never evaluated", where="eval_revisions", fix=fix)
    for name, least in (("eval_revisions", 0), ("eval_prompts", 1), ("eval_max_new_tokens", 1)):
        if getattr(run, name) < least:
            raise ConfigError(f"{getattr(run, name)}", where=name, expected=f"{least} or more")


def train_with(settings: Mapping[str, Any]) -> Mapping[str, float]:
    """Trains with settings by name, as a settings file holds them; goes on with what is there.

    Raises:
        ConfigError: a name that is no setting.
        SRPOError: as `train` does.
    """
    from transformers import HfArgumentParser

    expect_known(settings, known_settings(), where="settings", verb="train")
    expect_kinds(settings, GROUPS)
    config, model, data, run = HfArgumentParser(GROUPS).parse_dict({**settings, "resume": True})
    return train(config, model, data, run)


def _say(trainer: Any) -> None:
    """What was resolved rather than given."""
    data, args = trainer.train_dataset, trainer.args
    sources = {"beta": "arXiv 2406.01660, TL;DR", "alpha": "arXiv 2406.01660, Section 5"}
    for name, source in sources.items():
        default = next(f.default for f in fields(SRPOConfig) if f.name == name)
        value = getattr(args, name)
        log.info("srpo: %s %g (%s)", name, value, f"default: {source}" if value == default else "given")
    log.info("srpo: reference: %s", trainer.reference.kind)
    if args.max_tokens_per_batch:
        over = sum(trainer.train_dataset.size(i) > args.max_tokens_per_batch for i in range(len(data)))
        log.info("srpo: at most %d tokens at once; %d pairs are larger, and go alone", args.max_tokens_per_batch, over)
    log.info("srpo: revision template: %s", trainer.renderer.template.name)
    log.info("srpo: precision: %s", "bfloat16" if args.bf16 else "float16" if args.fp16 else "as loaded")
    log.info("srpo: %d pairs; each packed token stands for %.2f flat ones", len(data), data.sharing)


def _keep_rejected(config: SRPOConfig, read: Iterable[tuple[Any, Any]]) -> None:
    """What was left out and why, beside the run; a list that an earlier run left there goes."""
    file = Path(str(config.output_dir)) / REJECTED_FILE
    lines = [line for source, made in read if made is not None for line in rejected_lines(source, made.rejects)]
    if lines:
        write_file(file, "".join(f"{line}\n" for line in lines).encode())
        log.info("srpo: rows left out are in %s", file)
    else:
        file.unlink(missing_ok=True)


def _source(data: DataArguments, name: str, split: str) -> Source:
    return Source(name, columns_of(data.map), data.rankings, split, data.dataset_config)


def _test_source(config: SRPOConfig, data: DataArguments) -> Source | None:
    """The data set that is named for it, else the test split of what `datasets` loads to train on."""
    if data.eval_dataset_name:
        return _source(data, data.eval_dataset_name, data.dataset_test_split)
    source = _source(data, str(data.dataset_name), data.dataset_test_split)
    return source if config.eval_strategy != "no" and source.has_splits else None


def _reference(model: ModelArguments, config: SRPOConfig) -> Any:
    """The reference that is named; None leaves it to be what the policy is when training begins."""
    if model.ref_model_name_or_path is None:
        return None
    from srpo.model.weights.load import load_model

    options = {key: value for key, value in config.loading_options().items() if key != "revision"}  # the policy's own
    return load_model(model.ref_model_name_or_path, trust_remote_code=config.trust_remote_code, **options)


def _lora(model: ModelArguments) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        # As in TRL, the word for all of them is one word and no list.
        target_modules="all-linear" if model.lora_target_modules == ["all-linear"] else model.lora_target_modules,
        task_type="CAUSAL_LM",
    )
