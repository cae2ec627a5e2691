"""Selectors of the final answer against plain forward passes, and the reviser's vote as a policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError
from srpo.evaluate.controls import keep_best, several_drafts
from srpo.report.trail_page import as_text
from srpo.revise.policy import Policy
from srpo.revise.settings import LAST, LOGP, MEAN_LOGP, REWARD, SELECTORS, VOTE, RevisionSettings
from srpo.revise.trail import Answer, Trail
from srpo.tasks.carry import carry_tokenizer
from tests.revise.tiny import PROMPTS, Scripted, carry_llama, ids_of, reviser
from tests.train.plain import flat_logp

BOS, EOS = carry_tokenizer().bos_token_id, carry_tokenizer().eos_token_id
DRAWN = {"temperature": 1.0, "seed": 5, "max_new_tokens": 4}


def plain(model: Any, prompt: str, text: str, draft: str | None = None) -> float:
    """log π(text|prompt), or log π†(text|draft, prompt): one forward pass."""
    context = [BOS, *ids_of(prompt if draft is None else f"{prompt}{draft}?")]
    with torch.no_grad():
        return float(flat_logp(model, context, [*ids_of(text), EOS]))


def value(by: str, model: Any, reference: Any, prompt: str, texts: list[str], text: str) -> float:
    """The value by which a selector ranks one answer among the texts so far, written out."""
    if by == VOTE:
        return sum(plain(model, prompt, text, other) for other in texts)
    logp = plain(model, prompt, text)
    if by == REWARD:
        return logp - plain(reference, prompt, text)
    return logp / (len(text) + 1) if by == MEAN_LOGP else logp


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return carry_llama(0), carry_llama(1)


@pytest.mark.parametrize("by", [LOGP, MEAN_LOGP, REWARD, VOTE])
def test_each_selector_equals_plain_forward_passes(by: str, models: tuple[Any, Any]) -> None:
    subject = reviser(models[0], reference=models[1], beta=0.3, batch_size=4)
    last = subject.revise(PROMPTS[:4], 3, policy="always", **DRAWN)
    chosen = subject.revise(PROMPTS[:4], 3, policy="always", select=by, **DRAWN)
    moved = 0
    for before, trail in zip(last, chosen, strict=True):
        assert [answer.text for answer in trail.answers] == [answer.text for answer in before.answers]
        for k in range(4):
            texts = [answer.text for answer in trail.answers[: k + 1]]
            values = [value(by, *models, trail.prompt, texts, text) for text in texts]
            assert trail.after(k).text == texts[values.index(max(values))]
            moved += trail.after(k).text != before.after(k).text
        assert all(a.forward_tokens >= b.forward_tokens for a, b in zip(trail.answers, before.answers, strict=True))
    assert moved  # negative control: without a selector another answer is in hand somewhere


def test_a_selector_without_effect_changes_nothing() -> None:
    (trail,) = reviser().revise(PROMPTS[:1], 1, max_new_tokens=4, policy="always")
    assert "in_hand" not in trail.to_json()
    assert "select" not in RevisionSettings().made_with()
    assert RevisionSettings(select=LOGP).made_with()["select"] == LOGP


def test_trails_of_unequal_length_are_chosen_together() -> None:
    greedy: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 4, "policy": "always", "select": VOTE}
    trails, alone = (reviser(batch_size=size).revise(PROMPTS, 3, **greedy) for size in (16, 1))
    assert len({len(trail.answers) for trail in trails}) > 1  # some stop at a fixed point
    assert [trail.after(3).text for trail in trails] == [trail.after(3).text for trail in alone]
    assert all(Trail.from_json(trail.to_json()) == trail for trail in trails)


def test_the_policy_vote_is_the_vote_among_the_drafts_of_the_control() -> None:
    subject, rows = reviser(batch_size=4), read_prompts([{"prompt": prompt} for prompt in PROMPTS])
    settings = RevisionSettings(3, 1.0, 5, 4, "vote")
    voted = list(subject.trails(rows, settings))
    control = list(keep_best(subject, rows, list(several_drafts(subject, rows, settings)), VOTE))
    for trail, other in zip(voted, control, strict=True):
        assert [answer.text for answer in trail.answers] == [answer.text for answer in other.answers]
        assert [trail.after(k).text for k in range(4)] == [other.after(k).text for k in range(4)]
        assert [a.forward_tokens for a in trail.answers] == [a.forward_tokens for a in other.answers]
        assert trail.stopped == "vote"
    rest = list(subject.trails(rows, settings, skip=3))
    assert [trail.after(3).text for trail in rest] == [trail.after(3).text for trail in voted[3:]]
    shown = str(as_text(voted[0], marks=True))
    assert "draft 4" in shown
    assert "chosen: draft" in shown


def test_every_draft_has_a_vote() -> None:
    subject, texts = reviser(), ["1", "2", "1", "1"]
    trail = Trail("1+1=", tuple(Answer(text, 2) for text in texts))
    (found,) = keep_best(subject, read_prompts([{"prompt": "1+1="}]), [trail], VOTE)
    for k in range(4):
        votes = [value(VOTE, subject.model, None, "1+1=", texts[: k + 1], text) for text in texts[: k + 1]]
        assert found.answers[k].in_hand == votes.index(max(votes))
    read = [answer.forward_tokens for answer in found.answers]
    assert read[2] == read[3] == 0 < read[1]  # scoring a draft again costs nothing


def test_two_signs_keep_fewer_revisions(models: tuple[Any, Any]) -> None:
    subject = reviser(models[0], reference=models[1], beta=0.3)
    kept, refused = 0, 0
    for trail in subject.revise(PROMPTS, 3, policy="if_preferred_and_likelier", **DRAWN):
        for k in range(1, len(trail.answers)):
            old, new = trail.after(k - 1).text, trail.answers[k]
            assert new.preferred is not None
            likelier = plain(models[0], trail.prompt, new.text) > plain(models[0], trail.prompt, old)
            assert new.kept == (new.text == old or (new.preferred > 0.5 and likelier))
            kept, refused = kept + new.kept, refused + (new.preferred > 0.5 and not new.kept)
    assert kept
    assert refused
    assert not Policy.named("if_preferred_and_likelier").decide(preferred=0.9, unchanged=False).kept


def test_selectors_that_cannot_be_computed_are_refused_before_drawing() -> None:
    subject = reviser()
    engine = Scripted(subject, lambda _: "1")
    with pytest.raises(ConfigError, match="reward needs a reference"):
        subject.revise(PROMPTS, 1, policy="always", select=REWARD)
    with pytest.raises(ConfigError, match="greedy drafts are all the same"):
        subject.revise(PROMPTS, 1, policy="vote", temperature=0.0)
    with pytest.raises(ConfigError, match="select: .*expected one of " + ", ".join(SELECTORS)):
        RevisionSettings(select="logq")
    subject.model = None  # as with a server that returns no log-probs
    for settings in ({"select": VOTE, "policy": "always"}, {"policy": "vote"}):
        with pytest.raises(ConfigError, match="vote needs log-probs"):
            subject.revise(PROMPTS, 1, **settings)
    assert engine.asked == 0
    assert len(subject.revise(PROMPTS[:1], 1, policy="always", select=LAST)) == 1


def test_a_place_outside_the_trail_is_no_trail() -> None:
    line = Trail("a", (Answer("1", 1, in_hand=0),)).to_json()
    assert Trail.from_json(line).after(5).text == "1"
    with pytest.raises(DataError, match="in_hand"):
        Trail.from_json(line.replace('"in_hand": 0', '"in_hand": 1'))
