"""Measures of judges: worked examples, plain loops, and exact bounds where resampling sees no spread."""

from __future__ import annotations

import math
import random

import pytest
import torch

from srpo.errors import ConfigError
from srpo.statistics.agreement import difference, flips, for_first_shown, kappa, only_where, share

NAN = float("nan")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_share_leaves_unscored_pairs_out() -> None:
    found = share(tensor(1, 0, NAN, 0.5, 1), draws=500)
    assert (found.value, found.of) == (0.625, 4)
    assert 0 <= found.low < found.value < found.high <= 1
    nothing = share(tensor(NAN, NAN), draws=10)
    assert nothing.of == 0
    assert all(map(math.isnan, nothing[:3]))
    assert share(torch.zeros(0)).of == 0


def test_a_share_of_0_or_1_has_the_binomial_bound() -> None:
    """The ends solve (1 − p)^n = 2.5 %: as unlikely as that is it to see none, if the share is p."""
    none, every = share(torch.zeros(50), draws=10), share(torch.ones(50), draws=10)
    assert (none.low, every.high) == (0.0, 1.0)
    assert (1 - none.high) ** 50 == pytest.approx(0.025)
    assert every.low**50 == pytest.approx(0.025)
    # Fifty verdicts on five prompts are five prompts.
    five = share(torch.zeros(50), [n % 5 for n in range(50)], draws=10)
    assert (1 - five.high) ** 5 == pytest.approx(0.025)


def test_verdicts_on_one_prompt_are_resampled_together() -> None:
    """Ten verdicts each on twenty prompts, all alike within a prompt: as wide as twenty, not as two hundred."""
    one = torch.tensor([float(n % 2) for n in range(20)])
    ten, prompts = one.repeat_interleave(10), [n // 10 for n in range(200)]
    alone, together, careless = share(one), share(ten, prompts), share(ten)
    assert (alone.low, alone.high) == (together.low, together.high)
    assert careless.high - careless.low < 0.5 * (together.high - together.low)


def test_intervals_of_shares_cover_at_their_level() -> None:
    dice, hits = random.Random(1), 0
    for trial in range(200):
        drawn = torch.tensor([float(dice.random() < 0.8) for _ in range(100)])
        found = share(drawn, draws=400, seed=trial)
        hits += found.low <= 0.8 <= found.high
    assert 180 <= hits <= 198


def test_flips_and_places_by_hand() -> None:
    ahead, behind = tensor(1, 1, 0, 0.5, NAN), tensor(1, 0, 0, 1, 0)
    assert flips(ahead, behind).nan_to_num(-1).tolist() == [0, 1, 0, 1, -1]
    # Said of the one shown first: 1 and 0; 1 and 1; 0 and 1; ½ and 0; nan.
    assert for_first_shown(ahead, behind).nan_to_num(-1).tolist() == [0.5, 1, 0.5, 0.25, -1]
    assert only_where(ahead, ahead == 1).nan_to_num(-1).tolist() == [1, 1, -1, -1, -1]


def test_difference_of_two_groups() -> None:
    found = difference(tensor(1, 1, NAN, NAN), tensor(NAN, NAN, 0, 1), draws=500)
    assert (found.value, found.of) == (0.5, 2)
    assert difference(tensor(1, 1), tensor(NAN, NAN)).of == 0


def plain_kappa(one: list[float], other: list[float]) -> float:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a == a and b == b]
    agree = sum(a == b for a, b in pairs) / len(pairs)
    chance = sum(
        sum(a == s for a, _ in pairs) / len(pairs) * sum(b == s for _, b in pairs) / len(pairs) for s in (0, 0.5, 1)
    )
    return (agree - chance) / (1 - chance)


def test_kappa_equals_a_plain_loop() -> None:
    dice = random.Random(3)
    for _ in range(20):
        one, other = ([dice.choice([0.0, 0.5, 1.0, NAN]) for _ in range(30)] for _ in range(2))
        found = kappa(tensor(*one), tensor(*other), draws=50)
        assert found.value == pytest.approx(plain_kappa(one, other))
    same = tensor(*[1.0, 0.0] * 10)
    assert kappa(same, same, draws=50).value == 1.0
    assert math.isnan(kappa(torch.ones(5), torch.ones(5), draws=50).value)  # two judges of one word


def test_invalid_settings_are_errors_with_a_fix() -> None:
    with pytest.raises(ConfigError, match="2 prompts for 3 verdicts"):
        share(tensor(1, 0, 1), ["a", "b"])
    with pytest.raises(ConfigError, match="draws"):
        share(tensor(1, 0, 1), draws=0)
