"""Schedules of β by hand, and the controller on a game whose optimum is known in closed form."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.maths.control import SCHEDULES, DriftController, scheduled_beta
from srpo.maths.objective import srpo_loss
from srpo.maths.tabular import Tables, closed_form, population_weights

P_AA = torch.tensor([[0.50, 0.99, 0.30], [0.01, 0.50, 0.25], [0.70, 0.75, 0.50]], dtype=torch.float64)
UNIFORM_A = torch.full((3,), 1 / 3, dtype=torch.float64)
BUDGET = 0.05


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.7525, 0.01]),
        ("cosine", [1.0, 0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2, 0.01]),
        ("exponential", [1.0, 10**-0.5, 0.01]),
    ],
)
def test_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    found = [scheduled_beta(schedule, 1.0, 0.01, progress) for progress in (0.0, 0.25, 1.0)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_every_schedule_has_a_case_and_an_unknown_one_is_an_error() -> None:
    assert set(SCHEDULES) == {"constant", "linear", "cosine", "exponential"}
    with pytest.raises(ConfigError, match="expected one of constant"):
        scheduled_beta("step", 1.0, 0.1, 0.5)


def moved(*drifts: float, **settings: float) -> float:
    """Change of log β at the last of some drifts, for a budget of 0.1."""
    control = DriftController(beta=1.0, budget=0.1, **{"memory": 0.0, "ahead": 0.0, **settings})
    betas = [1.0, *(control.update(drift) for drift in drifts)]
    return math.log(betas[-1] / betas[-2])


def test_beta_rises_fast_falls_slowly_and_rests_inside_the_band() -> None:
    assert moved(10.0) == pytest.approx(0.1)  # clipped
    assert moved(1e-12) == pytest.approx(-0.1 / 2)
    assert moved(0.1 * 1.5) == pytest.approx(0.1 * math.log(1.5))
    assert moved(0.1 * 1.19) == moved(0.1 / 1.19) == 0.0


def test_beta_rests_while_the_drift_is_on_its_way_to_the_budget() -> None:
    assert moved(0.01, 0.02) < 0
    assert moved(0.01, 0.02, ahead=2.0) == pytest.approx(-0.05 * -math.log(0.2 * 4))  # the smaller error, extrapolated
    assert moved(0.01, 0.02, ahead=20.0) == 0.0
    assert moved(0.9, 0.4, ahead=20.0) == 0.0
    assert moved(0.4, 0.9, ahead=20.0) == pytest.approx(0.1)


def test_a_long_training_is_steered_as_much_more_slowly() -> None:
    def least(control: DriftController, steps: int) -> float:
        """The smallest β while the drift grows quadratically to the budget at half of the steps, then stays."""
        return min(control.update(0.2 * min(1.0, 2 * step / steps) ** 2) for step in range(1, steps + 1))

    short = least(DriftController.paced(0.2, 0.2, 120), 120)
    assert DriftController.paced(0.2, 0.2, 50) == DriftController.paced(0.2, 0.2, 120) == DriftController(0.2, 0.2)
    assert short > 0.02
    assert least(DriftController.paced(0.2, 0.2, 1200), 1200) == pytest.approx(short, rel=0.5)
    assert least(DriftController(0.2, 0.2), 1200) < short / 5  # control: the pace of a short training


def test_hysteresis_and_bounds() -> None:
    assert moved(0.13, 0.11) > 0  # inside the band, but on its way out of it
    assert moved(0.13, 0.099, 0.11) == 0.0  # at rest again
    control = DriftController(beta=1.0, budget=0.1, span=2.0)
    for _ in range(200):
        control.update(5.0)
    assert control.beta == 2.0
    for _ in range(200):
        control.update(1e-5)
    assert control.beta == 0.5


def test_the_state_continues_to_the_last_bit() -> None:
    drifts = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    whole = DriftController(beta=0.3, budget=0.4)
    expected = [whole.update(drift) for drift in drifts]
    first, second = DriftController(beta=0.3, budget=0.4), DriftController(beta=0.3, budget=0.4)
    for drift in drifts[:17]:
        first.update(drift)
    second.restore(json.loads(json.dumps(first.state())))
    assert [second.update(drift) for drift in drifts[17:]] == expected[17:]
    forgetful = DriftController(beta=first.beta, budget=0.4)  # control: β alone is not the state
    assert [forgetful.update(drift) for drift in drifts[17:]] != expected[17:]


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"budget": -1.0}, {"budget": math.inf}])
def test_unusable_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected a number > 0"):
        DriftController(**{"beta": 0.1, "budget": 0.1, **wrong})


# ---------------------------------------------------------------------- the bandit


def drift_of(pi_A: Tensor, pi_dagger_AA: Tensor) -> float:
    """The larger KL of the two roles from the uniform reference, revisions averaged over drafts; nats."""
    drafts = (pi_A * (pi_A / UNIFORM_A).log()).sum()
    revisions = (pi_dagger_AA * (pi_dagger_AA / UNIFORM_A[:, None]).log()).sum(0).mean()
    return max(float(drafts), float(revisions))


def bisected() -> float:
    """The β whose closed form (Eq. 5 and 11) has a drift of `BUDGET`."""
    low, high = 1e-2, 1e2
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if drift_of(*closed_form(P_AA, UNIFORM_A, middle)) < BUDGET else (middle, high)
    return low


def trained(start: float, *, steps: int, **settings: Any) -> tuple[float, Tables]:
    """β and tables after Adam on Eq. 17, where the controller sets β of each step."""
    control = DriftController(beta=start, budget=BUDGET, **settings)
    tables = Tables.tied(UNIFORM_A).trainable()
    adam = torch.optim.Adam([tables.draft_A, tables.revision_AA], lr=0.05)
    weights_C, reference = population_weights(P_AA, UNIFORM_A).flatten(), Tables.tied(UNIFORM_A).six()
    for _ in range(steps):
        adam.zero_grad()
        loss_C = srpo_loss(tables.six(), reference, beta=control.beta, alpha=0.5).per_pair
        (weights_C * loss_C).sum().backward()
        adam.step()
        control.update(drift_of(*tables.policies()))
    return control.beta, tables


@pytest.mark.parametrize("start", [0.05, 20.0])
def test_its_fixed_point_is_the_closed_form_whose_divergence_is_the_budget(start: float) -> None:
    control = DriftController(beta=start, budget=BUDGET, band=1e-6)
    for _ in range(600):
        control.update(drift_of(*closed_form(P_AA, UNIFORM_A, control.beta)))
    assert control.beta == pytest.approx(bisected(), rel=1e-3)
    assert abs(math.log(bisected() / start)) > 2  # far from where it began


@pytest.mark.parametrize("start", [0.1, 10.0])
def test_training_under_the_controller_ends_at_that_optimum(start: float) -> None:
    beta, tables = trained(start, steps=350, band=0.01, patience=1.0)
    assert beta == pytest.approx(bisected(), rel=0.05)
    for found, expected in zip(tables.policies(), closed_form(P_AA, UNIFORM_A, bisected()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert drift_of(*tables.policies()) == pytest.approx(BUDGET, rel=0.1)


def test_control_a_constant_beta_ends_elsewhere() -> None:
    beta, tables = trained(0.1, steps=150, rate=0.0)
    assert beta == 0.1
    assert drift_of(*tables.policies()) > 5 * BUDGET
