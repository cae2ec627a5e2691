"""The length-controlled win rate: equal to a plain search, and right on verdicts with a known length bias."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.statistics.length_control import RIDGE, length_controlled


def plain(wins: list[float], longer: list[float]) -> float:
    """The same optimum by walking downhill in ever smaller steps, one prompt after the other."""
    mean = sum(longer) / len(longer)
    spread = math.sqrt(sum((d - mean) ** 2 for d in longer) / len(longer))
    xs = [math.tanh(d / spread) if spread else 0.0 for d in longer]

    def cost(theta: float, phi: float) -> float:
        total = RIDGE * (theta**2 + phi**2) / 2
        for won, x in zip(wins, xs, strict=True):
            z = theta + phi * x
            total += math.log1p(math.exp(-abs(z))) + max(z, 0) - won * z
        return total

    at, step = [0.0, 0.0], 1.0
    while step > 1e-7:
        around = [[at[0] + i * step, at[1] + j * step] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = min(around, key=lambda point: cost(*point))
        at, step = (best, step) if cost(*best) < cost(*at) - 1e-15 else (at, step / 2)
    return 1 / (1 + math.exp(-at[0]))


def verdicts(n: int, *, quality: float, taste: float, longer: float, seed: int) -> tuple[Tensor, Tensor]:
    """Wins of a system of this log-odds whose answers are longer on average, under a judge with a taste for length."""
    chance = random.Random(seed)
    lengths = [chance.gauss(longer, 10.0) for _ in range(n)]
    spread = torch.tensor(lengths).std(correction=0).item()
    odds = [quality + taste * math.tanh(d / spread) for d in lengths]
    wins = [float(chance.random() < 1 / (1 + math.exp(-z))) for z in odds]
    return torch.tensor(wins), torch.tensor(lengths)


@pytest.mark.parametrize("taste", [0.0, 1.5, -1.0])
def test_the_fit_equals_a_plain_search(taste: float) -> None:
    wins_N, longer_N = verdicts(120, quality=0.3, taste=taste, longer=5, seed=1)
    wins_N[::7] = 0.5
    assert length_controlled(wins_N, longer_N, draws=1).mean == pytest.approx(
        plain(wins_N.tolist(), longer_N.tolist()), abs=1e-5
    )


@pytest.mark.parametrize("wins", [[1.0] * 30, [0.0] * 30, [0.5] * 30])
def test_equal_verdicts_have_a_finite_fit(wins: list[float]) -> None:
    longer = [float(i - 9) for i in range(30)]
    ours = length_controlled(torch.tensor(wins), torch.tensor(longer))
    assert ours.mean == pytest.approx(plain(wins, longer), abs=1e-4)
    assert abs(ours.mean - wins[0]) < 0.01


def test_a_length_bias_is_removed() -> None:
    wins_N, longer_N = verdicts(3000, quality=0.0, taste=2.0, longer=15, seed=2)
    controlled = length_controlled(wins_N, longer_N, draws=200)
    assert float(wins_N.mean()) > 0.7  # the judge likes them long
    assert controlled.low < 0.5 < controlled.high
    # Control: a system that is better, and longer, stays better under a judge without that taste.
    wins_N, longer_N = verdicts(3000, quality=1.0, taste=0.0, longer=15, seed=3)
    assert length_controlled(wins_N, longer_N, draws=200).mean == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.04)


def test_equal_lengths_change_nothing() -> None:
    wins_N = torch.tensor([1.0, 0.0, 1.0, 0.5] * 50)
    ours = length_controlled(wins_N, torch.zeros(200))
    assert ours.mean == pytest.approx(0.625, abs=1e-4)


def test_intervals_cover() -> None:
    # 200 experiments, two standard errors of 3 points: an interval of 80 % would not pass.
    truth = 1 / (1 + math.exp(-0.4))
    inside = 0
    for seed in range(200):
        found = length_controlled(*verdicts(300, quality=0.4, taste=1.0, longer=3, seed=seed), draws=200, seed=seed)
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 200 <= 0.985


def test_lengths_of_other_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="two of one length"):
        length_controlled(torch.zeros(3), torch.zeros(2))
