"""The two messages on a policy that moves too far or hardly at all: due once, by definitions computed here again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srpo.train import collapse
from srpo.train.collapse import FALL, MEMORY, STILL, CollapseLight, StillLight
from tests.train.plain import ROWS, logged, sharp_llama, trainer

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


# ---------------------------------------------------------------------- a policy that hardly moves


def shares(light: StillLight, found: list[float], first: int = 1, steps: int = 100) -> list[str]:
    """The remarks on steps in which the larger KL is such a share of an entropy of 2 nats."""
    return [
        light.see({"kl/drafts": share, "kl/revisions": 2 * share, "entropy/reference": 2.0}, 0.3, step, steps)
        for step, share in enumerate(found, first)
    ]


def test_the_remark_is_due_once_at_two_fifths_of_the_steps() -> None:
    found = [0.3] * 30 + [0.05] * 70
    average = found[0]
    for share in found[1:40]:
        average = MEMORY * average + (1 - MEMORY) * share
    assert average < STILL < found[0]
    remarks = shares(StillLight(), found)
    assert [step for step, remark in enumerate(remarks, 1) if remark] == [40]
    assert f"is {100 * average:.2g} % of the entropy" in remarks[39]
    assert "lower beta (now 0.3)" in remarks[39]
    assert (
        shares(StillLight(), [0.3] * 38 + [0.05] * 62) == [""] * 100
    )  # control: the average counts, not the last step
    assert shares(StillLight(), [0.05] * 49, steps=49) == [""] * 49  # too short a training
    assert [bool(each) for each in shares(StillLight(), [0.05] * 50, steps=50)] == [step == 19 for step in range(50)]


@pytest.mark.parametrize("missing", ["kl/drafts", "entropy/reference"])
def test_no_remark_without_the_distributions_of_the_reference(missing: str) -> None:
    means = {"kl/drafts": 0.0, "entropy/reference": 1.0}
    assert "hardly moved" in StillLight().see(means, 0.3, 40, 100)
    del means[missing]
    assert StillLight().see(means, 0.3, 40, 100) == ""


def test_the_state_of_the_remark_in_a_resumed_run() -> None:
    found = [0.3] * 30 + [0.05] * 70
    whole = shares(StillLight(), found)
    for cut in (35, 60):
        first, second = StillLight(), StillLight()
        shares(first, found[:cut])
        second.restore(json.loads(json.dumps(first.state())))
        assert shares(second, found[cut:], first=cut + 1) == whole[cut:]
    assert shares(StillLight(), found[60:], first=61) != whole[60:]  # control: a light that forgets looks again


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["srpo: step 2: the policy has hardly moved"]),
        (
            {"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"},
            ["srpo: step 4: the policy has hardly moved"],
        ),
        ({"beta_schedule": "budget"}, []),
        ({"objective": "sft"}, []),
        ({"far": True}, []),
    ],
)
def test_a_run_that_hardly_moves_says_so(
    changes: dict[str, Any],
    expected: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collapse, "LEAST_STEPS", 2)
    args = {"learning_rate": 1e-9, "max_steps": 5, **changes}
    far = {"ref_model": sharp_llama(seed=1)} if args.pop("far", False) else {}
    run = trainer(tmp_path, ROWS[:4], args=args, **far)
    with caplog.at_level("INFO", "srpo"):
        run.train()
    assert [r.getMessage().split(":", 3)[:3] for r in caplog.records if "hardly moved" in r.getMessage()] == [
        each.split(":", 3) for each in expected
    ]


def test_a_checkpoint_without_the_state_of_the_remark(tmp_path: Path) -> None:
    run = trainer(tmp_path, ROWS[:4])
    state = run.temperature.state()
    del state["still"]
    run.temperature.restore(state)
    assert run.temperature.still.state() == {"average": None, "looked": True}  # no average from the middle of a run
