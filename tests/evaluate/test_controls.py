"""Best of k + 1 drafts by implied reward: the running best, the shared first draft, the forward tokens."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch

from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError
from srpo.evaluate.controls import best_of, keep_best, majority, several_drafts
from srpo.revise.settings import LOGP, MEAN_LOGP, RevisionSettings
from srpo.revise.trail import Answer, Trail
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


@pytest.mark.parametrize("by", [LOGP, MEAN_LOGP])
def test_selection_by_log_probs_equals_plain_forward_passes(by: str) -> None:
    model = carry_llama(0)
    subject, rows = reviser(model, batch_size=4), read_prompts([{"prompt": prompt} for prompt in PROMPTS])
    drafts = list(several_drafts(subject, rows, FOUR_DRAFTS))
    chosen, rewarded = set(), []
    for trail in keep_best(subject, rows, drafts, by):
        values = []
        for answer in trail.answers:
            context, ids = [BOS, *ids_of(trail.prompt)], [*ids_of(answer.text), EOS]
            with torch.no_grad():
                values.append(float(flat_logp(model, context, ids)) / (len(ids) if by == MEAN_LOGP else 1))
        for k in range(4):
            best = max(range(k + 1), key=lambda i: values[i])
            assert trail.after(k).text == trail.answers[best].text
        chosen.add(best)
        rewarded.append(trail.after(3).text)
    assert len(chosen) > 1
    # Negative control: the implied reward chooses otherwise.
    by_reward = keep_best(reviser(model, reference=carry_llama(1), beta=0.3), rows, drafts)
    assert [trail.after(3).text for trail in by_reward] != rewarded


def test_selection_by_log_probs_resumes_with_the_same_values() -> None:
    subject, rows = reviser(batch_size=4), read_prompts([{"prompt": prompt} for prompt in PROMPTS])
    drafts = list(several_drafts(subject, rows, FOUR_DRAFTS))
    whole = list(keep_best(subject, rows, drafts, LOGP))
    rest = list(keep_best(subject, rows, drafts, LOGP, skip=3))
    assert [trail.after(3).text for trail in rest] == [trail.after(3).text for trail in whole[3:]]


def test_majority_equals_a_plain_count() -> None:
    chance = random.Random(0)
    drafts = [
        Trail(str(i), tuple(Answer(chance.choice(["a", "b", " b", "c"]), 1, kept=False) for _ in range(6)))
        for i in range(50)
    ]
    found = majority(drafts)
    changes = 0
    for trail, voted in zip(drafts, found, strict=True):
        texts = [answer.text.strip() for answer in trail.answers]
        for k in range(6):
            seen = texts[: k + 1]
            most = max(Counter(seen).values())
            first = next(text for text in seen if seen.count(text) == most)
            assert voted.after(k).text.strip() == first
            changes += first != texts[0]
    assert changes > 20  # control: the first draft alone would fail
    assert [answer.forward_tokens for answer in found[0].answers] == [a.forward_tokens for a in drafts[0].answers]


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
