"""Three ways to one number: the packed tree, the flat six in a padded batch, and one plain forward per sequence.

Float64 says that the algorithm is the same, float32 that nothing is lost on the way. Weights are large enough that one
wrong visibility bit moves a log-prob by far more than the bound; the controls at the end show it.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from srpo.model.packed import forest as forest_module
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import SERVED, WINDOW, build, exact_casts, forest_of, plain_logps, random_six

SHAPES = ["turn", "quote", "paper"]
WINDOWED = ["mistral, window", "gemma3, mixed windows"]


def model_of(name: str) -> Any:
    model_type, settings = SERVED[name]
    return build(model_type, **settings)


def gradients(model: nn.Module, logps_BK: Tensor) -> list[Tensor]:
    """Gradients of a sum in which every sequence has a weight of its own, signs mixed as an objective's are."""
    weights = torch.linspace(-1, 1.5, logps_BK.numel(), dtype=logps_BK.dtype).view_as(logps_BK)
    return list(torch.autograd.grad((weights * logps_BK).sum(), list(model.parameters())))


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest relative distance of two gradients, weight by weight."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SERVED)
def test_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name).double()
    exact_casts(model, monkeypatch)
    for shape in SHAPES:
        trees = forest_of(shape)
        assert max(map(len, trees)) > 2 * WINDOW
        plain = plain_logps(model, trees)
        for backend in ("path", "flat"):
            logps = sequence_logps(model, trees, backend)
            assert (logps - plain).abs().max() < 1e-9
            assert logps.dtype == torch.float64
        assert apart(gradients(model, sequence_logps(model, trees, "path")), gradients(model, plain)) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SERVED)
def test_float32(name: str, shape: str) -> None:
    model = model_of(name)
    trees = forest_of(shape, pairs=4)
    plain = plain_logps(model, trees)
    expected = gradients(model, plain)
    for backend in ("path", "flat"):
        logps = sequence_logps(model, trees, backend)
        assert (logps - plain).abs().max() < 1e-4
        assert apart(gradients(model, logps), expected) < 1e-5
        if backend == "path":
            assert torch.equal(sequence_logps(model, trees, "auto"), logps)


LLAMA, GEMMA = build("llama"), model_of("gemma3, mixed windows")
lengths = st.tuples(st.integers(1, 20), st.integers(1, 10), st.integers(1, 10))


@settings(max_examples=25, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=4), st.sampled_from(SHAPES), st.integers(0, 99))
def test_any_lengths_in_one_forest(sizes: list[tuple[int, int, int]], shape: str, seed: int) -> None:
    trees = [PrefixTree.pack(random_six(seed + n, shape, prompt=x, w=w, l=l)) for n, (x, w, l) in enumerate(sizes)]
    with torch.no_grad():
        for model in (LLAMA, GEMMA):
            assert (sequence_logps(model, trees, "path") - plain_logps(model, trees)).abs().max() < 1e-4


