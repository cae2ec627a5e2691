"""Speculative answers equal plain answers, whatever the guesses and the content of the cache."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch

from srpo.generate import speculative
from srpo.generate.engine import Completion, Decoding
from srpo.generate.plain import HFEngine
from srpo.generate.speculative import SpeculativeEngine, why_not_speculative
from tests.conftest import EOS, PAD, make_tiny_llama

MARK = 33  # stands for the words that ask for a revision


@pytest.fixture(scope="module")
def model() -> Any:
    # In float64: in float32 a uniform number may fall between two engines' roundings of a cumulative sum.
    return make_tiny_llama(initializer_range=0.3).double()


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def chain(model: Any, rows: int, temperature: float, *, seed: int = 0, batch_size: int = 32) -> SpeculativeEngine:
    """Five revisions by both engines, compared after each; every other row leaves after the second."""
    rng = random.Random(seed)
    ours = SpeculativeEngine(model, pad_id=PAD, batch_size=batch_size)
    plain = HFEngine(model, pad_id=PAD, batch_size=batch_size)
    prompts = [[rng.randrange(256) for _ in range(rng.randint(1, 30))] for _ in range(rows)]
    contexts, guesses = prompts, None
    for revision in range(6):
        how = Decoding(20, (EOS, 7, 9), temperature, seed=3)
        keys = [f"{row}/{revision}" for row in range(len(contexts))]
        mine = ours.complete(contexts, keys, how, guesses=guesses)
        expected = plain.complete(contexts, keys, how)
        assert ids(mine) == ids(expected)
        assert [one.finished for one in mine] == [one.finished for one in expected]
        answers = [list(one.ids) for one in mine]
        stay = [i for i in range(len(prompts)) if revision != 1 or i % 2 == 0]
        prompts, answers = [prompts[i] for i in stay], [answers[i] for i in stay]
        contexts = [[*prompt, *answer, MARK] for prompt, answer in zip(prompts, answers, strict=True)]
        guesses = [list(answer) for answer in answers]
        for guess in guesses:  # a guess may be anything
            if rng.random() < 0.5:
                guess[rng.randrange(len(guess))] = rng.randrange(256)
            if rng.random() < 0.2:
                del guess[rng.randrange(len(guess)) :]
    return ours


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_speculative_answers_equal_plain_answers(model: Any, rows: int, temperature: float) -> None:
    engine = chain(model, rows, temperature)
    assert engine.serves is True  # and has not fallen back to the plain way


def test_requests_larger_than_a_batch(model: Any) -> None:
    chain(model, 7, 1.0, batch_size=3)


def test_control_a_wrong_mask_is_detected(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with a mask that shows what was refused, what is written differs, or the engine finds out itself."""
    right = speculative.SlotCache.place
    monkeypatch.setattr(speculative.SlotCache, "place", lambda *args: torch.zeros_like(right(*args)))
    engine = SpeculativeEngine(model, pad_id=PAD)
    engine.complete([[65, 66, 67]], ["a"], Decoding(4, (EOS,)))
    assert engine.serves is False
    engine = SpeculativeEngine(model, pad_id=PAD)
    monkeypatch.setattr(engine, "_check", lambda context: "")
    contexts = [[65, 66, 67], [70], [1, 2, 3, 4, 5, 6]]
    how = Decoding(20, (EOS,), 0.0)
    mine = engine.complete(contexts, ["a", "b", "c"], how, guesses=[[5] * 20] * 3)
    assert ids(mine) != ids(HFEngine(model, pad_id=PAD).complete(contexts, ["a", "b", "c"], how))


