"""Scores in, means and bootstrap intervals out; win rates with ties counted half.

The interval is the percentile bootstrap over prompts: draw N prompts with replacement, average, repeat, and take the
middle 95 % of the averages. Every column sees the same draws, so the interval of a difference is the interval of the
column of differences, and what two systems share on a prompt cancels.

What such an interval does not say: it is about other prompts of the same kind, not about other training runs, and a
column that is the same on every prompt (all right, all wrong) gets an interval of width zero.

A prompt without a score in a column (a judge that gave no verdict) is left out of that column's averages, in the data
and in every draw alike; it is neither a tie nor a loss.

Axes: N prompts, M columns, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError, NonFiniteError

DRAWS, LEVEL = 10_000, 0.95
CHUNK = 2**18  # counts held at once, 2 MiB of them: a cache's worth is also the fastest


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


class Intervals(NamedTuple):
    """A mean and the ends of its interval for each column: three [M] tensors, float64."""

    mean: Tensor
    low: Tensor
    high: Tensor

    def column(self, index: int) -> Interval:
        """The numbers of one column."""
        return Interval(float(self.mean[index]), float(self.low[index]), float(self.high[index]))


def bootstrap(
    scores_NM: Tensor,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    size: int | None = None,
    strata: Sequence[int] | None = None,
    known_NM: Tensor | None = None,
) -> Intervals:
    """Mean of each column and its percentile bootstrap interval over the rows, all columns on the same draws.

    Args:
        scores_NM: [N, M] one row per prompt; any finite numbers.
        draws: resamples, ≥ 1.
        seed: of the resampling; the same seed and N give the same draws.
        level: probability the interval is meant to cover, in (0, 1).
        size: prompts per draw; as many as there are, if None. Only then is the interval one of the average over all
            of them; smaller draws give the wider interval of a smaller set.
        strata: lengths of the consecutive blocks of rows, adding up to N, that are each resampled within themselves;
            without them all rows are one block.
        known_NM: [N, M] False where a prompt has no score in a column; all have, if None.

    Raises:
        ConfigError: no rows, or an argument is out of range.
        DataError: a column has no score at all.
        NonFiniteError: a score is nan or infinite.

    Example:
        >>> import torch
        >>> right = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
        >>> bootstrap(right, seed=1).column(0)
        Interval(mean=0.5, low=0.0, high=1.0)
        >>> bootstrap(right, seed=1).column(1)
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    blocks = list(strata) if strata is not None else [len(scores_NM)]
    known_NM = torch.ones_like(scores_NM, dtype=torch.bool) if known_NM is None else known_NM
    scores_NM = scores_NM.to(torch.float64).where(known_NM, 0.0)
    _check(scores_NM, known_NM, blocks, draws, level, size)
    means: list[Tensor] = []
    weights_NM, complete = known_NM.to(torch.float64), bool(known_NM.all())
    for counts_DN in resamples(blocks, draws=draws, seed=seed, size=size):
        drawn_DM = counts_DN.sum(1, keepdim=True) if complete else counts_DN @ weights_NM
        means.append(counts_DN @ scores_NM / drawn_DM)
    means_DM = torch.cat(means)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    # One column at a time: torch.quantile refuses inputs of more than 2**24 numbers. A draw that took none of the
    # prompts with a score has no mean, and no part in the quantiles.
    quantile = torch.quantile if complete else torch.nanquantile
    ends_M2 = [quantile(column_D, ends) for column_D in means_DM.unbind(1)]
    low_M, high_M = torch.stack(ends_M2, 1) if ends_M2 else torch.empty(2, 0, dtype=torch.float64)
    return Intervals(scores_NM.sum(0) / weights_NM.sum(0), low_M, high_M)


def paired_difference(
    a_N: Tensor,
    b_N: Tensor,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    strata: Sequence[int] | None = None,
) -> Interval:
    """Mean of a − b over the same prompts, with its bootstrap interval.

    Args:
        a_N: [N] scores of one system.
        b_N: [N] scores of the other, in the order of the same prompts.
        draws, seed, level, strata: as in `bootstrap`.

    Raises:
        ConfigError: the two differ in length, or as in `bootstrap`.
        NonFiniteError: a score is nan or infinite.

    Example:
        >>> import torch
        >>> paired_difference(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]))
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    if a_N.shape != b_N.shape or a_N.dim() != 1:
        raise ConfigError(f"scores of shapes {tuple(a_N.shape)} and {tuple(b_N.shape)}", expected="two of one length")
    difference_N1 = (a_N.to(torch.float64) - b_N.to(torch.float64))[:, None]
    return bootstrap(difference_N1, draws=draws, seed=seed, level=level, strata=strata).column(0)


def wins(a_N: Tensor, b_N: Tensor) -> Tensor:
    """[N] 1 where a scores higher than b, 0 where lower, 0.5 where they tie; the mean is a's win rate.

    Example:
        >>> import torch
        >>> wins(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 5.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * torch.sign(a_N.to(torch.float64) - b_N.to(torch.float64))


def resamples(blocks: Sequence[int], *, draws: int, seed: int, size: int | None = None) -> Iterator[Tensor]:
    """[D, N] how often each row is drawn, some draws at a time; arguments as in `bootstrap`, `blocks` its strata."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // sum(blocks))
    for start in range(0, draws, step):
        yield _counts(blocks, min(step, draws - start), generator, size)


def _counts(blocks: Sequence[int], draws: int, generator: torch.Generator, size: int | None) -> Tensor:
    """[D, N] one multinomial per block, blocks in proportion where draws are smaller."""
    parts = []
    for rows in blocks:
        drawn = rows if size is None else max(1, round(size * rows / sum(blocks)))
        picks_DN = torch.randint(rows, (draws, drawn), generator=generator)
        ones_DN = torch.ones((), dtype=torch.float64).expand(draws, drawn)
        parts.append(torch.zeros(draws, rows, dtype=torch.float64).scatter_add_(1, picks_DN, ones_DN))
    return torch.cat(parts, 1)


def _check(scores_NM: Tensor, known_NM: Tensor, blocks: list[int], draws: int, level: float, size: int | None) -> None:
    if scores_NM.dim() != 2 or not len(scores_NM):
        raise ConfigError(f"scores of shape {tuple(scores_NM.shape)}", expected="[prompts, columns], at least one row")
    if sum(blocks) != len(scores_NM) or min(blocks) < 1:
        raise ConfigError(f"blocks of {blocks} rows", expected=f"positive lengths that add up to {len(scores_NM)}")
    for name, value in (("draws", draws), ("size", size)):
        if value is not None and value < 1:
            raise ConfigError(f"{value}", where=name, expected="at least 1")
    if not 0 < level < 1:
        raise ConfigError(f"level {level}", where="level", expected="between 0 and 1")
    if not bool(torch.isfinite(scores_NM).all()):
        row = int((~torch.isfinite(scores_NM)).any(1).nonzero()[0])
        raise NonFiniteError("a score is not a finite number", where=f"row {row}")
    if not bool(known_NM.any(0).all()):
        raise DataError("no score at all", where=f"column {int((~known_NM.any(0)).nonzero()[0])}")
