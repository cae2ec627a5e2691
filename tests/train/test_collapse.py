"""The warning of a collapse: due once, by a definition that is computed here again, and a run that it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srpo.train.collapse import FALL, MEMORY, CollapseLight
from tests.train.plain import ROWS, logged, trainer

START = {"entropy/drafts": 0.4, "entropy/revisions": 0.2, "drift/chosen": 0.0, "drift/chosen_revised": 0.0}


def seen(light: CollapseLight, falls: list[float], name: str = "drift/chosen_revised") -> list[str]:
    return [light.see({**START, name: fall}, 0.1) for fall in falls]


def test_the_warning_is_due_once_when_the_average_falls_below_the_bound() -> None:
    falls = [0.0, -0.1, -0.2, -0.4, -0.4, -0.4, -0.4]
    average, due = 0.0, None
    for step, fall in enumerate(falls):
        average = MEMORY * average + (1 - MEMORY) * fall
        if due is None and average < -FALL * 0.3:
            due = step
    messages = seen(CollapseLight(), falls)
    assert due is not None
    assert 2 < due < len(falls) - 1
    assert [bool(message) for message in messages] == [step == due for step in range(len(falls))]
    assert "chosen answers as revisions lost" in messages[due]
    assert "raise beta (now 0.1)" in messages[due]
    assert "as drafts lost" in "".join(seen(CollapseLight(), falls, "drift/chosen"))


@pytest.mark.parametrize("falls", [[-0.14] * 50, [0.5] * 50, [-0.3, 0.3] * 25])
def test_a_run_that_keeps_its_chosen_answers_gets_no_warning(falls: list[float]) -> None:
    assert seen(CollapseLight(), falls) == [""] * len(falls)


def test_objectives_without_revisions_and_steps_without_metrics() -> None:
    light = CollapseLight()
    assert light.see({}, 0.1) == ""
    drafts = {"entropy/drafts": 0.3, "drift/chosen": -5.0}
    assert "as drafts" in light.see(drafts, 0.1)


def test_the_state_of_a_resumed_run() -> None:
    falls = [-0.05 * step for step in range(12)]
    whole = seen(CollapseLight(), falls)
    first, second = CollapseLight(), CollapseLight()
    seen(first, falls[:4])
    second.restore(json.loads(json.dumps(first.state())))
    assert seen(second, falls[4:]) == whole[4:]
    warned = CollapseLight()
    seen(warned, falls)
    third = CollapseLight()
    third.restore(warned.state())
    assert seen(third, [-9.0]) == [""]  # once a run, also after a resume


@pytest.mark.parametrize(("on_collapse", "steps"), [("warn", 6), ("stop", 3)])
def test_a_run_warns_or_stops(
    on_collapse: str, steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path, ROWS[:4], args={"on_collapse": on_collapse, "max_steps": 6, "save_strategy": "no"})
    see, calls = run.temperature.light.see, iter(range(6))

    def falling(means: dict[str, float], beta: float) -> str:
        return see({**means, "drift/chosen": -40.0 if next(calls) == 2 else 0.0}, beta)

    monkeypatch.setattr(run.temperature.light, "see", falling)
    with caplog.at_level("WARNING", "srpo"):
        run.train()
    assert run.state.global_step == steps
    assert [r.getMessage()[:34] for r in caplog.records if "collapsing" in r.getMessage()] == [
        "srpo: step 3: the policy is collap"
    ]


def test_metrics_that_the_light_reads_are_logged(tmp_path: Path) -> None:
    run: Any = trainer(tmp_path, ROWS[:4])
    run.train()
    assert all(logged(run, name) for name in START)