def test_right_guesses_save_forward_passes_and_wrong_ones_add_none(model: Any) -> None:
    how = Decoding(60, ())
    (first,) = HFEngine(model, pad_id=PAD).complete([[65, 66, 67, 68]], ["a"], how)

    def forwards(guess: list[int] | None) -> int:
        engine = SpeculativeEngine(model, pad_id=PAD)
        engine.complete([[1]], ["warm"], Decoding(1, ()))  # what the first call checks is not it
        before = engine.forwards
        guesses = None if guess is None else [guess]
        assert ids(engine.complete([[65, 66, 67, 68]], ["a"], how, guesses=guesses)) == [first.ids]
        return engine.forwards - before

    right = list(first.ids)
    assert forwards(None) == forwards([]) == 60
    assert forwards(right) <= 6
    assert 55 <= forwards([(token + 1) % 256 for token in right]) <= 60
    # One token replaced, one left out, one put in: the place in the draft is found again.
    assert forwards([*right[:15], 3, *right[16:30], *right[31:45], 4, *right[45:]]) <= 15


def test_the_cache_is_kept_between_revisions_and_dropped_between_batches(model: Any) -> None:
    engine = SpeculativeEngine(model, pad_id=PAD)
    context = list(range(40, 100))
    how = Decoding(5, (), 0.0)
    (draft,) = engine.complete([context], ["a"], how)
    before = engine.read
    engine.complete([[*context, *draft.ids, MARK]], ["a"], how, guesses=[draft.ids])
    assert engine.read - before < 25  # of 66: the draft's last token, the mark, guesses and the answer
    before = engine.read
    engine.complete([context], ["a"], how)
    assert engine.read - before == len(context) + 4


def test_finished_rows_leave_the_batch(model: Any) -> None:
    engine = SpeculativeEngine(model, pad_id=PAD)
    contexts, keys = [[65 + i] * 4 for i in range(8)], [str(i) for i in range(8)]
    long = engine.complete(contexts, keys, Decoding(40, ()))
    stops = tuple({one.ids[2] for one in long[:6]})  # ends six rows by their third token
    before = engine.read
    short = engine.complete(contexts, keys, Decoding(40, stops))
    expected = HFEngine(model, pad_id=PAD).complete(contexts, keys, Decoding(40, stops))
    assert ids(short) == ids(expected)
    assert engine.read - before < 8 * 3 + 8 * max(len(one.ids) for one in short)


def test_models_without_rollback_decode_plainly_after_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    windowed = MistralForCausalLM(MistralConfig(vocab_size=64, sliding_window=4, num_key_value_heads=2, **sizes)).eval()
    assert "cannot be rolled back" in why_not_speculative(windowed)
    engine, plain = SpeculativeEngine(windowed, pad_id=0), HFEngine(windowed, pad_id=0)
    with caplog.at_level(logging.WARNING, "srpo"):
        for context in ([5] * 9, [6, 7, 8]):
            how = Decoding(6, (2,), seed=1)
            mine = engine.complete([context], ["a"], how, guesses=[[1, 2, 3]])
            assert ids(mine) == ids(plain.complete([context], ["a"], how))
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "plain decoding" in said[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float64_logits_pass_the_check(attention: str) -> None:
    model = make_tiny_llama(initializer_range=0.3, attn_implementation=attention).double()
    engine = SpeculativeEngine(model, pad_id=PAD)
    assert engine._check(list(range(60, 92))) == ""
    assert why_not_speculative(
        make_tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )


def test_the_check_uses_the_precision_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer's model has float32 weights and gives float32 logits, and computes in bfloat16 between."""
    from accelerate.utils import convert_outputs_to_fp32

    model = make_tiny_llama(initializer_range=0.3, hidden_size=64, num_hidden_layers=6)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    context = list(range(60, 92))
    assert model(input_ids=torch.tensor([context])).logits.dtype == torch.float32
    assert SpeculativeEngine(model, pad_id=PAD)._check(context) == ""
    # Control: the tolerance of bfloat16 decides, not that of float32, on processors that round alike too.
    monkeypatch.setitem(speculative._TOLERANCE, torch.bfloat16, -1.0)
    assert "differ from plain ones by" in SpeculativeEngine(model, pad_id=PAD)._check(context)
