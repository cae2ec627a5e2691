"""The columns task: answers by plain arithmetic, the prompts of the carry task, and mistakes that a judge sees."""

from __future__ import annotations

import torch

from benchmarks.tasks.columns import column_sums, columns
from srpo.tasks.carry import BaseConfig, sums, train_base, with_mistakes


def test_answers_are_columns_added_without_carrying() -> None:
    rows = column_sums(200, "in", digits=4, seed=3) + column_sums(200, "out", digits=4, seed=3)
    for row in rows:
        a, b = row["prompt"].rstrip("=").split("+")
        assert row["gold"] == "0" + "".join(str((int(x) + int(y)) % 10) for x, y in zip(a, b, strict=True))
    carried = sums(200, "in", digits=4, seed=3)
    assert [row["prompt"] for row in carried] == [row["prompt"] for row in rows[:200]]
    assert [row["gold"] for row in carried] != [row["gold"] for row in rows[:200]]


def test_a_mistake_adds_one() -> None:
    a, b = torch.tensor([[2, 7, 9]]), torch.tensor([[5, 8, 0]])
    right = columns(a, b)
    assert right.tolist() == [[0, 7, 5, 9]]
    wrong = with_mistakes(right, a, b, 1.0, torch.Generator())
    assert wrong.tolist() == [[1, 8, 6, 9]]  # all but the last


def test_a_base_is_trained_on_them() -> None:
    config = BaseConfig(digits=2, hidden=24, layers=1, heads=2, steps=2, batch=8)
    losses = {name: [loss for _, loss, _ in train_base(config, right)] for name, right in (("+", None), ("|", columns))}
    assert losses["+"][0] != losses["|"][0]
