"""Entropy and KL at scored positions: tiles and whole logits against sequences scored one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from srpo.model.packed import head as head_module
from srpo.model.packed import spread as spread_module
from srpo.model.packed import tiles as tiles_module
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.spread import Spread, sample, watched
from srpo.sequences.tree import PrefixTree
from tests.conftest import make_tiny_llama

Six = list[tuple[list[int], list[int]]]


def six(prompt: list[int], w: list[int], l: list[int]) -> Six:
    """Six sequences of token ids with a mark, 9, after each draft."""
    drafts = [(prompt, w), (prompt, l)]
    return drafts + [([*prompt, *draft, 9], answer) for draft in (w, l) for answer in (w, l)]


PAIRS = [six([1, 2, 3], [4, 5], [4, 6, 7]), six([1, 2], [8], [5, 5, 5, 5])]


def sharp(seed: int) -> Any:
    return make_tiny_llama(seed=seed, initializer_range=0.3).eval()


def plain(model: Any, other: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of entropies, sum of KL(model ‖ other) and number of tokens of each sequence, [B, K]: a loop over tokens."""
    sums = torch.zeros(3, len(PAIRS), 6, dtype=torch.float64)
    for b, pair in enumerate(PAIRS):
        for k, (context, answer) in enumerate(pair):
            ids = torch.tensor([context + answer])
            ours, theirs = (m(ids).logits[0].double().log_softmax(-1) for m in (model, other))
            for place in range(len(context) - 1, len(context) + len(answer) - 1):
                p = ours[place].exp()
                sums[0, b, k] -= (p * ours[place]).sum()
                sums[1, b, k] += (p * (ours[place] - theirs[place])).sum()
                sums[2, b, k] += 1
    return sums[0], sums[1], sums[2]


@torch.no_grad()
def spread_of(model: Any, backend: str) -> Spread:
    forest = Forest.plant([PrefixTree.pack(pair) for pair in PAIRS], torch.device("cpu"))
    sequence_logps(model, forest, backend)  # the self-check must not be watched
    with watched() as spread:
        sequence_logps(model, forest, backend)
    return spread


@pytest.mark.parametrize("backend", ["path", "flat", "cache"])
@pytest.mark.parametrize("tiled", [False, True])
@torch.no_grad()
def test_entropy_and_divergence_are_those_of_single_sequences(
    backend: str, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = sharp(0), sharp(1)
    if tiled:
        monkeypatch.setattr(head_module, "TILED_ABOVE", 0)
        monkeypatch.setattr(tiles_module, "TILE", {"cpu": 3 * model.config.vocab_size})
    entropy_BK, kl_BK, count_BK = plain(model, other)
    ours, theirs = spread_of(model, backend), spread_of(other, backend)
    found_BK, counted_BK = ours.divergence(theirs, (2, 6))
    torch.testing.assert_close(ours.entropy((2, 6))[0], entropy_BK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_BK, kl_BK, rtol=1e-4, atol=1e-5)
    assert torch.equal(counted_BK, count_BK)
    assert torch.equal(ours.tokens((2, 6)), count_BK)
    # Controls: the two directions differ, and so do the pairs.
    assert not torch.allclose(theirs.divergence(ours, (2, 6))[0], kl_BK, rtol=1e-2)
    assert not torch.allclose(entropy_BK[0], entropy_BK[1], rtol=1e-2)


@torch.no_grad()
def test_a_sample_holds_a_bounded_number_of_logits_at_equal_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = sharp(0), sharp(1)
    tokens = 25 * model.config.vocab_size
    monkeypatch.setattr(spread_module, "SAMPLED", tokens + 1)
    monkeypatch.setattr(spread_module, "LEAST", 1)
    ours, theirs = spread_of(model, "path"), spread_of(other, "path")
    assert [tuple(each.shape) for each in ours._logps] == [(25, model.config.vocab_size)]
    kl_BK, count_BK = ours.divergence(theirs, (2, 6))
    assert count_BK.sum() == 25
    assert ours.tokens((2, 6)).sum() == 30
    assert torch.equal(ours.entropy((2, 6))[1], count_BK)
    # A sequence of which every token is in the sample has the divergence of the whole computation.
    whole_BK, all_BK = plain(model, other)[1:]
    full = count_BK == all_BK
    assert full.any()
    torch.testing.assert_close(kl_BK[full], whole_BK[full], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [3, 20, 40])
def test_the_sample_is_spread_over_answers_and_their_places(length: int) -> None:
    for answers in (6, 24, 48):
        picked = sample(answers * length, 16)
        assert len({*picked.tolist()}) == 16
        assert len({*(picked // length).tolist()}) >= min(answers, 16) - 2
        first = float((picked % length == 0).double().mean())
        assert first <= 1 / length + 2 / 16
    assert sample(30, 99).tolist() == [*range(30)]
    even = torch.arange(6) * (6 * length) // 6  # control: a fixed place in every part
    assert (even % length == 0).all()


def test_a_word_of_probability_zero_adds_nothing() -> None:
    logits, zero = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]), torch.zeros(1, dtype=torch.long)
    p = torch.tensor([2.0, 1.0, 0.0]).softmax(0)
    spread = Spread()
    spread.add(zero, zero, lambda rows: logits[rows], 4)
    torch.testing.assert_close(spread.entropy((1, 1))[0][0, 0].float(), -(p * p.log()).sum())
    assert float(spread.divergence(spread, (1, 1))[0]) == 0.0


def test_watching_changes_no_bit_of_log_probs_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "TILED_ABOVE", 0)
    forest = Forest.plant([PrefixTree.pack(pair) for pair in PAIRS], torch.device("cpu"))
    found = []
    for watch in (False, True):
        model = sharp(0)
        if watch:
            with watched():
                logps_BK = sequence_logps(model, forest, "path")
        else:
            logps_BK = sequence_logps(model, forest, "path")
        logps_BK.sum().backward()
        found.append([logps_BK.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
