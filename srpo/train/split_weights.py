"""Weights that are split over processes, by FSDP or DeepSpeed: the reference, the saved model, what cannot work.

The policy is split by transformers and accelerate; everything that SRPO adds to it is here.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from srpo.errors import ConfigError
from srpo.model.unwrap import device_of
from srpo.model.weights.fingerprint import is_whole
from srpo.model.weights.load import load_model
from srpo.train.view import TrainerView

log = logging.getLogger("srpo")

NOT_SPLIT = ("sync_ref_model", "max_tokens_per_batch")


def splitting(trainer: TrainerView) -> str:
    """Returns how weights are split over processes: "FSDP 1", "FSDP 2", "ZeRO-1" to "ZeRO-3", or "no"."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"FSDP {2 if accelerator.is_fsdp2 else 1}"
    return "no"


def expect_splittable(trainer: TrainerView) -> None:
    """Checks the settings that do not work with weights split over processes.

    Raises:
        ConfigError: such a setting, or one under which no process could save the whole model.
    """
    if splitting(trainer) == "no":
        if trainer.args.world_size > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            fix = "use `torchrun`, under which each process keeps all weights"
            raise ConfigError("accelerate splits weights on GPUs only", where="FSDP", expected="GPUs", fix=fix)
        return
    if splitting(trainer) == "FSDP 1":
        fix = "set fsdp_version: 2 (`--launch fsdp2`), or use `--launch zero3`"
        raise ConfigError("FSDP 1 is not supported", where="FSDP", expected="2", fix=fix)
    for name in NOT_SPLIT:
        if getattr(trainer.args, name):
            raise ConfigError("does not work with FSDP or DeepSpeed", where=name, fix="leave it out")
    _expect_complete_cache(trainer)
    if splitting(trainer) == "ZeRO-3":
        name = "stage3_gather_16bit_weights_on_model_save"
        config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        if not config.get("zero_optimization", {}).get(name):
            where = f"deepspeed config, zero_optimization.{name}"
            fix = "set it to true (in an accelerate file: zero3_save_16bit_model: true)"
            raise ConfigError("no process would save the whole model", where=where, expected="true", fix=fix)


def _expect_complete_cache(trainer: TrainerView) -> None:
    """Checks that all log-probs of a cached reference are computed before the weights are split over processes.

    In training, a process that finds its rows in the cache would skip a forward pass, and split weights need all
    processes in every pass.

    Raises:
        ConfigError: rows would be computed in training, or the weights are split from the beginning.
    """
    args, reference = trainer.args, trainer.reference
    if args.reference_cache and not args.precompute_ref_log_probs:
        what = "with split weights, rows cannot be scored during training"
        raise ConfigError(what, where="reference_cache", fix="add `--precompute_ref_log_probs`, or leave it out")
    if args.precompute_ref_log_probs and (reference.kind == "given" or not is_whole(trainer.model)):
        what = "the reference's weights are split before they could be scored"
        fix = "leave it out"
        raise ConfigError(what, where="precompute_ref_log_probs", fix=fix)


@contextmanager
def on_training_device(trainer: TrainerView) -> Iterator[None]:
    """Inside this `with` block, a policy that will be split later is on this process's device, whole.

    There it computes reference log-probs before training.
    """
    before = device_of(trainer.model)
    moved = splitting(trainer) != "no" and before != trainer.args.device
    if moved:
        trainer.model.to(trainer.args.device)
    try:
        yield
    finally:
        if moved:
            trainer.model.to(before)


def split_reference(trainer: TrainerView, frozen: nn.Module) -> nn.Module:
    """Returns a reference model that has weights of its own, split over processes in the way the policy is.

    Where the policy is not split, the reference is moved whole to the policy's device. It computes in the precision of
    the policy, so that log-ratios are zero before the first step.
    """
    accelerator, kind = trainer.accelerator, splitting(trainer)
    if kind == "FSDP 2":
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        return fsdp2_prepare_model(accelerator, frozen).eval()
    if kind.startswith("ZeRO"):
        return _zero(accelerator, frozen)
    return accelerator.prepare_model(frozen, evaluation_mode=True)


def _zero(accelerator: Accelerator, frozen: nn.Module) -> nn.Module:
    """Returns a frozen model as an engine of DeepSpeed, without an optimiser.

    Its weights are split over processes if the policy's are (ZeRO-3), otherwise each process has all of them.
    """
    import deepspeed

    plugin: Any = accelerator.state.deepspeed_plugin
    config = copy.deepcopy(plugin.deepspeed_config)
    for name in ("optimizer", "scheduler"):
        config.pop(name, None)
    zero = config["zero_optimization"]
    zero.pop("offload_optimizer", None)
    zero["stage"] = 3 if plugin.zero_stage == 3 else 0
    engine, *_ = deepspeed.initialize(model=frozen, config=config)
    engine.eval()
    return engine


def load_whole(model: nn.Module, folder: Path, *, trust_remote_code: bool) -> None:
    """Loads the model saved in `folder`, a finished one or a checkpoint, into the trainer's model.

    It serves weights that were split over processes, and weights that have other names on disk than in memory.
    If each process has only a part of `model`, it stays as it is, and a warning says so.

    Args:
        trust_remote_code: run the code that comes with the saved model.
    """
    if is_whole(model):  # transformers would look for the parts of a checkpoint
        dtype = next(model.parameters()).dtype
        saved = load_model(str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        model.load_state_dict(saved.state_dict())
    else:
        log.warning("srpo: the model in memory keeps its first weights; the finished ones are in %s", folder)


@contextmanager
def whole_weights(accelerator: Accelerator) -> Iterator[None]:
    """Inside this `with` block, FSDP gathers the whole model to save it, even if checkpoints are in parts."""
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or "FULL" in str(plugin.state_dict_type):
        yield
        return
    names = ("state_dict_type", "state_dict_config", "optim_state_dict_config")
    before = {name: getattr(plugin, name) for name in names}
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # accelerate sets those of the new type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(plugin, name, value)
