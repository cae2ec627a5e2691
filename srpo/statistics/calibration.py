"""Quality of the model's confidence: area under the ROC curve, Brier score, calibration error, a fitted link.

Scores are p(revision ≻ draft) by Eq. 9 or 14, which may leave [0, 1]. Labels are 1 where the revision really is better.

Axes: N scored pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo.errors import DataError


def auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the area under the ROC curve: the probability that a pair labelled 1 outscores one labelled 0, ties half.

    Raises:
        DataError: all labels are equal.

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
    return (ranks - right * (right + 1) / 2) / (right * wrong)  # U statistic of Mann and Whitney


def brier(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the Brier score: mean squared difference between scores, clipped to [0, 1], and labels (0 or 1)."""
    return float((_clipped(scores) - torch.tensor(list(labels), dtype=torch.float64)).square().mean())


@dataclass(frozen=True)
class Bin:
    """One row of a reliability table: the pairs whose score lies in one range.

    Attributes:
        low, high: ends of the range of scores; `low` itself is excluded unless it is 0.
        n: number of pairs in the bin.
        score: mean score, clipped to [0, 1].
        share: share of pairs with label 1.
    """

    low: float
    high: float
    n: int
    score: float
    share: float


def reliability(scores: Sequence[float], labels: Sequence[int], bins: int = 10) -> list[Bin]:
    """Returns a reliability table: pairs grouped by score, clipped to [0, 1], into `bins` ranges of equal width.

    Empty ranges are left out. Labels are 1 where the revision really is better, else 0.
    """
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
    """Returns the expected calibration error of a reliability table: mean |score − share|, weighted by pairs."""
    return sum(each.n * abs(each.score - each.share) for each in table) / sum(each.n for each in table)


def fit_temperature(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Returns the T in [1e-3, 1e3] at which probabilities σ((score − ½) / T) make the labels likeliest.

    A score of ½ stays ½, and the order of the scores remains. The log-likelihood is concave in 1/T, so bisection finds
    the one zero of its slope. Scores that separate the labels would drive T to 0, uninformative scores to infinity.
    """
    margin_N = torch.tensor(list(scores), dtype=torch.float64) - 0.5
    labels_N = torch.tensor(list(labels), dtype=torch.float64)
    low, high = 1e-3, 1e3  # ends of the search for 1/T
    for _ in range(100):
        middle = (low * high) ** 0.5
        slope = float((margin_N * (labels_N - (middle * margin_N).sigmoid())).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return 1 / middle


def linked(scores: Sequence[float], temperature: float) -> list[float]:
    """Returns each score as a probability in (0, 1): σ((score − ½) / T), T being `temperature`."""
    values: list[float] = ((torch.tensor(list(scores), dtype=torch.float64) - 0.5) / temperature).sigmoid().tolist()
    return values


def _clipped(scores: Sequence[float]) -> Tensor:
    return torch.tensor(list(scores), dtype=torch.float64).clamp(0, 1)
