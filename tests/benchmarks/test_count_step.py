"""The counts of a step, against numbers by hand."""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from benchmarks.card import SHAPE, VOCABULARY
from benchmarks.count_step import Counts, counted, row_of
from benchmarks.shapes import trees_of


def test_operators_by_hand() -> None:
    left, right = torch.ones(30, 4), torch.ones(4, 50)
    with Counts(words=50) as counts:
        product = left @ right
        product.view(50, 30)
        product.float()  # float32 already: no operator
        product.to(torch.bfloat16)
        product.add_(1.0)
        torch.zeros(10)
    assert counts.flops == 2 * 30 * 4 * 50
    assert dict(counts.bytes) == {"_to_copy": 1500 * (4 + 2), "add_": 1500 * (4 + 4), "zeros": 40}
    assert dict(counts.head) == {"_to_copy": 1500 * 6, "add_": 1500 * 8}
    assert counts.operators == 4


def test_a_step_of_the_large_shape_moves_less_than_10_gigabytes_in_the_head() -> None:
    """The head does not depend on the number of layers, so that one is enough."""
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 1}, vocab_size=VOCABULARY, tie_word_embeddings=True)
    trees = trees_of([(350, 40, 40)] * 8, "turn", instruction=16, vocabulary=VOCABULARY)
    rows = {way: row_of(counted(way, trees, config)) for way in ("srpo", "rows")}
    assert rows["srpo"]["head_GB"] < 10
    assert rows["rows"]["head_GB"] > 40  # control: logits of every position in float32
    assert 0 < rows["srpo"]["products_TFLOP"] < rows["rows"]["products_TFLOP"]
