"""How far an estimated probability can be trusted: area under the curve, Brier score, calibration, a fitted link.

Scores are p(revision ≻ draft) as Eq. 9 or 14 gives it, which may leave [0, 1]; labels are 1 where the revision really
was the better one. Torch alone.

Axes: N scored pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo.errors import DataError


def auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Probability that a right revision scores above a wrong one, ties counted half: area under the ROC curve.

    Raises:
        DataError: labels are all alike.

    Example:
        >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    scores_N, labels_N = torch.tensor(list(scores), dtype=torch.float64), torch.tensor(list(labels))
    right, wrong = int(labels_N.sum()), int((1 - labels_N).sum())
    if not right or not wrong:
        raise DataError("all labels are alike", expected="some revisions better and some worse than their draft")
    _, group_N, size_G = scores_N.unique(return_inverse=True, return_counts=True)
    mean_rank_G = size_G.cumsum(0) - (size_G - 1) / 2
    ranks = float(mean_rank_G[group_N][labels_N == 1].sum())
    return (ranks - right * (right + 1) / 2) / (right * wrong)  # Mann and Whitney's U


def brier(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Mean squared difference between the clipped score and the label; ¼ for always saying ½.

    Example:
        >>> brier([0.5, 1.2], [0, 1])
        0.125
    """
    return float((_clipped(scores) - torch.tensor(list(labels), dtype=torch.float64)).square().mean())


@dataclass(frozen=True)
class Bin:
    """One row of a reliability table.

    Attributes:
        low, high: scores of the bin, `low` excluded but for 0.
        n: pairs in it.
        score: their mean clipped score.
        share: how many of them were right.
    """

    low: float
    high: float
    n: int
    score: float
    share: float


def reliability(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> list[Bin]:
    """Pairs by clipped score in bins of equal width; empty ones are left out."""
    scores_N, labels_N = _clipped(scores), torch.tensor(list(labels), dtype=torch.float64)
    bin_N = (scores_N * bins).ceil().long().clamp(1, bins) - 1
    table = []
    for each in range(bins):
        inside_N = bin_N == each
        if n := int(inside_N.sum()):
            score, share = (float(values_N[inside_N].mean()) for values_N in (scores_N, labels_N))
            table.append(Bin(each / bins, (each + 1) / bins, n, score, share))
    return table


def calibration_error(table: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of score and share over the bins, weighted by their pairs."""
    return sum(each.n * abs(each.score - each.share) for each in table) / sum(each.n for each in table)


def fit_temperature(scores: Sequence[float], labels: Sequence[int]) -> float:
    """T of the link σ((score − ½) / T) that makes the labels most likely; it keeps ½ where it is, and the order.

    The log-likelihood is concave in 1/T, so its slope has one zero, which is found by halving. Scores that separate
    the labels would have T go to 0, and scores that say nothing to infinity: 1e-3 and 1e3 are the ends.
    """
    margin_N = torch.tensor(list(scores), dtype=torch.float64) - 0.5
    labels_N = torch.tensor(list(labels), dtype=torch.float64)
    low, high = 1e-3, 1e3  # of 1/T
    for _ in range(100):
        middle = (low * high) ** 0.5
        slope = float((margin_N * (labels_N - (middle * margin_N).sigmoid())).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 1 / middle


def linked(scores: Sequence[float], temperature: float) -> list[float]:
    """Probabilities in (0, 1): σ((score − ½) / T)."""
    values: list[float] = ((torch.tensor(list(scores), dtype=torch.float64) - 0.5) / temperature).sigmoid().tolist()
    return values


def _clipped(scores: Sequence[float]) -> Tensor:
    return torch.tensor(list(scores), dtype=torch.float64).clamp(0, 1)
