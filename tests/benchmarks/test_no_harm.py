"""The harm of the calibrated default: which differences count as missed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.no_harm import line


def scores(**right: int) -> dict[str, torch.Tensor]:
    """Scores of 200 prompts, the first `right` ones of each way right."""
    return {name: (torch.arange(200) < count).double() for name, count in right.items()}


@pytest.mark.parametrize(
    ("split", "found", "missed"),
    [
        ("in", scores(auto=100, draft=101, greedy=104), False),  # half a point, two points
        ("in", scores(auto=100, draft=104, greedy=90), True),
        ("in", scores(auto=100, draft=50, greedy=106), True),
        ("out", scores(auto=100, draft=50, greedy=150), False),  # the best choice binds in distribution alone
        ("out", scores(auto=100, draft=104, greedy=150), True),
    ],
)
def test_a_loss_beyond_its_bound_is_a_miss(split: str, found: dict[str, torch.Tensor], missed: bool) -> None:
    assert line(found, split).endswith(" MISS") == missed


def test_the_best_other_way_is_named() -> None:
    text = line(scores(auto=100, draft=50, vote=120, greedy=110), "in")
    assert text.startswith("auto 50.0, draft 25.0: +25.0 (")
    assert ", vote 60.0: -10.0 (" in text
