"""The ways a tree of tokens goes wrong in transformers without a word, each beside what this package does instead.

Every test first falls into its trap with the model's own forward, and finds it nats away from plain rows: that is the
control. Then it scores the same trees through a back-end, which is exact or refuses.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.errors import BackendError
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.layouts import LAYOUTS
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import REFUSED, SERVED, WINDOW, build, forest_of, plain_logps, random_six

EXACT, NATS = 1e-4, 0.5  # what a right layout is off by at most, and a wrong one at least


def model_of(name: str, attention: str = "sdpa") -> Any:
    model_type, settings = (SERVED | {name: case[:2] for name, case in REFUSED.items()})[name]
    model = build(model_type, **settings)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return model


def one_tree(shape: str = "turn") -> Forest:
    return Forest.plant(forest_of(shape, pairs=1))


def mask_of(forest: Forest, dtype: torch.dtype = torch.float32) -> Tensor:
    """[1, 1, S, S] who sees whom: each token its path. As numbers to add, or as booleans."""
    (tree,) = forest.trees
    seen_SS = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node in range(len(tree)):
        seen_SS[node, tree.path(node)] = True
    if dtype is torch.bool:
        return seen_SS[None, None]
    return torch.zeros(seen_SS.shape).masked_fill(~seen_SS, torch.finfo(dtype).min)[None, None]


@torch.no_grad()
def naive_off(model: nn.Module, forest: Forest, **inputs: Any) -> float:
    """How far the six are from plain rows, in nats, when the tree goes through the model's own forward."""
    logits_1SV = model(input_ids=forest.ids_1S, use_cache=False, **inputs).logits
    return off_by(model, forest, logits_1SV)


def off_by(model: nn.Module, forest: Forest, logits_1SV: Tensor) -> float:
    logp_SV = logits_1SV[0].double().log_softmax(-1)
    plain_BK = plain_logps(model, forest.trees)
    sums = torch.zeros(plain_BK.numel(), dtype=torch.float64)
    sums.index_add_(0, forest.owner_T, logp_SV[forest.parents_P[forest.row_T], forest.token_T])
    return float((sums.view_as(plain_BK) - plain_BK).abs().max().detach())


@torch.no_grad()
def ours_off(model: nn.Module, forest: Forest, backend: str = "path") -> float:
    return float((sequence_logps(model, forest, backend) - plain_logps(model, forest.trees)).abs().max())


def test_a_mask_of_booleans_under_eager_attention() -> None:
    model, forest = model_of("llama", "eager"), one_tree()
    positions = {"position_ids": forest.positions_1S}
    assert naive_off(model, forest, attention_mask=mask_of(forest, torch.bool), **positions) > NATS
    assert naive_off(model, forest, attention_mask=mask_of(forest), **positions) < EXACT
    assert ours_off(model, forest) < EXACT


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_without_positions(attention: str) -> None:
    model, forest = model_of("llama", attention), one_tree()
    assert naive_off(model, forest, attention_mask=mask_of(forest)) > NATS
    assert ours_off(model, forest) < EXACT


def test_positions_without_a_mask_are_taken_for_packed_rows() -> None:
    model, forest = model_of("llama"), one_tree()
    assert naive_off(model, forest, position_ids=forest.positions_1S) > NATS
    assert ours_off(model, forest) < EXACT


def test_positions_under_a_mask_of_ones() -> None:
    model, forest = model_of("llama"), one_tree()
    ones = torch.ones_like(forest.ids_1S)
    assert naive_off(model, forest, attention_mask=ones, position_ids=forest.positions_1S) > NATS
    assert ours_off(model, forest) < EXACT


