"""Checks of training settings that depend on each other, before any weight is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from srpo.errors import ConfigError, UsageError, did_you_mean
from srpo.maths.objective import OBJECTIVES
from srpo.train.adapters import expect_adapter_settings
from srpo.train.arguments import DataArguments, ModelArguments, RunArguments
from srpo.train.config import SRPOConfig


def expect_one_device(args: SRPOConfig, model: str | torch.nn.Module) -> None:
    """Checks that each process has one GPU, or a model that is spread over several.

    Raises:
        ConfigError: one process has several GPUs; transformers would copy the model to each and split packed rows.
    """
    spread = "device_map" in args.loading_options() if isinstance(model, str) else hasattr(model, "hf_device_map")
    if args.n_gpu > 1 and not spread:
        fix = "start it with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one of them"
        raise ConfigError(
            f"{args.n_gpu} GPUs and one process", where="devices", expected="one process for each", fix=fix
        )


def expect_even_processes(args: SRPOConfig) -> None:
    """Checks the settings of a training in several processes.

    Raises:
        ConfigError: a setting under which processes would wait for each other for ever, or, on several nodes, would not
            find each other's files.
    """
    if args.world_size == 1:
        return
    accelerator: Any = args.accelerator_config
    if not accelerator.even_batches:
        what = f"false with {args.world_size} processes: a process without a last batch would leave the others waiting"
        raise ConfigError(what, where="accelerator_config.even_batches", expected="true", fix="leave it out")
    nodes = args.world_size // max(int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)), 1)
    if args.save_on_each_node and nodes > 1:
        fix = "leave it out, and use an output_dir that every node sees"
        raise ConfigError(f"not supported with {nodes} nodes", where="save_on_each_node", fix=fix)


def expect_consistent(
    config: SRPOConfig, model: ModelArguments, data: DataArguments, run: RunArguments | None = None
) -> None:
    """Checks settings of training, model, data and run that depend on each other.

    Raises:
        UsageError: no model or no data.
        ConfigError: settings that contradict each other.
    """
    for name, value in (("model_name_or_path", model.model_name_or_path), ("dataset_name", data.dataset_name)):
        if not value:
            raise UsageError(f"no {name}", fix=f"add `--{name} …` or put it in the settings file")
    if config.resume_from_checkpoint:
        what = f"{config.resume_from_checkpoint!r} is ignored: a run resumes from its own newest checkpoint"
        raise ConfigError(what, where="resume_from_checkpoint", fix="use --resume")
    expect_adapter_settings(model, disable_dropout=config.disable_dropout, device=config.device.type)
    for name in ("model_name_or_path", "ref_model_name_or_path"):
        value = getattr(model, name)
        if value and Path(value).resolve() == Path(str(config.output_dir)).resolve():
            what = f"{value} is output_dir: the run would overwrite the model that it starts from"
            raise ConfigError(what, where=name, fix="name another --output_dir")
    _expect_attention(model.attn_implementation)
    if run:
        _expect_judged(config, run)
    draws = run is not None and run.eval_revisions is not None  # adds metrics whose names the callback decides
    if config.metric_for_best_model and config.eval_strategy != "no" and not draws:
        metric, cached = config.metric_for_best_model.removeprefix("eval_"), bool(config.reference_folder())
        _expect_metric(metric, config.objective, cached)


def _expect_judged(config: SRPOConfig, run: RunArguments) -> None:
    if run.eval_judge and run.eval_revisions is None:
        fix = "add `--eval_revisions …`, or leave it out"
        raise ConfigError("no drafts are drawn for it", where="eval_judge", fix=fix)
    if run.eval_revisions is not None and not run.eval_judge:
        raise ConfigError("no judge for the drafts", where="eval_revisions", fix="add `--eval_judge …`")
    if run.eval_revisions is not None and config.eval_strategy == "no":
        raise ConfigError("no evaluation", where="eval_revisions", fix="add `--eval_strategy steps --eval_steps …`")


def _expect_metric(metric: str, objective: str, cached: bool) -> None:
    """Checks the name of the metric that chooses the best checkpoint; raises ConfigError for an unknown one.

    transformers would find it out only at the first evaluation, and end the run there.
    """
    from srpo.train.metrics import names_of

    known = names_of(OBJECTIVES[objective], cached=cached)
    if metric not in known:
        expected, fix = "one of " + ", ".join(sorted(known)), did_you_mean(metric, known)
        raise ConfigError(f"{metric!r}", where="metric_for_best_model", expected=expected, fix=fix)


def _expect_attention(name: str | None) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    known = [each for each in known if "|" not in each and not each.startswith("srpo_")]  # of generation, and our own
    if name and name not in known and "/" not in name and "|" not in name:  # a name with a slash is a kernel on the hub
        expected, fix = "one of " + ", ".join(known), did_you_mean(name, known)
        raise ConfigError(f"{name!r}", where="attn_implementation", expected=expected, fix=fix)
