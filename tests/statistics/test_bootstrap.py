"""Bootstrap intervals: equal to a plain loop, coverage at their level, paired against unpaired."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srpo.errors import ConfigError, DataError, NonFiniteError
from srpo.statistics import bootstrap as bootstrap_module
from srpo.statistics.bootstrap import DRAWS, Interval, bootstrap

# --- the plain second implementation ---


def plain_bootstrap(scores: list[float], draws: int, seed: int, blocks: list[int]) -> tuple[float, float, float]:
    """One column, one loop, the standard library's own randomness."""
    chance = random.Random(seed)
    starts = [sum(blocks[:i]) for i in range(len(blocks))]
    means = []
    for _ in range(draws):
        drawn = [
            scores[start + chance.randrange(size)]
            for start, size in zip(starts, blocks, strict=True)
            for _ in range(size)
        ]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return sum(scores) / len(scores), quantile(means, 0.025), quantile(means, 0.975)


def quantile(ordered: list[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def paired_difference(a_N: Tensor, b_N: Tensor, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean of a − b over the same prompts, with its interval."""
    return bootstrap((a_N - b_N)[:, None], draws=draws, seed=seed).column(0)


def correlated(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two columns of 0/1 scores that agree on most prompts, as a draft and its revision do."""
    generator = torch.Generator().manual_seed(seed)
    a_N = (torch.rand(rows, generator=generator) < 0.5).double()
    flips_N = torch.rand(rows, generator=generator) < 0.1
    return a_N, torch.where(flips_N, 1 - a_N, a_N)


# --- against it ---


@pytest.mark.parametrize("blocks", [[60], [20, 40]])
def test_bootstrap_equals_a_plain_loop(blocks: list[int]) -> None:
    # Blocks that differ by far, so that resampling across them would be seen.
    scores_N = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores_N[blocks[0] :] += 3
    mean, low, high = plain_bootstrap(scores_N.tolist(), draws=4000, seed=2, blocks=blocks)
    ours = bootstrap(scores_N[:, None], draws=20_000, strata=blocks).column(0)
    assert ours.mean == pytest.approx(mean)
    assert ours.low == pytest.approx(low, abs=0.006)
    assert ours.high == pytest.approx(high, abs=0.006)


def test_control_strata_matter() -> None:
    scores_N1 = torch.cat([torch.zeros(20), torch.ones(40)])[:, None]
    assert bootstrap(scores_N1, strata=[20, 40]).column(0)[1:] == pytest.approx((2 / 3, 2 / 3))
    low, high = bootstrap(scores_N1).column(0)[1:]
    assert high - low > 0.2


def test_chunking_does_not_change_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    scores_NM = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    whole = bootstrap(scores_NM, draws=5000)
    monkeypatch.setattr(bootstrap_module, "CHUNK", 120)  # two draws at a time
    parts = bootstrap(scores_NM, draws=5000)
    assert torch.equal(whole.mean, parts.mean)
    # One block's draws come row after row from one generator, so they are the very same.
    assert torch.allclose(whole.low, parts.low)
    assert torch.allclose(whole.high, parts.high)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 9))
def test_the_interval_lies_within_the_scores_and_repeats(scores: list[float], seed: int) -> None:
    column_N1 = torch.tensor(scores, dtype=torch.float64)[:, None]
    mean, low, high = bootstrap(column_N1, draws=200, seed=seed).column(0)
    slack = 1e-12
    assert min(scores) - slack <= low <= high <= max(scores) + slack
    assert min(scores) - slack <= mean <= max(scores) + slack
    assert bootstrap(column_N1, draws=200, seed=seed).column(0) == (mean, low, high)


# --- what is promised ---


@pytest.mark.parametrize("kind", ["right or wrong", "share of characters"])
def test_95_percent_intervals_cover_95_percent(kind: str) -> None:
    # Every column is one experiment, so one call makes 4,000 intervals: a coverage that is 95 % is then seen within 0.7
    # points of it (two standard errors), and one of 92.5 % or 97.5 % passes less than once in ten.
    rows, experiments = 400, 4000
    chance_NM = torch.rand(rows, experiments, generator=torch.Generator().manual_seed(3))
    scores_NM, truth = (chance_NM < 0.3, 0.3) if kind == "right or wrong" else (chance_NM**2, 1 / 3)
    _, low_M, high_M = bootstrap(scores_NM, draws=2000, seed=4)
    coverage = float(((low_M <= truth) & (truth <= high_M)).double().mean())
    assert 0.93 <= coverage <= 0.97
    # Control: the same test fails an interval that promises less.
    _, low_M, high_M = bootstrap(scores_NM, draws=2000, seed=4, level=0.8)
    assert float(((low_M <= truth) & (truth <= high_M)).double().mean()) < 0.85


def test_pairing_narrows_intervals_of_correlated_scores() -> None:
    a_N, b_N = correlated(1000, seed=5)
    mean, low, high = paired_difference(a_N, b_N)
    assert mean == pytest.approx(float((a_N - b_N).mean()))
    # Control: resampling the two apart, as for two different sets of prompts.
    a, b = bootstrap(a_N[:, None], seed=1).column(0), bootstrap(b_N[:, None], seed=2).column(0)
    unpaired = ((a.high - a.low) ** 2 + (b.high - b.low) ** 2) ** 0.5
    assert high - low < 0.6 * unpaired
    # Nothing is gained where nothing is shared.
    shuffled_N = b_N[torch.randperm(1000, generator=torch.Generator().manual_seed(6))]
    mean, low, high = paired_difference(a_N, shuffled_N)
    assert high - low == pytest.approx(unpaired, rel=0.15)


def test_four_times_the_prompts_halve_the_interval() -> None:
    widths = []
    for rows in (500, 2000):
        _, low, high = paired_difference(*correlated(rows, seed=7))
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)


