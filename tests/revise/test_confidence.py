"""The confidence of Eq. 9 and Eq. 14 equals plain forward passes; scorers and engines can be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Reviser
from srpo.errors import ConfigError
from srpo.revise.confidence import Sequences
from srpo.tasks.carry import carry_tokenizer
from tests.revise.tiny import PROMPTS, Scripted, carry_llama, ids_of, reviser, saved
from tests.train.plain import flat_logp

EOS, BOS = carry_tokenizer().eos_token_id, carry_tokenizer().bos_token_id


def eq14(model: Any, reference: Any, prompt: str, old: str, new: str, beta: float) -> float:
    """½ + β/2 [h(new|old) + g(new) − h(old|new) − g(old)] from plain forward passes."""

    def ratio(context: str, answer: str) -> float:
        ids = ([BOS, *ids_of(context)], [*ids_of(answer), EOS])
        with torch.no_grad():
            return float(flat_logp(model, *ids) - flat_logp(reference, *ids))

    h_new, h_old = ratio(f"{prompt}{old}?", new), ratio(f"{prompt}{new}?", old)
    return 0.5 + beta / 2 * (h_new + ratio(prompt, new) - h_old - ratio(prompt, old))


def test_confidence_of_eq_14_equals_plain_forward_passes() -> None:
    model, reference = carry_llama(0), carry_llama(1)
    subject = reviser(model, reference=reference, beta=0.3, equation="eq14")
    trails = subject.revise(PROMPTS, 2, max_new_tokens=4, policy="always")
    for trail in trails:
        for old, new in zip(trail.answers, trail.answers[1:], strict=False):
            plain = eq14(model, reference, trail.prompt, old.text, new.text, 0.3)
            assert new.preferred == pytest.approx(plain, abs=1e-4)
            # It is antisymmetric, which Eq. 9 is not.
            assert plain + eq14(model, reference, trail.prompt, new.text, old.text, 0.3) == pytest.approx(1, abs=1e-5)
    ninth = reviser(model, reference=reference, beta=0.3).revise(PROMPTS, 2, max_new_tokens=4, policy="always")
    pairs = zip(trails, ninth, strict=True)
    assert any(abs(a.answers[1].preferred - b.answers[1].preferred) > 0.1 for a, b in pairs)  # type: ignore[operator]
    assert trails[0].answers[1].forward_tokens > ninth[0].answers[1].forward_tokens


def test_an_unknown_equation_is_rejected() -> None:
    with pytest.raises(ConfigError, match="equation: 'eq15'; expected one of eq9, eq14; did you mean 'eq14'"):
        reviser(equation="eq15")


class Longer:
    """A scorer that likes an answer as many nats better as it has tokens."""

    def log_ratios(self, sequences: Sequences) -> torch.Tensor:
        return torch.tensor([[float(len(answer)) for _, answer in each] for each in sequences])


def test_a_given_scorer_and_engine_load_no_weights(tmp_path: Path) -> None:
    saved(tmp_path)  # and no model
    first = reviser()
    engine = Scripted(first, lambda context: "4" if context.endswith("=") else "444")
    subject = Reviser(str(tmp_path), engine=engine, scorer=Longer(), beta=0.1)
    (trail,) = subject.revise(["2+2="], 1, max_new_tokens=5)
    assert [answer.text for answer in trail.answers] == ["4", "444"]
    assert trail.answers[1].preferred == pytest.approx(0.5 + 0.1 * (4 - 2))
    assert subject.model is None
    assert not Reviser(str(tmp_path), engine=engine).has_confidence
