"""Significance of paired differences: sign-flip p-values, Holm's correction, smallest detectable difference.

Axes: N prompts, M columns of paired differences, D draws of signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.statistics.bootstrap import CHUNK, DRAWS

POWER = 0.8  # the conventional power: four in five experiments detect the true difference


def sign_flip_p(differences_NM: Tensor, *, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """Returns the two-sided p-value of each column's mean, under the hypothesis that two systems are exchangeable.

    Under that hypothesis each prompt's difference has either sign with probability ½. The signs are drawn `draws`
    times, the same for every column. p is the share of draws, the data counted as one draw, whose mean lies at least
    as far from 0 as that of the data. The test is exact; prompts with a difference of 0 do not change it.

    Args:
        differences_NM: [N, M] finite differences; 0 where a prompt has no difference.
        draws: number of sign draws, ≥ 1; no p-value is below 1 / (draws + 1).
        seed: seed of the draws.

    Raises:
        ConfigError: the shape is not [N, M] with N ≥ 1.

    Example:
        >>> import torch
        >>> [round(p, 2) for p in sign_flip_p(torch.tensor([[1.0, 1.0]] * 4 + [[1.0, -1.0]] * 4))]
        [0.01, 1.0]
    """
    if differences_NM.dim() != 2 or not len(differences_NM):
        raise ConfigError(f"differences of shape {tuple(differences_NM.shape)}", expected="[prompts, columns]")
    differences_NM = differences_NM.to(torch.float64)
    seen_M = differences_NM.sum(0).abs()
    slack_M = 1e-9 * differences_NM.abs().sum(0)  # the order of a sum changes its last bits
    generator = torch.Generator().manual_seed(seed)
    rows = len(differences_NM)
    as_far_M = torch.ones(differences_NM.shape[1], dtype=torch.float64)
    step = max(1, CHUNK // rows)
    for start in range(0, draws, step):
        coins_DN = torch.randint(2, (min(step, draws - start), rows), generator=generator)
        sums_DM = (2.0 * coins_DN.to(torch.float64) - 1) @ differences_NM
        as_far_M += (sums_DM.abs() >= seen_M - slack_M).sum(0)
    return [float(p) for p in as_far_M / (draws + 1)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for multiple tests by the method of Holm (1979), in the given order.

    Rejecting each hypothesis whose adjusted p-value is at most α keeps the probability of any false rejection below α,
    however the tests depend on each other.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, reached = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def smallest_detectable(differences_N: Tensor, *, level: float = 0.95, power: float = POWER) -> float:
    """Returns the smallest true mean difference that N prompts detect with probability `power`: (z + z') · s / √N.

    A normal approximation: s is the standard deviation of the paired differences, z the quantile of the two-sided
    `level`, z' that of `power`.

    Args:
        differences_N: [N] paired differences, N ≥ 2.

    Raises:
        ConfigError: fewer than two differences, or level or power outside (0, 1).

    Example:
        >>> import torch
        >>> round(smallest_detectable(torch.tensor([1.0, -1.0] * 50)), 3)
        0.282
    """
    if differences_N.dim() != 1 or len(differences_N) < 2:
        raise ConfigError(f"differences of shape {tuple(differences_N.shape)}", expected="at least two in a row")
    for name, value in (("level", level), ("power", power)):
        if not 0 < value < 1:
            raise ConfigError(f"{value}", where=name, expected="between 0 and 1")
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return z * float(differences_N.to(torch.float64).std()) / len(differences_N) ** 0.5