@pytest.mark.parametrize("name", ["mistral, window", "gemma3, mixed windows"])
def test_one_mask_for_layers_with_windows(name: str) -> None:
    model, forest = model_of(name), one_tree()
    assert max(forest.positions_1S[0]) > WINDOW
    assert naive_off(model, forest, attention_mask=mask_of(forest), position_ids=forest.positions_1S) > NATS
    assert ours_off(model, forest) < EXACT


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_a_mask_on_layers_that_carry_a_state(name: str) -> None:
    model, forest = model_of(name), one_tree()
    assert naive_off(model, forest, attention_mask=mask_of(forest), position_ids=forest.positions_1S) > NATS
    with torch.no_grad(), pytest.raises(BackendError, match="path attention cannot serve this model"):
        sequence_logps(model, forest, "path")
    assert ours_off(model, forest, "auto") < EXACT  # flat
    assert ours_off(model, forest, "cache") < EXACT


@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_a_cache_under_activation_checkpointing(name: str) -> None:
    model, forest = model_of(name), one_tree()
    plain = plain_logps(model, forest.trees)
    model.train()  # no dropout in these models: training mode alone changes no number
    assert (plain_logps(model, forest.trees) - plain).abs().max() < EXACT
    model.gradient_checkpointing_enable({"use_reentrant": False})

    with torch.no_grad():  # the walk unguarded: caches stay empty, and answers are read without their prompts
        assert (LAYOUTS["cache"](model, forest) - plain).abs().max() > NATS
    for _ in range(2):  # the second time the back-end may be known to serve
        with torch.no_grad(), pytest.raises(BackendError, match="layers in training mode drop their cache"):
            sequence_logps(model, forest, "cache")
        model.eval()
        assert ours_off(model, forest, "cache") < EXACT
        model.train()


NAIVE_FLEX = """
import torch
from tests.equivalence.test_traps import mask_of, model_of, one_tree
model, forest = model_of("llama", "flex_attention"), one_tree()
with torch.no_grad():
    model(input_ids=forest.ids_1S, attention_mask=mask_of(forest), position_ids=forest.positions_1S, use_cache=False)
print("went through")
"""


def test_a_mask_of_blocks_under_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    # Plain Python instead of a compiled kernel, which takes half a minute to make.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    assert ours_off(model_of("llama"), one_tree(), "flex") < EXACT


@pytest.mark.sweep
def test_control_a_mask_of_numbers_under_flex_attention() -> None:
    # Of torch 2.13's kernel for CPUs: after a minute of compiling, the interpreter ends with a segmentation fault.
    done = subprocess.run([sys.executable, "-c", NAIVE_FLEX], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "went through" not in done.stdout


def test_a_label_dropped_where_branches_part() -> None:
    # The token before two answers is scored once for each; most code that shifts labels by one has room for one.
    model, forest = model_of("llama"), one_tree()
    once: dict[int, int] = {}
    for parent, token in zip(forest.parents_P[forest.row_T].tolist(), forest.token_T.tolist(), strict=True):
        once.setdefault(parent, token)
    (tree,) = forest.trees
    with torch.no_grad():
        logits_1SV = model(
            input_ids=forest.ids_1S, attention_mask=mask_of(forest), position_ids=forest.positions_1S, use_cache=False
        ).logits
    assert off_by(model, forest, logits_1SV) < EXACT
    logp_SV = logits_1SV[0].double().log_softmax(-1)
    dropped = torch.zeros(6, dtype=torch.float64)
    for owner, parent, token in zip(
        forest.owner_T.tolist(), forest.parents_P[forest.row_T].tolist(), forest.token_T.tolist(), strict=True
    ):
        dropped[owner] += logp_SV[parent, token] if once[parent] == token else 0.0
    assert (dropped - plain_logps(model, [tree])[0]).abs().max() > NATS
    assert ours_off(model, forest) < EXACT


def test_two_layouts_differ_in_bfloat16_and_one_layout_does_not() -> None:
    # A policy scored packed against a reference scored flat would begin with log-ratios that are not zero.
    model = build("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=4, head_dim=32).bfloat16()
    trees = [PrefixTree.pack(random_six(seed, prompt=20, w=12, l=15)) for seed in range(4)]
    with torch.no_grad():
        packed, flat = (sequence_logps(model, trees, backend) for backend in ("path", "flat"))
        again = sequence_logps(model, trees, "path")
    assert (packed - flat).abs().max() > 1e-3
    assert torch.equal(packed, again)
