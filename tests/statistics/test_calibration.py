"""Calibration by numbers worked out by hand, and against plain loops."""

from __future__ import annotations

import math
import random

import pytest

from srpo.errors import DataError
from srpo.statistics.calibration import auc, brier, calibration_error, fit_temperature, linked, reliability


def test_auc_by_hand_and_by_counting_pairs() -> None:
    assert auc([0.9, 0.8, 0.1], [1, 0, 0]) == 1
    assert auc([0.1, 0.8, 0.9], [1, 0, 0]) == 0
    assert auc([0.5, 0.5], [1, 0]) == 0.5
    rng = random.Random(0)
    scores = [rng.randrange(6) / 3 - 0.5 for _ in range(80)]  # with ties, and outside [0, 1]
    labels = [int(rng.random() < 0.3 + 0.2 * score) for score in scores]
    right = [s for s, y in zip(scores, labels, strict=True) if y]
    wrong = [s for s, y in zip(scores, labels, strict=True) if not y]
    counted = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))
    assert auc(scores, labels) == pytest.approx(counted, abs=1e-12)
    assert auc([-s for s in scores], labels) == pytest.approx(1 - counted, abs=1e-12)
    with pytest.raises(DataError, match="all labels are alike"):
        auc([0.1, 0.9], [1, 1])


def test_brier_by_hand() -> None:
    assert brier([0.8, 0.3], [1, 0]) == pytest.approx((0.04 + 0.09) / 2)
    assert brier([1.7, -0.4], [1, 1]) == pytest.approx((0 + 1) / 2)  # clipped
    assert brier([0.5] * 4, [0, 1, 1, 1]) == 0.25


def test_the_reliability_table_by_hand() -> None:
    table = reliability([-0.2, 0.0, 0.1, 0.15, 0.55, 0.6, 0.95, 1.3], [0, 0, 1, 0, 1, 1, 1, 1])
    found = [(b.low, b.high, b.n, round(b.score, 6), round(b.share, 6)) for b in table]
    assert found == [
        (0.0, 0.1, 3, 0.033333, 0.333333),
        (0.1, 0.2, 1, 0.15, 0.0),
        (0.5, 0.6, 2, 0.575, 1.0),
        (0.9, 1.0, 2, 0.975, 1.0),
    ]
    expected = (3 * 0.3 + 1 * 0.15 + 2 * 0.425 + 2 * 0.025) / 8
    assert calibration_error(table) == pytest.approx(expected, abs=1e-12)


def test_a_known_temperature_is_recovered() -> None:
    rng = random.Random(1)
    scores = [rng.uniform(-1, 2) for _ in range(20_000)]
    labels = [int(rng.random() < 1 / (1 + math.exp(-(s - 0.5) / 0.2))) for s in scores]
    fitted = fit_temperature(scores, labels)
    assert fitted == pytest.approx(0.2, rel=0.05)
    assert (
        calibration_error(reliability(linked(scores, fitted), labels))
        < 0.01
        < calibration_error(reliability(scores, labels))
    )

    # It is the most likely one: neighbours are less so.
    def surprise(temperature: float) -> float:
        pairs = zip(linked(scores, temperature), labels, strict=True)
        return -sum(math.log(p if y else 1 - p) for p, y in pairs)

    assert surprise(fitted) < min(surprise(fitted * 1.05), surprise(fitted / 1.05))


def test_temperatures_are_bounded() -> None:
    assert fit_temperature([0.2, 0.9], [0, 1]) == pytest.approx(1e-3, rel=1e-6)  # separated
    assert fit_temperature([0.2, 0.9], [1, 0]) == pytest.approx(1e3, rel=1e-6)  # the wrong way round
    assert linked([0.5], 0.3) == [0.5]
