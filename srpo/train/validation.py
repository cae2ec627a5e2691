"""Whether settings make sense, found out before any weight is read: their kinds, their ranges, and what transformers,
accelerate and torch make of them, tried out on one number in the place of a model.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError

# What the libraries raise at a setting that they cannot serve. Not RuntimeError: too little memory is one.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError, AssertionError)
_OR_FILE = ("accelerator_config", "deepspeed", "fsdp_config")
_JSON = (*_OR_FILE, "lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_OF_A_MODEL = ("galore", "apollo", "lomo", "adalomo")  # optimisers that ask for its layers, beginnings of their names

_ABOVE_0 = (lambda value: math.isfinite(value) and value > 0, "a number above 0")
_NOT_BELOW_0 = (lambda value: math.isfinite(value) and value >= 0, "a number, 0 or more")
_BETA = (lambda value: 0 <= value < 1, "0 or more and below 1")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_steps": (lambda value: value == -1 or value >= 1, "1 or more, or -1: num_train_epochs decides"),
    "num_train_epochs": _ABOVE_0,
    "dataloader_num_workers": _NOT_BELOW_0,
    "seed": (lambda value: 0 <= value < 2**32, "0 or more and below 2**32"),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _NOT_BELOW_0,
    "weight_decay": _NOT_BELOW_0,
    "max_grad_norm": _NOT_BELOW_0,
    "warmup_steps": _NOT_BELOW_0,
    "label_smoothing_factor": (lambda value: value == 0, "0: the objective compares whole answers and has no labels"),
    "train_sampling_strategy": (
        lambda value: value in ("random", "sequential"),
        "random or sequential: rows are token trees, which have no one length",
    ),
}


# ---------------------------------------------------------------------- ranges


def expect_sense(config: Any) -> None:
    """Values that would train nothing, train backwards or fail at the first step are refused by name.

    Raises:
        ConfigError: there is one.
    """
    for name, (fits, expected) in RANGES.items():
        value = getattr(config, name)
        if not fits(value):
            raise ConfigError(f"{value!r}", where=name, expected=expected)
    if config.output_dir == "":
        raise ConfigError("''", where="output_dir", expected="a folder")
    for name in _JSON:
        _expect_json(name, getattr(config, name, None))  # not every version of transformers has them all
    if config.push_to_hub and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError("the hub cannot be reached", where="push_to_hub", fix="unset HF_HUB_OFFLINE, or leave it out")


def _expect_json(name: str, value: Any) -> None:
    if not isinstance(value, str):
        return
    expected = "a JSON object" + (" or a file of one" if name in _OR_FILE else "")
    if name in _OR_FILE and not value.lstrip().startswith("{"):
        if not Path(value).is_file():
            raise ConfigError(f"no file {value!r}", where=name, expected=expected)
        return
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{value!r}", where=name, expected=expected)


# ---------------------------------------------------------------------- what the libraries make of them


def settings_in(config: Any) -> list[str]:
    """Names of all settings of a group."""
    return [each.name for each in fields(config) if each.init]


@contextmanager
def named(names: Iterable[str]) -> Iterator[None]:
    """What a library refuses inside ends as a `ConfigError` that names the setting, if the library does.

    Args:
        names: settings that may be meant; of a single one it is known that it is.
    """
    try:
        yield
    except (*REFUSALS, OSError) as error:
        names = list(names)
        said = str(error).strip().split("\n")[0] or type(error).__name__
        mentioned = [word for word in re.findall(r"\w+", said) if word in names and "_" in word]
        where = names[0] if len(names) == 1 else mentioned[0] if mentioned else "settings"
        raise ConfigError(said, where=where) from error


def expect_served(args: Any) -> None:
    """The optimiser, the schedule, the loggers and the kernels that are named are there and take what they are given.

    Raises:
        ConfigError: one is not, or does not.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations import integration_utils
    from transformers.utils import import_utils

    number = torch.nn.Parameter(torch.zeros(1))
    with named(["report_to"]):
        for logger in integration_utils.get_reporting_integration_callbacks(args.report_to):
            _made(logger)
    if args.use_liger_kernel and not import_utils.is_liger_kernel_available():
        raise ConfigError("liger-kernel is not installed", where="use_liger_kernel", fix="leave it out")
    with named(["optim_args" if args.optim_args else "optim"]):
        if str(args.optim.value).startswith(_OF_A_MODEL):
            _expect_installed(args)
        else:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            if kind.__module__.startswith("torch."):
                kind([number], **options)
    if args.lr_scheduler_kwargs:
        with named(["lr_scheduler_kwargs"]):
            get_scheduler(
                args.lr_scheduler_type,
                torch.optim.SGD([number], lr=args.learning_rate),
                num_warmup_steps=0,
                num_training_steps=1,
                scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs),
            )


def _made(logger: Callable[[], Any]) -> None:
    """Loggers say with a RuntimeError that their library is missing."""
    try:
        logger()
    except RuntimeError as error:
        raise ImportError(str(error)) from None


def _expect_installed(args: Any) -> None:
    """Optimisers that cannot be made without a model say at least whether their library is there."""
    from transformers import Trainer

    with suppress(ValueError, TypeError, AttributeError):  # at the missing model
        Trainer.get_optimizer_cls_and_kwargs(args)


def expect_one_device(args: Any, model: Any) -> None:
    """One process trains on one GPU, or on a model that is itself spread over several.

    Raises:
        ConfigError: transformers would copy the model to each and cut every batch up, and rows of packed trees with it.
    """
    spread = getattr(model, "hf_device_map", None) or (
        isinstance(model, str) and "device_map" in args.loading_options()
    )
    if args.n_gpu > 1 and not spread:
        what = f"{args.n_gpu} GPUs and one process"
        fix = "start it with `accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES to one of them"
        raise ConfigError(what, where="devices", expected="a process for each", fix=fix)
