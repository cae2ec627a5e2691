"""Best of k + 1 drafts by implied reward: the running best, the shared first draft, the forward tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srpo.errors import ConfigError, DataError
from srpo.evaluate.controls import best_of
from srpo.revise.settings import RevisionSettings
from srpo.tasks.carry import carry_tokenizer
from tests.revise.tiny import PROMPTS, carry_llama, ids_of, reviser
from tests.train.plain import flat_logp

BOS, EOS = carry_tokenizer().bos_token_id, carry_tokenizer().eos_token_id
FOUR_DRAFTS = RevisionSettings(revisions=3, max_new_tokens=4, seed=5)


def reward(model: Any, reference: Any, prompt: str, text: str) -> float:
    """log π(text|prompt) − log π_ref(text|prompt) by plain forward passes."""
    context, answer = [BOS, *ids_of(prompt)], [*ids_of(text), EOS]
    with torch.no_grad():
        return float(flat_logp(model, context, answer) - flat_logp(reference, context, answer))


def test_best_of_keeps_the_largest_reward_so_far() -> None:
    model, reference = carry_llama(0), carry_llama(1)
    trails = best_of(reviser(model, reference=reference, beta=0.3, batch_size=4), PROMPTS, FOUR_DRAFTS)
    wins = set()
    for trail in trails:
        assert len(trail.answers) == 4
        rewards = [reward(model, reference, trail.prompt, answer.text) for answer in trail.answers]
        for k in range(4):
            best = max(range(k + 1), key=lambda i: rewards[i])
            assert trail.after(k).text == trail.answers[best].text
            # Control: the last draft, or the worst, would differ.
            wins.add(best)
    assert wins == {0, 1, 2, 3}


def test_mean_reduction_ranks_by_mean_log_probs() -> None:
    model, reference = carry_llama(0), carry_llama(1)
    seen = {}
    for reduction in ("sum", "mean"):
        subject = reviser(model, reference=reference, beta=0.3, logps_reduction=reduction)
        trails = best_of(subject, PROMPTS, FOUR_DRAFTS)
        seen[reduction] = [trail.after(3).text for trail in trails]
        for trail in trails:
            rewards = [
                reward(model, reference, trail.prompt, answer.text)
                / (len(answer.text) + 1 if reduction == "mean" else 1)
                for answer in trail.answers
            ]
            assert trail.after(3).text == trail.answers[rewards.index(max(rewards))].text
    assert seen["sum"] != seen["mean"]


def test_the_first_draft_equals_the_draft_of_revise() -> None:
    subject = reviser(reference=carry_llama(1), beta=0.3, batch_size=4)
    revised = subject.revise(PROMPTS, 0, max_new_tokens=4, seed=5)
    trails = best_of(subject, PROMPTS, FOUR_DRAFTS)
    assert [trail.answers[0].text for trail in trails] == [trail.answers[0].text for trail in revised]
    # The further drafts are drawn anew, and more of them leave the first ones as they are.
    drafts = [[answer.text for answer in trail.answers] for trail in trails]
    assert sum(len(set(row)) > 1 for row in drafts) == len(PROMPTS)
    fewer = best_of(subject, PROMPTS, RevisionSettings(revisions=1, max_new_tokens=4, seed=5))
    assert [[answer.text for answer in trail.answers] for trail in fewer] == [row[:2] for row in drafts]


def test_forward_tokens_count_drafting_and_scoring() -> None:
    (trail,) = best_of(reviser(reference=carry_llama(1), beta=0.3), ["12+34="], FOUR_DRAFTS)
    context = 1 + len("12+34=")
    for answer in trail.answers:
        assert answer.forward_tokens == 3 * (context + answer.tokens)  # written once, scored under two models


def test_the_policy_has_no_effect_and_rows_keep_their_columns() -> None:
    subject = reviser(reference=carry_llama(1), beta=0.3)
    rows = [{"prompt": prompt, "gold": str(i)} for i, prompt in enumerate(PROMPTS)]
    trails = best_of(subject, rows, RevisionSettings(revisions=2, max_new_tokens=4, policy="if_preferred"))
    always = best_of(subject, rows, RevisionSettings(revisions=2, max_new_tokens=4))
    assert [trail.after(2).text for trail in trails] == [trail.after(2).text for trail in always]
    assert [(trail.prompt, trail.meta) for trail in trails] == [(row["prompt"], {"gold": row["gold"]}) for row in rows]


def test_best_of_needs_a_reference_and_prompts() -> None:
    with pytest.raises(ConfigError, match="no reference"):
        best_of(reviser(), PROMPTS, FOUR_DRAFTS)
    with pytest.raises(DataError, match="no prompts"):
        best_of(reviser(), [], FOUR_DRAFTS)
