"""Means of scores with percentile bootstrap intervals over prompts.

N prompts are drawn with replacement and averaged, many times; the interval holds the middle 95 % of the averages. All
columns share the same draws, so the interval of a difference is the interval of the column of differences, and the
part that two systems share on a prompt cancels.

The interval covers other prompts of the same kind, not other training runs. A column with equal scores on every prompt
(all right, all wrong) gets an interval of width zero.

A prompt without a score in a column (a judge without a verdict) is left out of that column's averages, in the data and
in every draw; it is neither a tie nor a loss.

Axes: N prompts, M columns, D bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError, NonFiniteError

DRAWS, LEVEL = 10_000, 0.95
CHUNK = 2**18  # counts in one chunk: 2 MiB, which fits into the processor's cache and is the fastest


class Interval(NamedTuple):
    """A mean with the low and high end of its confidence interval."""

    mean: float
    low: float
    high: float


class Intervals(NamedTuple):
    """Means of M columns with the ends of their confidence intervals: three [M] tensors, float64."""

    mean: Tensor
    low: Tensor
    high: Tensor

    def column(self, index: int) -> Interval:
        """Returns the mean and interval of one column."""
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
    """Returns the mean of each column with its percentile bootstrap interval over rows, all columns on the same draws.

    Args:
        scores_NM: [N, M] one row per prompt; any finite numbers.
        draws: number of resamples, ≥ 1.
        seed: seed of the resampling; the same seed and N give the same draws.
        level: nominal coverage of the interval, in (0, 1).
        size: number of prompts in a draw; None means N. Smaller draws give the wider interval of a smaller set.
        strata: lengths of consecutive blocks of rows, adding up to N; each block is resampled within itself. None
            makes all rows one block.
        known_NM: [N, M] False where a prompt has no score in a column; None if every prompt has one.

    Raises:
        ConfigError: there are no rows, or an argument is out of range.
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
    # One column at a time: torch.quantile refuses inputs of more than 2**24 numbers. A draw without any scored prompt
    # has a mean of nan, which the quantiles leave out.
    quantile = torch.quantile if complete else torch.nanquantile
    ends_M2 = [quantile(column_D, ends_of(level)) for column_D in means_DM.unbind(1)]
    low_M, high_M = torch.stack(ends_M2, 1) if ends_M2 else torch.empty(2, 0, dtype=torch.float64)
    return Intervals(scores_NM.sum(0) / weights_NM.sum(0), low_M, high_M)


def ends_of(level: float) -> Tensor:
    """Returns the quantiles at the ends of a central interval, [2]: 0.025 and 0.975 for the coverage `level` 0.95."""
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)


def resamples(blocks: Sequence[int], *, draws: int, seed: int, size: int | None = None) -> Iterator[Tensor]:
    """Yields bootstrap draws in chunks of D, as counts [D, N] of how often each of N rows occurs in each draw.

    Args:
        blocks: lengths of consecutive blocks of rows, adding up to N; each block is resampled from its own rows.
        draws: number of draws in all chunks together.
        seed: seed of the draws.
        size: rows per draw, shared by the blocks in proportion to their lengths; None means N.
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // sum(blocks))
    for start in range(0, draws, step):
        yield _counts(blocks, min(step, draws - start), generator, size)


def _counts(blocks: Sequence[int], draws: int, generator: torch.Generator, size: int | None) -> Tensor:
    """[D, N] counts of rows in bootstrap draws, block by block; the blocks share `size` rows in proportion."""
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
