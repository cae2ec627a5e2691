"""The live engine's greedy tokens are plain decoding's but where the model itself is undecided, and that is counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from benchmarks.parting import TIE, Count, parting
from srpo.generate import speculative
from srpo.generate.engine import Decoding
from srpo.generate.plain import HFEngine
from srpo.generate.speculative import SpeculativeEngine
from tests.conftest import EOS, PAD, make_tiny_llama

MARK = 33  # stands for the words that ask for a revision


class Fixed(torch.nn.Module):
    """After n tokens it says the logits of row n."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.tensor(rows, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor) -> Any:
        class Said:
            logits = self.rows[1 : input_ids.shape[1] + 1][None]

        return Said()


def test_by_hand() -> None:
    model = Fixed([[0, 0, 0], [5, 1, 0], [0, 3, 2.5], [1, 1, 9], [4, 3.75, 0]])
    assert parting(model, [7, 8], [1, 2, 0], [1, 2, 0]) is None
    found = parting(model, [7, 8], [1, 2, 0], [2, 2, 1])  # at once, and again at the end
    assert found is not None
    assert (found.at, found.tokens, found.gap) == (0, 2, 0.5)
    found = parting(model, [7, 8], [1, 2, 0], [1, 2])  # ends where the other goes on
    assert found is not None
    assert (found.at, found.tokens, found.gap) == (2, 1, 0.25)
    count = Count()
    count.see(model, [[7, 8]] * 3, [[1, 2, 0]] * 3, [[1, 2, 0], [2, 2, 1], [1, 2]])
    assert (count.answers, count.tokens, count.differing, count.gaps, count.mistakes) == (3, 9, 3, [0.5, 0.25], 2)
    assert count.sentence() == (
        "3 of 9 tokens differ from plain decoding, in 2 of 3 answers; top-two gap there at most 5.0e-01"
    )


def counted(model: Any, *, rows: int = 6, seed: int = 0) -> Count:
    """Five revisions of plain decoding's chain, each by the live engine as well, cache and guesses kept from one to the
    next."""
    source, count = random.Random(seed), Count()
    engine, plain = SpeculativeEngine(model, pad_id=PAD), HFEngine(model, pad_id=PAD)
    prompts = [[source.randrange(256) for _ in range(source.randint(1, 30))] for _ in range(rows)]
    contexts: list[list[int]] = prompts
    guesses: list[list[int]] | None = None
    for _ in range(6):
        how = Decoding(24, (EOS,), 0.0)
        ours = engine.complete(contexts, [""] * rows, how, guesses=guesses)
        answers = [list(one.ids) for one in plain.complete(contexts, [""] * rows, how)]
        count.see(model, contexts, answers, [one.ids for one in ours])
        contexts = [[*prompt, *answer, MARK] for prompt, answer in zip(prompts, answers, strict=True)]
        guesses = [[token if source.random() < 0.9 else source.randrange(256) for token in row] for row in answers]
    assert engine.serves
    return count


@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_differ_from_plain_ones_only_at_ties(seed: int) -> None:
    count = counted(make_tiny_llama(seed=seed, num_hidden_layers=1, initializer_range=0.3), seed=seed)
    assert count.tokens > 500
    assert count.mistakes == 0, count.sentence()


def test_differences_by_rounding_are_counted_where_every_token_has_a_twin() -> None:
    """Tokens 2n and 2n + 1 have nearly the same logit everywhere: nobody can promise which of them is written."""
    model = make_tiny_llama(num_hidden_layers=1, initializer_range=0.3)
    with torch.no_grad():
        head = model.lm_head.weight
        head[1:EOS:2] = head[0 : EOS - 1 : 2] * (1 + 3e-7)
    count = counted(model)
    assert count.differing > 0
    assert 0 < count.largest <= TIE
    assert count.mistakes == 0


def test_a_mistake_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with a mask that shows what was refused, tokens differ where the model was sure."""
    right = speculative.SlotCache.place
    monkeypatch.setattr(speculative.SlotCache, "place", lambda *args: torch.zeros_like(right(*args)))
    monkeypatch.setattr(SpeculativeEngine, "_check", lambda self, context: "")
    count = counted(make_tiny_llama(num_hidden_layers=1, initializer_range=0.3))
    assert count.mistakes > 0
    assert count.largest > 100 * TIE