tokens = st.lists(st.integers(3, 5), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(tokens, tokens), min_size=6, max_size=6))
def test_answers_that_coincide_or_extend_each_other(six: list[tuple[list[int], list[int]]]) -> None:
    # Of three letters: answers and contexts run into one another in every way, and parents are shared.
    trees = [PrefixTree.pack(six), PrefixTree.pack(six[::-1])]
    with torch.no_grad():
        assert (sequence_logps(GEMMA, trees, "path") - plain_logps(GEMMA, trees)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_padding_unlike_chains_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    trees = forest_of("turn", pairs=4)
    plain = plain_logps(model, trees)
    expected = gradients(model, plain)
    groups = set()
    for constants in ((-1, 0.0), (0, 0.0), (10**9, 1.0)):
        for constant, value in zip(("FREE_PADDING", "PADDING_SHARE"), constants, strict=True):
            monkeypatch.setattr(forest_module, constant, value)
        groups.add(len(Forest.plant(trees).groups))
        logps = sequence_logps(model, trees, "path")
        assert (logps - plain).abs().max() < 1e-4
        found = gradients(model, logps)
        assert all(torch.isfinite(gradient).all() for gradient in found)
        assert apart(found, expected) < 1e-5
    assert len(groups) >= 2  # the constants do change the padding


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_matters(name: str) -> None:
    # Otherwise equality under a window would say nothing about windows.
    narrow, wide = model_of(name), model_of(name)
    wide.config.sliding_window = 4096
    for layer in wide.model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 4096
    trees = forest_of()
    with torch.no_grad():
        off = (sequence_logps(narrow, trees, "path") - sequence_logps(wide, trees, "path")).abs().max()
    assert off > 1e-2


def test_drafts_alone() -> None:
    six = [random_six(seed) for seed in range(3)]
    whole, drafts = ([PrefixTree.pack(each[:n]) for each in six] for n in (6, 2))
    with torch.no_grad():
        for backend in ("path", "flat"):
            part = sequence_logps(LLAMA, drafts, backend)
            assert part.shape == (3, 2)
            assert (part - sequence_logps(LLAMA, whole, backend)[:, :2]).abs().max() < 1e-4


def test_a_planted_forest_can_be_scored_again() -> None:
    forest = Forest.plant(forest_of())
    with torch.no_grad():
        for name in ("llama", *WINDOWED, "llama"):
            model = model_of(name)
            assert (sequence_logps(model, forest, "path") - plain_logps(model, forest.trees)).abs().max() < 1e-4


# ---------------------------------------------------------------------- controls


def off_by(name: str, forest: Forest) -> float:
    """What a corrupted forest costs, in nats; the trees in it are untouched, so the self-check passes."""
    model, plain = plain_of(name)
    with torch.no_grad():
        return float((sequence_logps(model, forest, "path") - plain).abs().max())


@functools.cache
def plain_of(name: str) -> tuple[Any, Tensor]:
    """A model, and its plain log-probs of `forest_of()`; every control compares with them."""
    model = model_of(name)
    with torch.no_grad():
        return model, plain_logps(model, forest_of())


def branch(forest: Forest) -> tuple[Any, int, int]:
    """A group of chains that hang from others, the depth of the first one's attachment, and a node beside its path."""
    group = next(group for group in forest.groups if not group.causal)
    at = int(group.depth_CQ[0, 0]) - 1
    return group, at, int(group.keys_CK[0, at]) + 1  # preorder: the attachment's first child, another branch


@pytest.mark.parametrize("name", ["llama", *WINDOWED])
class TestControls:
    def test_untouched(self, name: str) -> None:
        assert off_by(name, Forest.plant(forest_of())) < 1e-4

    def test_one_key_of_a_sibling_branch(self, name: str) -> None:
        forest = Forest.plant(forest_of())
        group, at, sibling = branch(forest)
        assert sibling not in group.keys_CK[0]
        group.keys_CK[0, at] = sibling
        assert off_by(name, forest) > 1e-3

    @pytest.mark.parametrize("value", [True, False])
    def test_one_flipped_bit(self, name: str, value: bool) -> None:
        forest = Forest.plant(forest_of())
        group, at, _ = branch(forest)
        for window in (None, WINDOW):
            mask_QK = group.mask(window)[0, 0]
            key = at + 2 if value else at  # the first query sees the token after itself, or its parent no longer
            assert mask_QK[0, key] != value
            mask_QK[0, key] = value
        assert off_by(name, forest) > 1e-3

    def test_positions_of_one_branch_shifted_by_one(self, name: str) -> None:
        forest = Forest.plant(forest_of())
        group, _, _ = branch(forest)
        forest.positions_1S[0, group.queries_CQ[0].unique()] += 1
        assert off_by(name, forest) > 1e-3

    def test_positions_that_run_on(self, name: str) -> None:
        forest = Forest.plant(forest_of())
        forest.positions_1S[0] = torch.arange(forest.ids_1S.shape[1])
        assert off_by(name, forest) > 1e-3

    def test_scored_at_the_token_before_instead_of_the_parent(self, name: str) -> None:
        forest, before = Forest.plant(forest_of()), []
        offset = 0
        for tree in forest.trees:
            for answer in tree.answers:
                before += [offset + node - 1 for node in tree.path(answer.leaf)[answer.context :]]
            offset += len(tree)
        parents = forest.parents_P[forest.row_T].tolist()
        assert sum(a != b for a, b in zip(before, parents, strict=True)) >= len(forest.trees)
        shifted = copy.copy(forest)
        shifted.parents_P, shifted.row_T = torch.tensor(before), torch.arange(len(before))
        assert off_by(name, shifted) > 1e-3

    def test_a_tree_taken_for_a_plain_row(self, name: str) -> None:
        forest = Forest.plant(forest_of())
        model, plain = plain_of(name)
        with torch.no_grad():
            rows = model(input_ids=forest.ids_1S, use_cache=False).logits[0].double().log_softmax(-1)
            logp_T = rows[forest.parents_P[forest.row_T], forest.token_T]
            wrong = torch.zeros(plain.numel(), dtype=torch.float64).index_add(0, forest.owner_T, logp_T)
        assert (wrong.view_as(plain) - plain).abs().max() > 1
