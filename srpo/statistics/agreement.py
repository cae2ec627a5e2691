"""Reliability of a judge as pure functions of its verdicts: shares, differences, flips, position bias, Cohen's κ.

A verdict is 1 where the first of two answers is better, ½ for a tie, 0 where the second is better, and nan without a
readable verdict. Every function leaves nan out and reports the number of verdicts that remain.

Intervals are percentile bootstraps over prompts: verdicts on one prompt are drawn together, because two pairs of
answers to one prompt are not two prompts. Resampling sees no spread in a share of exactly 0 or 1; its interval is the
exact binomial bound over prompts. Twenty prompts without a flip, for example, only show that fewer than 17 % flip.

Axes: N verdicts, C prompts, M sums, D bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.statistics.bootstrap import DRAWS, LEVEL, ends_of, resamples

SCORES = (0.0, 0.5, 1.0)
NAN = float("nan")


class Measure(NamedTuple):
    """A value with the ends of its 95 % interval and the number of verdicts (`of`); nan without any verdict."""

    value: float
    low: float
    high: float
    of: int


Clusters = Sequence[Hashable] | None


def scores_tensor(scores: Sequence[float | None]) -> Tensor:
    """Returns N scores as a float64 tensor [N], nan where a score is None."""
    return torch.tensor([NAN if score is None else score for score in scores], dtype=torch.float64)


def share(values_N: Tensor, prompts: Clusters = None, *, draws: int = DRAWS, seed: int = 0) -> Measure:
    """Returns the mean of the values that are not nan, with a bootstrap interval over prompts.

    The mean is a share for zeros and ones, an accuracy with ties as half for verdicts.

    Args:
        values_N: [N] numbers in [0, 1], or nan.
        prompts: the prompt of each value; None if all prompts differ.
        draws, seed: number of bootstrap draws, and their seed.

    Raises:
        ConfigError: the numbers of prompts and values differ, or `draws` is below 1.

    Example:
        >>> import torch
        >>> share(torch.tensor([1.0, 0.0, float("nan"), 1.0]), draws=2000).value
        0.6666666666666666
        >>> round(share(torch.zeros(20)).high, 3)
        0.168
    """
    known = ~values_N.isnan()
    sums_CM = _sums([values_N.nan_to_num(0.0), known], prompts)
    measured = _measure(sums_CM, lambda totals_DM: totals_DM[:, 0] / totals_DM[:, 1], int(known.sum()), draws, seed)
    if measured.of and measured.value in (0.0, 1.0):
        edge = ((1 - LEVEL) / 2) ** (1 / int((sums_CM[:, 1] > 0).sum()))  # exact bound of Clopper and Pearson (1934)
        return measured._replace(low=edge) if measured.value else measured._replace(high=1 - edge)
    return measured


def difference(a_N: Tensor, b_N: Tensor, prompts: Clusters = None, *, draws: int = DRAWS, seed: int = 0) -> Measure:
    """Returns mean(`a_N`) − mean(`b_N`), nan left out of each, with an interval from shared bootstrap draws.

    Args:
        a_N, b_N: [N] numbers of the same rows.
        prompts: the prompt of each row; None if all differ.
        draws, seed: number of bootstrap draws, and their seed.
    """
    known = [~a_N.isnan(), ~b_N.isnan()]
    sums_CM = _sums([a_N.nan_to_num(0.0), known[0], b_N.nan_to_num(0.0), known[1]], prompts)

    def gap(totals_DM: Tensor) -> Tensor:
        return totals_DM[:, 0] / totals_DM[:, 1] - totals_DM[:, 2] / totals_DM[:, 3]

    return _measure(sums_CM, gap, min(int(each.sum()) for each in known), draws, seed)


def flips(one_N: Tensor, other_N: Tensor) -> Tensor:
    """Returns 1 where two verdicts on the same pair differ, 0 where they are equal, nan where one of them is nan; [N].

    For verdicts in the two orders of showing, the mean is the flip rate; for two runs, the judge's disagreement
    with itself.

    Example:
        >>> import torch
        >>> flips(torch.tensor([1.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, float("nan")])).tolist()
        [0.0, 1.0, nan]
    """
    differ_N = (one_N != other_N).to(torch.float64)
    return differ_N.masked_fill(one_N.isnan() | other_N.isnan(), NAN)


def for_first_shown(ahead_N: Tensor, behind_N: Tensor) -> Tensor:
    """Returns the share of a pair's two verdicts that favour the answer shown first, [N]; ½ without a position bias.

    Args:
        ahead_N: [N] verdicts with the first answer shown first: 1 where the first answer is better.
        behind_N: [N] verdicts with the second answer shown first, also 1 where the first answer is better.
    """
    return (ahead_N + 1 - behind_N) / 2


def only_where(values_N: Tensor, chosen_N: Tensor) -> Tensor:
    """Returns the values, [N], where `chosen_N` is true, and nan elsewhere."""
    return values_N.to(torch.float64).masked_fill(~chosen_N, NAN)


def kappa(one_N: Tensor, other_N: Tensor, prompts: Clusters = None, *, draws: int = DRAWS, seed: int = 0) -> Measure:
    """Returns Cohen's κ of two judges' verdicts (1, ½, 0) on N pairs, with its interval: agreement beyond chance.

    κ is 1 for full agreement, 0 for agreement by chance at each judge's frequencies of verdicts, below 0 for less. It
    is nan if both judges always give one and the same verdict. `prompts` has the prompt of each pair.

    Example:
        >>> import torch
        >>> kappa(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]), draws=100).value
        0.5
    """
    cells = [(one_N == a) & (other_N == b) for a in SCORES for b in SCORES]
    sums_CM = _sums(cells, prompts)

    def beyond_chance(totals_DM: Tensor) -> Tensor:
        table_D33 = totals_DM.reshape(-1, 3, 3) / totals_DM.sum(1)[:, None, None]
        agree_D = table_D33.diagonal(dim1=1, dim2=2).sum(1)
        chance_D = (table_D33.sum(1) * table_D33.sum(2)).sum(1)
        return (agree_D - chance_D) / (1 - chance_D)  # Cohen (1960)

    return _measure(sums_CM, beyond_chance, int(sums_CM.sum()), draws, seed)


def _sums(columns: Sequence[Tensor], prompts: Clusters) -> Tensor:
    """[C, M] sums of each of M columns over the rows of each of C prompts; None makes each row a prompt."""
    columns_NM = torch.stack([column.to(torch.float64) for column in columns], 1)
    if prompts is None:
        return columns_NM
    if len(prompts) != len(columns_NM):
        raise ConfigError(f"{len(prompts)} prompts for {len(columns_NM)} verdicts", expected="one for each")
    places: dict[Hashable, int] = {}
    rows_N = torch.tensor([places.setdefault(prompt, len(places)) for prompt in prompts], dtype=torch.long)
    return torch.zeros(len(places), columns_NM.shape[1], dtype=torch.float64).index_add_(0, rows_N, columns_NM)


def _measure(sums_CM: Tensor, statistic: Callable[[Tensor], Tensor], count: int, draws: int, seed: int) -> Measure:
    """The statistic of the sums over all prompts, with a bootstrap interval over prompts; nan draws are left out.

    `statistic` maps [D, M] sums to [D] values; `count` is the number of verdicts in the result.
    """
    if draws < 1:
        raise ConfigError(f"{draws}", where="draws", expected="1 or more")
    if not count:
        return Measure(NAN, NAN, NAN, 0)
    value = float(statistic(sums_CM.sum(0)[None])[0])
    found_D = torch.cat(
        [statistic(counts_DC @ sums_CM) for counts_DC in resamples([len(sums_CM)], draws=draws, seed=seed)]
    )
    low, high = torch.nanquantile(found_D, ends_of(LEVEL)).tolist()
    return Measure(value, low, high, count)
