"""Products of packed batches over those of padded rows, against a count by hand."""

from __future__ import annotations

import pytest

from benchmarks.prompts import products_to_trl
from srpo.sequences.tree import PrefixTree


def test_products_are_those_counted_by_hand() -> None:
    prompt, ask = [5, 6, 7], [9]
    six = [(prompt, [1, 2]), (prompt, [3])]
    six += [(prompt + draft + ask, answer) for draft in ([1, 2], [3]) for answer in ([1, 2], [3])]
    trees = [PrefixTree.pack(six), PrefixTree.pack(six)]
    # 3 of the prompt, drafts of 2 and 1, an instruction after each and answers of 2 and 1 after each instruction
    tokens = 3 + (2 + 1) + 2 * (1 + 2 + 1)
    scored = 2 + 2 * 2  # the last of the prompt, the first of the longer draft; the same after each instruction
    rows = 2 * (3 + 2)  # two rows a pair, padded to the longer
    assert products_to_trl(trees, [[0], [1]], 10, 1) == pytest.approx((10 * tokens + scored) / (11 * rows))
    # In one batch, two pairs of one prompt are one tree.
    assert products_to_trl(trees, [[0, 1]], 10, 1) == pytest.approx((10 * tokens + scored) / (11 * 2 * rows))
