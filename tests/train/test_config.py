"""SRPOConfig: what cannot be trained with is refused by name, presets are the paper's, defaults are listed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOTrainer
from srpo.errors import ConfigError, InputError
from srpo.train.config import PRESETS, SRPOConfig, _has_bf16


def config(folder: Path, **changes: Any) -> SRPOConfig:
    return SRPOConfig(**{"output_dir": str(folder), "use_cpu": True, "report_to": "none", **changes})


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, math.nan, math.inf, True, "0.1", None], ids=repr)
def test_beta(beta: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, beta=beta)
    assert str(caught.value) == f"beta: {beta!r}; expected " + (
        "a number" if beta is True or beta is None or isinstance(beta, str) else "above 0"
    )
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("alpha", [-1, 1.01, 2, math.nan, math.inf, True, "0.5"], ids=repr)
def test_alpha(alpha: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, alpha=alpha)
    assert str(caught.value) == f"alpha: {alpha!r}; expected " + (
        "a number" if alpha is True or isinstance(alpha, str) else "0 or more and at most 1"
    )


@pytest.mark.parametrize(("alpha", "why"), [(0, "the drafting policy is then not identified"), (1, "Eq. 16")])
def test_alpha_zero_and_one_need_permission(alpha: float, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"alpha: {alpha}; .*{why}.*strictly between 0 and 1.*allow_unidentified"):
        config(tmp_path, alpha=alpha)
    assert config(tmp_path, alpha=alpha, allow_unidentified=True).alpha == alpha
    # Objectives without an α do not mind.
    assert config(tmp_path, alpha=alpha, objective="dpo").alpha == alpha


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "objective",
            "spro",
            "objective: 'spro'; expected one of srpo, dpo, ipo, sft, sft_reviser; did you mean 'srpo'?",
        ),
        ("objective", "kto", "objective: 'kto'; expected one of srpo, dpo, ipo, sft, sft_reviser"),
        ("objective", None, "objective: None; expected text"),
        ("chosen_nll_weight", -0.1, "chosen_nll_weight: -0.1; expected 0 or more"),
        ("backend", "flatt", "backend: 'flatt'; expected one of auto, path, flex, cache, flat; did you mean 'flat'?"),
        ("backend", "flash", "backend: 'flash'; expected one of auto, path, flex, cache, flat; did you mean 'flat'?"),
        ("logps_reduction", "avg", "logps_reduction: 'avg'; expected one of sum, mean"),
        ("logps_reduction", "means", "logps_reduction: 'means'; expected one of sum, mean; did you mean 'mean'?"),
        ("bad_rows", "skipp", "bad_rows: 'skipp'; expected one of error, skip; did you mean 'skip'?"),
        ("max_length", 0, "max_length: 0; expected 2 or more"),
        ("max_length", 1, "max_length: 1; expected 2 or more"),
        ("max_length", -5, "max_length: -5; expected 2 or more"),
        ("max_length", 8.5, "max_length: 8.5; expected a whole number"),
        ("max_length", "64", "max_length: '64'; expected a whole number"),
        ("save_total_limit", -1, "save_total_limit: -1; expected 1 or more"),
        ("save_total_limit", 0, "save_total_limit: 0; expected 1 or more"),
        ("learning_rate", float("nan"), "learning_rate: nan; expected 0 or more"),
        ("learning_rate", -1e-6, "learning_rate: -1e-06; expected 0 or more"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size: 0; expected 1 or more"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps: 0; expected 1 or more"),
    ],
)
def test_other_values(name: str, value: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{name: value})
    assert str(caught.value).startswith(line)
    assert "did you mean" in line or "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("logging_steps", [1], "logging_steps: [1]; expected a number"),
        ("max_grad_norm", None, "max_grad_norm: None; expected a number"),
        ("max_steps", 1.5, "max_steps: 1.5; expected a whole number"),
        ("use_cpu", "yes", "use_cpu: 'yes'; expected true or false"),
        ("save_strategy", False, "save_strategy: False; expected one of no, steps, epoch, best"),
        (
            "save_strategy",
            "stops",
            "save_strategy: 'stops'; expected one of no, steps, epoch, best; did you mean 'steps'?",
        ),
        ("label_names", ["a", 3], "label_names: ['a', 3]; expected a list, each text"),
        ("output_dir", "", "output_dir: ''; expected a folder"),
    ],
)
def test_values_of_a_wrong_type(name: str, value: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{name: value})
    assert str(caught.value) == line


def test_a_copy_of_valid_settings_is_valid(tmp_path: Path) -> None:
    """transformers has put values of other kinds in the places of some by then."""
    given = {"report_to": "none", "lr_scheduler_kwargs": '{"min_lr": 0.1}', "accelerator_config": {}, "max_steps": 1e1}
    made = config(tmp_path, **given)
    assert dataclasses.replace(made, seed=3).seed == 3
    assert SRPOConfig(output_dir=tmp_path, use_cpu=True, report_to=["none"]).output_dir  # type: ignore[arg-type]


class TwoDevices(SRPOConfig):
    """As where two GPUs are seen."""

    n_gpu = 2  # type: ignore[assignment]


def test_one_process_with_two_gpus_is_refused(tmp_path: Path) -> None:
    """Before the model is read: there is none of that name."""
    two = TwoDevices(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ConfigError) as caught:
        SRPOTrainer("/no/such/model", args=two, train_dataset=[])
    assert str(caught.value).startswith("devices: 2 GPUs and one process; expected one process for each; start it with")
    spread = TwoDevices(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", model_init_kwargs={"device_map": "auto"}
    )
    for args in (spread, config(tmp_path)):
        with pytest.raises(InputError):
            SRPOTrainer("/no/such/model", args=args, train_dataset=[])


def test_a_way_between_processes_needs_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(SRPOConfig, "device", torch.device("cpu"))  # accelerate would wait for the other process
    line = "ddp_backend: 'gloo' connects processes, and this run has one; leave it out, or start several processes: "
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, ddp_backend="gloo")
    assert str(caught.value).startswith(line)
    monkeypatch.setenv("LOCAL_RANK", "0")  # as a launcher does
    assert config(tmp_path, ddp_backend="gloo").ddp_backend == "gloo"


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_needs_hardware_support(emulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return emulated and including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert _has_bf16() is False
    assert asked == [False]


def test_valid_settings_pass(tmp_path: Path) -> None:
    made = config(tmp_path, beta=1, alpha=0.5, max_length=2, backend="flat", objective="ipo", bad_rows="skip")
    assert (made.beta, made.alpha, made.max_length, made.backend, made.objective) == (1, 0.5, 2, "flat", "ipo")


def test_defaults(tmp_path: Path) -> None:
    made = config(tmp_path)
    expected = {
        "beta": 0.01,
        "alpha": 0.8,
        "learning_rate": 2e-6,
        "objective": "srpo",
        "logps_reduction": "sum",
        "max_length": None,
        "backend": "auto",
        "bad_rows": "error",
        "disable_dropout": True,
        "trust_remote_code": False,
        "allow_unidentified": False,
        "revision_template": None,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    assert {name: getattr(made, name) for name in expected} == expected


# arXiv 2406.01660, appendix: the two tables, as far as one process can follow them.
TABLES: dict[str, dict[str, Any]] = {
    "paper-tldr": {
        "beta": 0.01,
        "learning_rate": 2e-6,
        "num_train_epochs": 5,
        "warmup_steps": 150,
        "weight_decay": 0.1,
    },
    "paper-ultrafeedback": {"beta": 1.3, "learning_rate": 1.25e-6, "num_train_epochs": 1, "warmup_steps": 128},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_tables(name: str, tmp_path: Path) -> None:
    made = SRPOConfig.preset(name, output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert {key: getattr(made, key) for key in TABLES[name]} == TABLES[name]
    assert made.logps_reduction == ("mean" if name == "paper-ultrafeedback" else "sum")


def test_settings_override_a_preset(tmp_path: Path) -> None:
    made = SRPOConfig.preset("paper-tldr", output_dir=str(tmp_path), use_cpu=True, report_to="none", beta=0.2)
    assert (made.beta, made.weight_decay) == (0.2, 0.1)
    assert PRESETS["paper-tldr"]["beta"] == 0.01


def test_an_unknown_preset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SRPOConfig.preset("paper-tlrd", output_dir=str(tmp_path))
    line = "preset: 'paper-tlrd'; expected one of paper-tldr, paper-ultrafeedback; did you mean 'paper-tldr'?"
    assert str(caught.value) == line


def test_a_supervised_control_has_no_anchor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chosen_nll_weight: has no use with objective sft"):
        config(tmp_path, objective="sft", chosen_nll_weight=0.1)
    assert config(tmp_path, objective="dpo", chosen_nll_weight=0.1).chosen_nll_weight == 0.1
