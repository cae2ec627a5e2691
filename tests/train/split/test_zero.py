"""Runs of two processes under DeepSpeed's ZeRO-2 and ZeRO-3: the numbers of one process, and a whole model at the end.

DeepSpeed is not a dependency: `make zero` runs these tests in an environment of its own, elsewhere they skip.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from srpo.cli.launch import variables_of
from tests.faults.dying import End, make_base, make_trainer, together
from tests.faults.test_death import KILLED, killer
from tests.train.plain import ROWS
from tests.train.split.processes import zero_on_cpu

pytest.importorskip("deepspeed")

EIGHT = [*ROWS, ROWS[0]]
QUICK: dict[str, Any] = {
    **{"disable_dropout": True, "gradient_accumulation_steps": 1, "max_steps": 3, "max_grad_norm": 1.0},
    **{"per_device_eval_batch_size": 2, "save_strategy": "no", "rows": EIGHT, "eval_rows": ROWS},
}
SPLIT: dict[str, Any] = {"per_device_train_batch_size": 2, "use_cpu": False, "ddp_backend": "gloo"}
SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
KINDS = [(stage, kind) for stage in ("zero2", "zero3") for kind in ("full", "lora")]


def trained(base: Path, folder: Path, kind: str, *, resume: bool = False, **settings: Any) -> dict[str, Any]:
    """Trains, saves and evaluates on seven rows in batches of two; what was logged."""
    run = make_trainer(base, folder, kind, **{**QUICK, **settings})
    for module in run.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    run.train(resume_from_checkpoint=resume)
    run.save_model()
    losses = [each["loss"] for each in run.state.log_history if "loss" in each]
    return {"losses": losses, "eval_loss": run.evaluate()["eval_loss"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    make_base(folder / "base")
    return folder


Split = Callable[..., list[End]]


@pytest.fixture
def split(place: Path, tmp_path: Path) -> Split:
    """Trains in two processes under the shipped launch file of that name, in the folder `run`."""

    def run(stage: str, kind: str = "full", *, variables: dict[str, str] | None = None, **settings: Any) -> list[End]:
        def work(rank: int) -> Any:
            zero_on_cpu(**{**variables_of(stage), **(variables or {})})
            return trained(place / "base", tmp_path / "run", kind, **{**SPLIT, **settings})

        return together(work)

    return run


@pytest.fixture(scope="module")
def alone(place: Path) -> Callable[[str], dict[str, Any]]:
    """Numbers of one process in steps of four pairs, by kind; its model is in `KIND alone`."""
    made: dict[str, dict[str, Any]] = {}

    def of(kind: str) -> dict[str, Any]:
        if kind not in made:
            settings = {"per_device_train_batch_size": 4, "ddp_backend": "gloo"}
            ends = together(
                lambda rank: trained(place / "base", place / f"{kind} alone", kind, **settings), processes=1
            )
            assert ends[0].error == ""
            made[kind] = ends[0].value
        return made[kind]

    return of


def expect_equal(ends: list[End], wanted: dict[str, Any]) -> None:
    assert [(end.code, end.error) for end in ends] == [(0, ""), (0, "")]
    assert ends[0].value["losses"] == pytest.approx(wanted["losses"], abs=1e-6)
    assert ends[0].value["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(("stage", "kind"), KINDS)
def test_losses_and_weights_are_those_of_one_process(
    stage: str, kind: str, split: Split, alone: Any, place: Path, tmp_path: Path
) -> None:
    expect_equal(split(stage, kind), alone(kind))
    (file,) = (tmp_path / "run").glob("*model.safetensors")
    ours, theirs = load_file(file), load_file(place / f"{kind} alone" / file.name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=2e-5), key


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_accumulated_batches_are_one_batch(stage: str, split: Split, alone: Any) -> None:
    expect_equal(split(stage, gradient_accumulation_steps=2, per_device_train_batch_size=1), alone("full"))


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_the_first_loss_in_bfloat16_is_exact(stage: str, split: Split) -> None:
    ends = split(stage, bf16=True, variables={"ACCELERATE_MIXED_PRECISION": "bf16"})
    assert [end.error for end in ends] == ["", ""]
    assert ends[0].value["losses"][0] == pytest.approx(0.85, abs=1e-7)


@pytest.mark.parametrize(("stage", "kind"), KINDS)
def test_a_killed_run_resumes_with_the_same_number_of_processes(
    stage: str, kind: str, split: Split, alone: Any, place: Path, tmp_path: Path
) -> None:
    ends = split(stage, kind, callbacks=[killer(2)], **SAVES)
    assert [end.code for end in ends] == [KILLED, KILLED]
    shutil.copytree(tmp_path / "run", tmp_path / "begun")
    expect_equal(split(stage, kind, resume=True, **SAVES), alone(kind))

    def by_one(rank: int) -> None:
        zero_on_cpu(**variables_of(stage))
        accept = ["processes", "per_device_train_batch_size"]
        more = {**SPLIT, **SAVES, "per_device_train_batch_size": 4, "accept_change": accept}
        trained(place / "base", tmp_path / "begun", kind, resume=True, **more)

    (end,) = together(by_one, processes=1)
    assert end.code == 78
    assert "processes: 2 → 1" in end.error
    assert "restore processes (no checkpoint can be loaded otherwise)" in end.error


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_zero2_scores_the_reference_before_training(kind: str, split: Split, alone: Any, tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    expect_equal(split("zero2", kind, precompute_ref_log_probs=True, reference_cache=kept), alone(kind))


@pytest.mark.parametrize(
    ("stage", "settings", "variables", "said"),
    [
        ("zero2", {"reference_cache": "kept"}, {}, "add `--precompute_ref_log_probs`"),
        ("zero3", {"reference_cache": "kept"}, {}, "add `--precompute_ref_log_probs`"),
        ("zero3", {"precompute_ref_log_probs": True}, {}, "split before they could be scored"),
        ("zero3", {}, {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false"}, "zero3_save_16bit_model: true"),
        ("zero2", {"max_tokens_per_batch": 100}, {}, "max_tokens_per_batch: does not work with FSDP or DeepSpeed"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    stage: str, settings: dict[str, Any], variables: dict[str, str], said: str, split: Split, tmp_path: Path
) -> None:
    if "reference_cache" in settings:
        settings = {"reference_cache": str(tmp_path / "kept")}
    ends = split(stage, variables=variables, **settings)
    assert [end.code for end in ends] == [78, 78], ends
    assert said in ends[0].error
