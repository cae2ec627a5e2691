"""`SRPOConfig`: transformers' TrainingArguments and the settings of the method.

Names and defaults shared with TRL's DPOConfig are TRL's, except:

    beta 0.01               arXiv 2406.01660, appendix: TL;DR, SRPO (TRL: 0.1, for DPO)
    learning_rate 2e-6      the same table (TRL: 1e-6)
    alpha 0.8               Section 5 recommends about 0.8
    bf16                    off unless the device has it; TRL's default fails on a CPU
    gradient_checkpointing  off: the paper trains without it, and the packed step needs less memory
    max_length              the model's own context; TRL's 1024 would reject rows that fit the model
    pad_to_multiple_of      nothing is padded; TRL's "auto" pads on AWS Neuron alone
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from srpo.errors import ConfigError, did_you_mean
from srpo.maths.control import BUDGET, SCHEDULES
from srpo.maths.objective import OBJECTIVES
from srpo.model.packed.backends import BACKENDS
from srpo.secrets import redacted
from srpo.sequences.fit import TRUNCATE
from srpo.sequences.tree_store import cache_folder
from srpo.settings import as_mapping, expect_kinds, expect_known, expect_valid, setting, shared
from srpo.train.transformers_settings import expect_valid_transformers, named, settings_in

METHOD, DATA, MODEL, REFERENCE = "method", "data", "model and adapter", "reference"  # help page groups
EVALUATION, RUN = "logging and evaluation", "run"

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
    # arXiv 2406.01660, appendix, "UltraFeedback → Arena-Hard": Llama-3.1-8B; the appendix gives no α
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
    """Returns setting → value of the published configuration with that name; {} for None.

    Raises:
        ConfigError: unknown name.
    """
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        fix = did_you_mean(str(name), PRESETS)
        raise ConfigError(f"{name!r}", where="preset", expected="one of " + ", ".join(PRESETS), fix=fix)
    return PRESETS[name]


# `--bf16` alone means true, as for other flags without a value; HfArgumentParser does this for plain booleans only.
_BF16: Any = field(
    default=None,
    metadata={
        **setting(None, "Mixed precision in bfloat16; unset: on if the GPU has bfloat16.", group=MODEL).metadata,
        "nargs": "?",
        "const": True,
    },
)


@dataclass
class SRPOConfig(TrainingArguments):
    """Settings of `SRPOTrainer`: every field of `transformers.TrainingArguments`, and the fields below.

    Raises:
        ConfigError: a value that training cannot use; found before any weight is read.

    Example:
        >>> SRPOConfig(output_dir="out", beta=0.1, report_to="none").alpha
        0.8
    """

    objective: str = setting(
        "srpo",
        "Loss: srpo; dpo or ipo on the same pairs; sft (chosen answers as drafts) or sft_reviser (chosen answers as "
        "revisions) as controls.",
        group=METHOD,
        choices=tuple(OBJECTIVES),
    )
    beta: float = setting(
        0.01, "Weight of the divergence from the reference (arXiv 2406.01660).", group=METHOD, above=0
    )
    beta_schedule: str = setting(
        "constant",
        "β over the steps: constant; linear, cosine or exponential from beta to beta_end; or budget, which starts at "
        "beta and adapts it so that the drift from the reference stays near drift_budget.",
        group=METHOD,
        choices=(*SCHEDULES, BUDGET),
    )
    beta_end: float | None = setting(
        None, "β of the last step under a linear, cosine or exponential beta_schedule.", group=METHOD, above=0
    )
    drift_budget: float | None = setting(
        None,
        "KL(policy ‖ reference) that beta_schedule budget aims at, in nats per answer token, of drafts or revisions, "
        "whichever is larger; unset: half of the reference's entropy per answer token.",
        group=METHOD,
        above=0,
    )
    on_collapse: str = setting(
        "warn",
        "When the metrics show that the policy is collapsing: warn once, or stop the training as well.",
        group=METHOD,
        choices=("warn", "stop"),
    )
    alpha: float = setting(
        0.8, "Weight of the improvement term, between 0 and 1 (arXiv 2406.01660).", group=METHOD, least=0, most=1
    )
    allow_unidentified: bool = setting(
        False, "Allow alpha 0 or 1 for an ablation, although the optimum is not unique.", group=METHOD
    )
    logps_reduction: str = setting(
        "sum", "Log-prob of an answer: sum or mean over its tokens.", group=METHOD, choices=("sum", "mean")
    )
    chosen_nll_weight: float = setting(
        0.0, "Weight of an added −log π of the chosen answer per token; 0 adds nothing.", group=METHOD, least=0
    )
    router_aux_loss_coef: float | None = setting(
        None, "Weight of the loss that balances routed experts; unset: that of the model.", group=METHOD, least=0
    )
    revision_template: str | None = shared("revision_template", group=METHOD)
    chat_template_kwargs: dict[str, Any] | None = shared("chat_template_kwargs", group=METHOD)
    no_chat_template: bool = shared("no_chat_template", group=METHOD)
    learning_rate: float = setting(2e-6, "Peak learning rate (arXiv 2406.01660, TL;DR).", group=METHOD, least=0)
    disable_dropout: bool = setting(True, "Train without dropout.", group=METHOD)
    max_length: int | None = shared("max_length", group=DATA, least=2)
    truncate: str = shared("truncate", group=DATA, choices=TRUNCATE)
    dataset_num_proc: int | None = shared("dataset_num_proc", group=DATA, least=1)
    bad_rows: str = shared("bad_rows", group=DATA, choices=("error", "skip"))
    model_init_kwargs: dict[str, Any] | str | None = setting(
        None, "Options for loading the model by name, as a JSON object.", group=MODEL
    )
    trust_remote_code: bool = shared("trust_remote_code", group=MODEL)
    bf16: bool | None = _BF16  # type: ignore[assignment]
    backend: str = setting(
        "auto", "Computation of log-probs: auto, path, flex, cache or flat.", group=MODEL, choices=BACKENDS
    )
    max_tokens_per_batch: int | None = setting(
        None, "Packed tokens computed at once; larger batches are cut, with the same gradient.", group=MODEL, least=1
    )
    pad_to_multiple_of: int | None = setting(
        None,
        "Pad rows, attention and scored positions to multiples of this number, so that few shapes serve all batches.",
        group=MODEL,
        least=1,
    )
    compile_layers: bool = setting(
        False, "Compile each decoder layer with torch.compile; takes a minute or so at the first batches.", group=MODEL
    )
    group_by_prompt: bool = setting(
        False, "Draw all pairs of a prompt into one batch, where they are computed as one tree.", group=MODEL
    )
    reference_cache: str | None = setting(
        None, "Folder that caches reference log-probs; unset: they are computed in every step.", group=REFERENCE
    )
    precompute_ref_log_probs: bool = setting(
        False, "Compute all reference log-probs before training, or read them from the cache.", group=REFERENCE
    )
    precompute_ref_batch_size: int | None = setting(
        None, "Pairs scored at once by that computation; unset: per_device_train_batch_size.", group=REFERENCE, least=1
    )
    sync_ref_model: bool = setting(
        False, "Move the reference towards the policy during training (TR-DPO).", group=REFERENCE
    )
    ref_model_mixup_alpha: float = setting(
        0.6, "Share of the policy in the moved reference (arXiv 2404.09656).", group=REFERENCE, above=0, most=1
    )
    ref_model_sync_steps: int = setting(
        512, "Optimiser steps between two moves of the reference.", group=REFERENCE, least=1
    )
    logging_steps: float = setting(10, "Optimiser steps between two log lines.", group=EVALUATION)
    accept_change: list[str] | None = setting(
        None, "Keys whose change a resumed run accepts; a refused resume lists them.", group=RUN
    )
    remove_unused_columns: bool = setting(False, "Has no effect: rows are token trees without columns.")

    def __new__(cls, *args: Any, **settings: Any) -> SRPOConfig:
        """Checks all keyword names and reports every unknown one; Python itself would name only the first."""
        expect_known(settings, [each.name for each in fields(cls)], where="SRPOConfig")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.chat_template_kwargs is not None:
            self.chat_template_kwargs = as_mapping(self.chat_template_kwargs, "chat_template_kwargs")
        given = {name: getattr(self, name) for name in settings_in(self)}
        expect_kinds(given, [type(self)])
        expect_valid(self)
        self._check()
        expect_valid_transformers(self)
        if self.bf16 is None:
            self.bf16 = not (self.use_cpu or self.fp16) and torch.cuda.is_available() and _has_bf16()
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # without this setting, transformers would ask for it
        with named(given):
            super().__post_init__()

    @property
    def device(self) -> torch.device:
        """Device that trains; a CPU is `cpu` and never `cpu:0`, a device to which torch restores no checkpoint."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @classmethod
    def preset(cls, name: str, **settings: Any) -> SRPOConfig:
        """Creates the settings of a published configuration, such as "paper-tldr"; `settings` override its values.

        Raises:
            ConfigError: unknown preset.
        """
        return cls(**{**settings_of_preset(name), **settings})

    def loading_options(self) -> dict[str, Any]:
        """Returns `model_init_kwargs` as a dict; from the command line they arrive as JSON text."""
        options = as_mapping(self.model_init_kwargs, "model_init_kwargs")
        if "trust_remote_code" in options:
            fix = "it is a setting of its own: --trust_remote_code"
            raise ConfigError("contains trust_remote_code", where="model_init_kwargs", fix=fix)
        if "torch_dtype" in options:
            raise ConfigError("contains torch_dtype", where="model_init_kwargs", fix="use its newer name, dtype")
        redacted(options)  # remembers an access token among the options, so that messages hide it
        return options

    def reference_folder(self) -> Path | None:
        """Returns the folder of cached reference log-probs; None if these settings use no cache."""
        return self.reference_cache_folder() if self.reference_cache or self.precompute_ref_log_probs else None

    def reference_cache_folder(self) -> Path:
        """Returns the folder for cached reference log-probs: `reference_cache`, or the default one."""
        return Path(self.reference_cache) if self.reference_cache else cache_folder() / "reference"

    def expect_still_reference(self) -> None:
        """Checks that these settings do not cache a reference that moves during training.

        Raises:
            ConfigError: both a moving reference and a cache are set.
        """
        if self.sync_ref_model and self.reference_folder():
            fix = "leave reference_cache and precompute_ref_log_probs out, or sync_ref_model"
            raise ConfigError("log-probs of a moving reference cannot be cached", where="sync_ref_model", fix=fix)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dict for loggers; secrets are left out, including those in `model_init_kwargs`."""
        shown: dict[str, Any] = redacted({**super().to_dict(), "model_init_kwargs": self.loading_options() or None})
        return shown

    def __str__(self) -> str:
        return str(redacted(super().__str__()))

    __repr__ = __str__

    def _check(self) -> None:
        """Checks settings that depend on each other; raises ConfigError."""
        self.loading_options()
        self.expect_still_reference()
        self._check_schedule()
        if self.chosen_nll_weight and not OBJECTIVES[self.objective].compares:
            what = f"has no use with objective {self.objective}, which is such a term itself"
            raise ConfigError(what, where="chosen_nll_weight", fix="leave it out")
        if self.compile_layers and self.torch_compile:
            what = "given with torch_compile, which compiles the whole model"
            raise ConfigError(what, where="compile_layers", fix="leave one of the two out")
        if self.pad_to_multiple_of and self.backend == "cache":
            fix = "leave one of the two out"
            raise ConfigError("the cache tree is not padded", where="pad_to_multiple_of", fix=fix)
        if self.group_by_prompt and self.train_sampling_strategy != "random":
            what = f"{self.train_sampling_strategy}, but group_by_prompt decides the order of the pairs"
            raise ConfigError(what, where="train_sampling_strategy", fix="leave one of the two out")
        if self.alpha in (0, 1) and self.objective == "srpo" and not self.allow_unidentified:
            why = (
                "the drafting policy is then not identified: other solutions have the same loss"
                if self.alpha == 0
                else "Eq. 16, the only term that trains drafts, is then switched off"
            )
            fix = "choose a value between, or set allow_unidentified for an ablation"
            raise ConfigError(f"{self.alpha:g}; {why}", where="alpha", expected="strictly between 0 and 1", fix=fix)

    def _check_schedule(self) -> None:
        """Checks the settings that change β over the steps of a training; raises ConfigError."""
        moves = self.beta_schedule in SCHEDULES and self.beta_schedule != "constant"
        if moves and self.beta_end is None:
            fix = "add `--beta_end …`, or choose beta_schedule constant"
            raise ConfigError(f"{self.beta_schedule} without beta_end", where="beta_schedule", fix=fix)
        if self.beta_end is not None and not moves:
            what = f"has no use with beta_schedule {self.beta_schedule}"
            raise ConfigError(what, where="beta_end", fix="leave it out, or choose linear, cosine or exponential")
        if self.drift_budget is not None and self.beta_schedule != BUDGET:
            what = f"has no use with beta_schedule {self.beta_schedule}"
            raise ConfigError(what, where="drift_budget", fix="leave it out, or choose beta_schedule budget")
        if self.beta_schedule == BUDGET and not OBJECTIVES[self.objective].compares:
            what = f"{BUDGET} has no use with objective {self.objective}, which has no beta"
            raise ConfigError(what, where="beta_schedule", fix="leave it out")
        if self.beta_schedule == BUDGET and self.reference_folder():
            what = f"{BUDGET} compares whole distributions, and a cached reference keeps the log-probs of answers alone"
            fix = "leave reference_cache and precompute_ref_log_probs out, or choose another schedule"
            raise ConfigError(what, where="beta_schedule", fix=fix)


def _has_bf16() -> bool:
    """Whether the GPU computes bfloat16 in hardware; emulation is slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