def test_the_interval_of_a_difference_is_that_of_the_column_of_differences() -> None:
    a_N, b_N = correlated(300, seed=8)
    together = bootstrap(torch.stack([a_N, b_N, a_N - b_N], 1), draws=500, seed=9)
    assert together.column(2) == pytest.approx(paired_difference(a_N, b_N, draws=500, seed=9))


# --- prompts without a score, and smaller draws ---


def test_a_prompt_without_a_score_is_left_out_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(10)
    scores_N, known_N = torch.rand(80, generator=generator).double(), torch.rand(80, generator=generator) < 0.7
    spoilt_N = torch.where(known_N, scores_N, torch.nan)
    ours = bootstrap(spoilt_N[:, None], known_NM=known_N[:, None]).column(0)
    alone = bootstrap(scores_N[known_N][:, None]).column(0)
    assert ours.mean == pytest.approx(alone.mean)
    assert ours[1:] == pytest.approx(alone[1:], abs=0.01)  # the number of known prompts varies between draws, too
    # Control: as losses or as ties they would count.
    assert bootstrap(spoilt_N.nan_to_num(0.0)[:, None]).column(0).mean < ours.mean - 0.05


def test_draws_without_a_scored_prompt_are_left_out() -> None:
    known_N1 = torch.tensor([[True], [False], [False]])
    assert bootstrap(torch.ones(3, 1), known_NM=known_N1, draws=50).column(0) == (1, 1, 1)
    with pytest.raises(DataError, match="no score at all"):
        bootstrap(torch.ones(3, 1), known_NM=torch.zeros(3, 1, dtype=torch.bool))


def test_draws_of_a_quarter_are_twice_as_wide() -> None:
    a_N, _ = correlated(1024, seed=11)
    whole, quarter = (bootstrap(a_N[:, None], size=size).column(0) for size in (None, 256))
    assert (quarter.high - quarter.low) / (whole.high - whole.low) == pytest.approx(2, rel=0.1)
    assert quarter.mean == whole.mean


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: bootstrap(torch.zeros(0, 2)), "at least one row"),
        (lambda: bootstrap(torch.zeros(4)), "columns"),
        (lambda: bootstrap(torch.zeros(4, 1), strata=[1, 2]), "add up to 4"),
        (lambda: bootstrap(torch.zeros(4, 1), strata=[4, 0]), "add up to 4"),
        (lambda: bootstrap(torch.zeros(4, 1), draws=0), "draws"),
        (lambda: bootstrap(torch.zeros(4, 1), size=0), "size"),
        (lambda: bootstrap(torch.zeros(4, 1), level=1.0), "level"),
    ],
)
def test_invalid_arguments_are_refused(call: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        call()  # type: ignore[operator]


def test_a_score_that_is_nan_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="row 1"):
        bootstrap(torch.tensor([[0.0], [float("nan")]]))
