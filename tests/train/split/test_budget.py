"""A run of two processes whose β the controller adapts, resumed: the β and the weights of the uninterrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.faults.dying import forked, make_base, make_trainer, together, weights_hash
from tests.train.plain import ROWS, logged
from tests.train.split.processes import split_on_cpu, unsplit

SETTINGS: dict[str, Any] = {
    **{"rows": [*ROWS, ROWS[0]], "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 5},
    **{"save_steps": 1, "disable_dropout": True, "ddp_backend": "gloo", "beta_schedule": "budget"},
    "drift_budget": 0.015,
}
FSDP = "FSDP 2"


class Stop(Exception):
    """The end of a run in all of its processes."""


class Stopper(TrainerCallback):
    """Ends a run before its fourth step, in all processes."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise Stop


def trained(base: Path, folder: Path, *, forget: bool = False, **keywords: Any) -> list[float]:
    """Trains or resumes; β of every step that was logged, also before the interruption."""
    run = make_trainer(base, folder, **SETTINGS, **keywords)
    if forget:
        run.temperature.restore = lambda state: None
    run.train(resume_from_checkpoint=folder.exists() and any(folder.glob("checkpoint-*")))
    run.save_model()
    return logged(run, "beta")


def runs(base: Path, folder: Path) -> dict[str, list[float]]:
    """The betas of whole, resumed and forgetful runs of this process, which is one of two."""
    found = {}
    for kind in ("DDP", FSDP):
        if kind == FSDP:
            split_on_cpu(FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
        found[kind] = trained(base, folder / kind)
        for name in ("again", "forgetful") if kind == "DDP" else ("again",):
            with pytest.raises(Stop):
                trained(base, folder / f"{kind} {name}", callbacks=[Stopper()])
            found[f"{kind} {name}"] = trained(base, folder / f"{kind} {name}", forget=name == "forgetful")
        unsplit()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, list[float]]]]:
    folder = tmp_path_factory.mktemp("budget")
    make_base(folder / "base")
    ends = together(lambda rank: runs(folder / "base", folder))
    assert [end.error for end in ends] == ["", ""]
    return folder, [end.value for end in ends]


@pytest.mark.parametrize("kind", ["DDP", FSDP])
def test_the_resumed_run_has_the_betas_and_weights_of_the_whole_one(kind: str, place: Any) -> None:
    folder, (found, other) = place
    first, *betas = found[kind]
    assert first == betas[0]  # the first step measures the entropy
    assert len(set(betas)) == 4
    assert betas[2] / betas[1] != pytest.approx(betas[3] / betas[2], rel=1e-3)  # not at the largest change of β
    assert found[f"{kind} again"] == found[kind] == other[kind] == other[f"{kind} again"]
    assert weights_hash(folder / f"{kind} again") == weights_hash(folder / kind)


def test_control_a_controller_that_forgets_ends_elsewhere(place: Any) -> None:
    folder, (found, _) = place
    assert found["DDP forgetful"][:3] == found["DDP"][:3]
    assert found["DDP forgetful"][3:] != found["DDP"][3:]
    assert weights_hash(folder / "DDP forgetful") != weights_hash(folder / "DDP")


def test_two_processes_have_the_betas_of_one(place: Any) -> None:
    folder, (found, _) = place
    changes = {**SETTINGS, "per_device_train_batch_size": 4, "save_strategy": "no"}
    del changes["ddp_backend"]
    end = forked(lambda: logged(_alone(folder, changes), "beta"))
    assert end.error == ""
    assert found["DDP"] == pytest.approx(end.value, rel=1e-5)
    assert found[FSDP] == pytest.approx(end.value, rel=1e-5)


def _alone(folder: Path, changes: dict[str, Any]) -> Any:
    run = make_trainer(folder / "base", folder / "alone", **changes)
    run.train()
    return run
