"""Checks of transformers' settings before any weight is read: ranges, and a trial by the libraries.

The libraries build the optimiser, the schedule and the loggers once for a single number in place of a model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import get_int_from_env
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import integration_utils
from transformers.utils import import_utils

from srpo.errors import ConfigError
from srpo.settings import Rule

# Errors of the libraries at a setting that they cannot use. Not RuntimeError: too little memory is one.
REFUSALS: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError, AssertionError),
    OSError,
)
_JSON = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_JSON_OR_FILE = ("accelerator_config", "deepspeed", "fsdp_config")
_NEED_A_MODEL = ("galore", "apollo", "lomo", "adalomo")  # first letters of optimisers that are built from layers

_POSITIVE, _NOT_NEGATIVE, _COUNT, _BETA = Rule(above=0), Rule(least=0), Rule(least=1), Rule(least=0, below=1)
RANGES = {
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "save_total_limit": _COUNT,  # transformers keeps all checkpoints at 0; a slice of the checkpoints would keep 0
    "dataloader_num_workers": _NOT_NEGATIVE,
    "seed": Rule(least=0, below=2**32),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "label_smoothing_factor": Rule(choices=(0.0,)),  # the objective compares whole answers and has no labels
    "train_sampling_strategy": Rule(choices=("random", "sequential")),  # token trees have no single length
}


# ---------------------------------------------------------------------- single settings


def settings_in(config: object) -> list[str]:
    """Returns the names of the settings of a settings dataclass: the fields that its constructor accepts."""
    return [each.name for each in fields(type(config)) if each.init]  # type: ignore[arg-type]


def expect_valid_transformers(config: TrainingArguments) -> None:
    """Checks that transformers' settings are in their ranges, which transformers does not check.

    Raises:
        ConfigError: a value that would train nothing, train backwards or fail at the first step.
    """
    for name, rule in RANGES.items():
        rule.check(getattr(config, name), name)
    if config.max_steps == 0 or config.max_steps < -1:
        expected = "1 or more, or -1: num_train_epochs decides"
        raise ConfigError(f"{config.max_steps!r}", where="max_steps", expected=expected)
    if config.output_dir == "":
        raise ConfigError("''", where="output_dir", expected="a folder")
    for name in (*_JSON, *_JSON_OR_FILE):
        value = getattr(config, name, None)  # absent in some versions of transformers
        or_file = name in _JSON_OR_FILE
        if isinstance(value, str) and not _is_object(value) and not (or_file and Path(value).is_file()):
            expected = "a JSON object" + (" or a file of one" if or_file else "")
            raise ConfigError(f"{value!r}", where=name, expected=expected)
    sizes = ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE"]
    alone = "LOCAL_RANK" not in os.environ and get_int_from_env(sizes, 1) < 2
    if config.ddp_backend and alone and not torch.distributed.is_initialized():
        fix = "leave it out, or start several processes: `--launch ddp --processes 2`"
        what = f"{config.ddp_backend!r} connects processes, and this run has one"
        raise ConfigError(what, where="ddp_backend", fix=fix)
    if config.push_to_hub and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError("the hub cannot be reached", where="push_to_hub", fix="unset HF_HUB_OFFLINE, or leave it out")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# ---------------------------------------------------------------------- trial by the libraries


@contextmanager
def named(settings: Iterable[str], *more: type[Exception]) -> Iterator[None]:
    """Inside this `with` block, a library's error about a setting becomes a `ConfigError` that names the setting.

    Args:
        settings: names of settings that the error may be about. It names the only one, or the first one that occurs in
            the library's message.
        more: types of errors to convert, besides `REFUSALS`.
    """
    try:
        yield
    except (*REFUSALS, *more) as error:
        names = list(settings)
        text = str(error).strip().split("\n")[0] or type(error).__name__
        found = [word for word in re.findall(r"\w+", text) if word in names and "_" in word]
        where = names[0] if len(names) == 1 else found[0] if found else "settings"
        raise ConfigError(text, where=where) from error


def expect_served(args: TrainingArguments) -> None:
    """Checks that the optimiser, loggers and Liger kernels of the settings are installed and accept their options.

    Raises:
        ConfigError: one of them is not installed, or it or the learning-rate schedule rejects its arguments.
    """
    number = torch.nn.Parameter(torch.zeros(1))
    with named(["report_to"], RuntimeError):  # loggers report a missing library by a RuntimeError
        for logger in integration_utils.get_reporting_integration_callbacks(args.report_to):
            logger()
    if args.use_liger_kernel and not import_utils.is_liger_kernel_available():
        raise ConfigError("liger-kernel is not installed", where="use_liger_kernel", fix="leave it out")
    needs_model = args.optim.startswith(_NEED_A_MODEL)
    without_model: tuple[type[Exception], ...] = (ValueError, TypeError, AttributeError) if needs_model else ()
    with named(["optim_args" if args.optim_args else "optim"]), suppress(*without_model):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        if kind.__module__.startswith("torch."):
            kind([number], **options)
    options = args.lr_scheduler_kwargs or {}
    assert isinstance(options, dict), "TrainingArguments parses JSON text"
    with named(["lr_scheduler_kwargs"]):
        optimiser = torch.optim.SGD([number], lr=args.learning_rate)
        get_scheduler(args.lr_scheduler_type, optimiser, 0, 1, scheduler_specific_kwargs=options)
