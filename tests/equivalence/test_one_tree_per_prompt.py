"""Pairs of one prompt in one tree: the log-probs and gradients of a tree per pair, from fewer tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.layouts import LAYOUTS
from srpo.sequences.tree import PrefixTree
from tests.conftest import make_tiny_llama
from tests.model.zoo import SERVED, build, exact_casts, forest_of, plain_logps


def pairs_of_two_prompts() -> list[PrefixTree]:
    """Four pairs of three answers to one prompt, two of them equal, and a pair of another prompt between them."""
    prompt, say = [5, 9, 7, 7, 3, 12, 4], [20, 21, 22]
    answers = [[30, 31, 32, 33, 2], [30, 31, 40, 2], [50, 51, 2]]

    def pair(w: list[int], l: list[int]) -> PrefixTree:
        drafts = [(prompt, w), (prompt, l)]
        return PrefixTree.pack(drafts + [(prompt + d + say, a) for d in (w, l) for a in (w, l)])

    other = forest_of(pairs=1)
    a, b, c = answers
    return [pair(a, b), *other, pair(a, c), pair(b, c), pair(a, b)]


def gradient(model: nn.Module, logps_BK: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1.5, logps_BK.numel(), dtype=logps_BK.dtype).view_as(logps_BK)
    grads = torch.autograd.grad((weights * logps_BK).sum(), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads]).double()


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def scored_alone(model: nn.Module, trees: list[PrefixTree], backend: str = "path") -> Tensor:
    """[B, K], each pair in a forest of its own."""
    return torch.cat([LAYOUTS[backend](model, Forest.plant([tree])) for tree in trees])


@pytest.mark.parametrize("name", ["llama", "gemma3, mixed windows"])
def test_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, settings = SERVED[name]
    model: Any = build(kind, **settings).double()
    exact_casts(model, monkeypatch)
    trees = pairs_of_two_prompts()
    forest = Forest.plant(trees)
    assert [len(tree.answers) for tree in forest.packed] == [24, 6]
    assert forest.ids_1S.shape[1] < 0.6 * sum(map(len, trees))
    plain = plain_logps(model, trees)
    logps = sequence_logps(model, forest, "path")
    assert (logps - plain).abs().max() < 1e-10
    assert apart(gradient(model, logps), gradient(model, plain)) < 1e-12


@pytest.mark.parametrize("backend", ["path", "flex", "cache", "flat"])
def test_float32(backend: str) -> None:
    model = build("llama")
    trees = pairs_of_two_prompts()
    with torch.no_grad():
        logps = LAYOUTS[backend](model, Forest.plant(trees))
        assert (logps - scored_alone(model, trees, backend)).abs().max() < 3e-5


def test_the_gradient_in_float32() -> None:
    model = make_tiny_llama()
    trees = pairs_of_two_prompts()
    ours = gradient(model, LAYOUTS["path"](model, Forest.plant(trees)))
    assert apart(ours, gradient(model, scored_alone(model, trees))) < 4e-7
    # Control: the gradient of other weights of the same log-probs is another one.
    assert apart(ours, gradient(model, scored_alone(model, trees).flip(0))) > 0.1


def test_control_a_wrong_owner_is_seen() -> None:
    model = build("llama")
    trees = pairs_of_two_prompts()
    forest = Forest.plant(trees)
    # The pairs in the order of the row, as if the second prompt's pair did not stand between those of the first.
    order = torch.tensor([0, 2, 3, 4, 1]).argsort()
    wrong = copy.copy(forest)
    wrong.owner_T = order[forest.owner_T // 6] * 6 + forest.owner_T % 6
    with torch.no_grad():
        right = scored_alone(model, trees)
        assert (LAYOUTS["path"](model, wrong) - right).abs().max() > 1.0
        assert (LAYOUTS["path"](model, forest) - right).abs().max() < 3e-5
