"""`SRPOConfig`: transformers' TrainingArguments plus what the method adds.

Names and defaults shared with TRL's DPOConfig are TRL's. Those that differ, and why:

    beta 0.01               arXiv 2406.01660, appendix: TL;DR, SRPO (TRL: 0.1, DPO's)
    learning_rate 2e-6      the same table (TRL: 1e-6)
    alpha 0.8               Section 5 recommends about 0.8
    bf16                    off unless the device has it; TRL's default ends a CPU run
    gradient_checkpointing  off: the paper trains without, and the packed step needs less memory to begin with
    max_length              the model's own context; 1024 would turn away rows the model can take
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from srpo.errors import ConfigError, did_you_mean
from srpo.maths.objective import OBJECTIVES
from srpo.model.packed.backends import BACKENDS
from srpo.secrets import redacted
from srpo.sequences.fit import TRUNCATE
from srpo.sequences.tree_store import cache_folder
from srpo.settings import expect_kinds
from srpo.train.validation import expect_sense, named, settings_in

REDUCTIONS = ("sum", "mean")

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2406.01660, appendix, "TL;DR → XSum": LLaMA-7B, LoRA r=16 alpha=32
    "paper-tldr": {
        "beta": 0.01,
        "alpha": 0.8,
        "learning_rate": 2e-6,
        "num_train_epochs": 5,
        "warmup_steps": 150,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant_with_warmup",
    },
    # arXiv 2406.01660, appendix, "UltraFeedback → Arena-Hard": Llama-3.1-8B; α is not stated there
    "paper-ultrafeedback": {
        "beta": 1.3,
        "alpha": 0.8,
        "logps_reduction": "mean",
        "learning_rate": 1.25e-6,
        "num_train_epochs": 1,
        "warmup_steps": 128,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1.25e-7},
    },
}


def settings_of_preset(name: str | None) -> dict[str, Any]:
    """Settings of a published configuration; {} for None.

    Raises:
        ConfigError: there is none of that name.
    """
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        fix = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"{name!r}", where="preset", expected="one of " + ", ".join(PRESETS), fix=fix)
    return PRESETS[name]


@dataclass
class SRPOConfig(TrainingArguments):
    """Settings of `SRPOTrainer`; every field of `transformers.TrainingArguments` and these.

    Raises:
        ConfigError: a value that cannot be trained with; found before any weight is read.

    Example:
        >>> SRPOConfig(output_dir="out", beta=0.1, report_to="none").alpha
        0.8
    """

    learning_rate: float = field(default=2e-6, metadata={"help": "Peak learning rate (arXiv 2406.01660, TL;DR)."})
    logging_steps: float = field(default=10, metadata={"help": "Log every this many optimiser steps."})
    objective: str = field(default="srpo", metadata={"help": "srpo, or dpo or ipo on the same inputs."})
    beta: float = field(
        default=0.01, metadata={"help": "Weight of the divergence from the reference, > 0 (arXiv 2406.01660, TL;DR)."}
    )
    alpha: float = field(
        default=0.8, metadata={"help": "Weight of the improvement term, strictly between 0 and 1 (arXiv 2406.01660)."}
    )
    allow_unidentified: bool = field(
        default=False, metadata={"help": "Allow alpha 0 or 1, where the optimum is not identified, for an ablation."}
    )
    logps_reduction: str = field(
        default="sum",
        metadata={"help": "sum of an answer's log-probs, or mean over its tokens (UltraFeedback)."},
    )
    revision_template: str | None = field(
        default=None,
        metadata={
            "help": "How a draft is shown: a preset, a .jinja or JSON file; unset: what the model was saved with."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest of the six sequences, tokens; unset is the model's own context."}
    )
    truncate: str = field(
        default="none", metadata={"help": "none, or prompt: cut the oldest part of a prompt that is too long."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise; unset: one per core, eight at most."}
    )
    bad_rows: str = field(default="error", metadata={"help": "error, or skip: leave unusable rows out and count them."})
    backend: str = field(default="auto", metadata={"help": "auto, path, flex or flat: how log-probs are computed."})
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Most tokens computed at once, packed; a larger batch goes in pieces to the same gradient."},
    )
    reference_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps reference log-probs; unset: they are computed every time."}
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={"help": "Have all reference log-probs before training, from reference_cache or by computing them."},
    )
    precompute_ref_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs scored at once for that; unset: per_device_train_batch_size."}
    )
    sync_ref_model: bool = field(default=False, metadata={"help": "Let the reference follow the policy (TR-DPO)."})
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Share of the policy in the reference when it follows (arXiv 2404.09656)."}
    )
    ref_model_sync_steps: int = field(default=512, metadata={"help": "Optimiser steps after which it follows."})
    disable_dropout: bool = field(default=True, metadata={"help": "Train without dropout."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options for loading the model when it is given by name."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})
    accept_change: list[str] | None = field(
        default=None,
        metadata={"help": "Go on although these have changed since the run began; a refused resume lists them."},
    )

    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Mixed precision in bfloat16; unset means where the device has it."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Has no effect: the trainer's rows are token trees, which have no columns."}
    )

    def __post_init__(self) -> None:
        self._check()
        given = {name: getattr(self, name) for name in settings_in(self)}
        expect_kinds(given, [type(self)])
        expect_sense(self)
        if self.bf16 is None:
            self.bf16 = not (self.use_cpu or self.fp16) and torch.cuda.is_available() and _has_bf16()
        with named(given):  # what TrainingArguments has to say about its own settings
            super().__post_init__()

    @property
    def device(self) -> torch.device:
        """As transformers has it; a processor has no number, for torch restores nothing to `cpu:0`."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @classmethod
    def preset(cls, name: str, **settings: Any) -> SRPOConfig:
        """A published configuration, with whatever is set beside it winning.

        Raises:
            ConfigError: there is no preset of that name.
        """
        return cls(**{**settings_of_preset(name), **settings})

    def loading_options(self) -> dict[str, Any]:
        """`model_init_kwargs` as a dict; a flag gives it as JSON."""
        given = self.model_init_kwargs or {}
        try:
            options = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise ConfigError(f"{given!r}", where="model_init_kwargs", expected="a JSON object of options")
        if "trust_remote_code" in options:
            fix = "it is a setting of its own: --trust_remote_code"
            raise ConfigError("holds trust_remote_code", where="model_init_kwargs", fix=fix)
        redacted(options)  # remembers a token among them
        return options

    def reference_folder(self) -> Path | None:
        """Where reference log-probs are kept; None where they are not."""
        return self.kept_in() if self.reference_cache or self.precompute_ref_log_probs else None

    def kept_in(self) -> Path:
        """Where they would be kept: beside the tokenised rows, unless another folder is named."""
        return Path(self.reference_cache) if self.reference_cache else cache_folder() / "reference"

    def expect_still_reference(self) -> None:
        """A reference that moves and log-probs that are kept exclude each other."""
        if self.sync_ref_model and self.reference_folder():
            what = "a reference that moves has no log-probs that could be kept"
            fix = "leave reference_cache and precompute_ref_log_probs out, or sync_ref_model"
            raise ConfigError(what, where="sync_ref_model", fix=fix)

    def to_dict(self) -> dict[str, Any]:
        """As transformers', which loggers write down, without a secret inside `model_init_kwargs` either."""
        shown: dict[str, Any] = redacted({**super().to_dict(), "model_init_kwargs": self.loading_options() or None})
        return shown

    def __str__(self) -> str:
        return str(redacted(super().__str__()))

    __repr__ = __str__

    def _check(self) -> None:
        self.loading_options()
        for name, known in (
            ("objective", tuple(OBJECTIVES)),
            ("backend", BACKENDS),
            ("logps_reduction", REDUCTIONS),
            ("bad_rows", ("error", "skip")),
            ("truncate", TRUNCATE),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{value!r}", where=name, expected="one of " + ", ".join(known), fix=did_you_mean(str(value), known)
                )
        if not (_is_number(self.beta) and math.isfinite(self.beta) and self.beta > 0):
            raise ConfigError(f"{self.beta!r}", where="beta", expected="a number above 0")
        if not (_is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise ConfigError(f"{self.alpha!r}", where="alpha", expected="a number strictly between 0 and 1")
        if self.alpha in (0, 1) and self.objective == "srpo" and not self.allow_unidentified:
            why = (
                "the drafting policy is then not identified: other solutions reach the same loss"
                if self.alpha == 0
                else "Eq. 16, the only term that trains drafting, is then switched off"
            )
            fix = "choose a value between, or set allow_unidentified for an ablation"
            raise ConfigError(f"{self.alpha:g}; {why}", where="alpha", expected="strictly between 0 and 1", fix=fix)
        if not (_is_number(self.learning_rate) and math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ConfigError(f"{self.learning_rate!r}", where="learning_rate", expected="a number, 0 or more")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if not (type(value := getattr(self, name)) is int and value >= 1):
                raise ConfigError(f"{value!r}", where=name, expected="at least 1")
        for name in (
            *("dataset_num_proc", "max_tokens_per_batch", "precompute_ref_batch_size", "ref_model_sync_steps"),
            "save_total_limit",  # transformers keeps all at 0 and below, a slice of what is found would keep none
        ):
            value = getattr(self, name)
            if not (value is None and name != "ref_model_sync_steps") and not (type(value) is int and value > 0):
                raise ConfigError(f"{value!r}", where=name, expected="a whole number above 0")
        if not (_is_number(self.ref_model_mixup_alpha) and 0 < self.ref_model_mixup_alpha <= 1):
            expected = "a number above 0 and at most 1"
            raise ConfigError(f"{self.ref_model_mixup_alpha!r}", where="ref_model_mixup_alpha", expected=expected)
        self.expect_still_reference()
        if self.max_length is not None and not (type(self.max_length) is int and self.max_length >= 2):
            raise ConfigError(
                f"{self.max_length!r}", where="max_length", expected="a whole number of tokens, at least 2"
            )


def _has_bf16() -> bool:
    """In hardware: a device that emulates it is slower with it than without."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
