"""Prompts unlike those of a calibration get one greedy draft, and a message says so."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.data.read import PromptRow, read_prompts
from srpo.revise.drift import statistics
from srpo.revise.settings import RevisionSettings
from srpo.revise.stored_calibration import CalibratedPolicy, Calibration
from srpo.tasks.carry import carry_tokenizer
from tests.revise.tiny import carry_llama, ids_of, reviser
from tests.train.plain import flat_logp

SHORT = [f"{a}+{b}=" for a in range(4) for b in range(5)]
LONG = [f"{a}{a}{a}+{b}{b}{b}=" for a in range(4) for b in range(5)]
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "seed": 2}


def rows(prompts: list[str]) -> list[PromptRow]:
    return read_prompts([{"prompt": prompt} for prompt in prompts])


def drafts(subject: Any, prompts: list[str]) -> Any:
    return list(subject.trails(rows(prompts), RevisionSettings(0, policy="drafts", **SETTINGS)))


def calibrated(subject: Any, prompts: list[str]) -> None:
    """Gives the reviser a calibration that saw these prompts and chose two revisions and the vote."""
    seen = statistics(subject, rows(prompts), drafts(subject, prompts))
    chosen = CalibratedPolicy("always", 2, gain=0.1, low=0.05, high=0.2, rival="", select="vote")
    subject.calibration = Calibration(chosen, 40, 0, None, None, None, None, None, None, (), {}, seen)


def test_statistics_equal_plain_forward_passes() -> None:
    subject = reviser(batch_size=3)
    found, lengths, logps = statistics(subject, rows(SHORT), drafts(subject, SHORT)), [], []
    tokenizer = carry_tokenizer()
    for trail in drafts(subject, SHORT):
        context, answer = [tokenizer.bos_token_id, *ids_of(trail.prompt)], [*ids_of(trail.answers[0].text)]
        with torch.no_grad():
            answer.append(tokenizer.eos_token_id)
            logps.append(float(flat_logp(subject.model, context, answer)) / len(answer))
        lengths.append(len(context))
    for name, values in (("length", lengths), ("logp", logps)):
        mean = sum(values) / len(values)
        assert found[name][0] == pytest.approx(mean, abs=1e-5)
        assert found[name][1] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)), abs=1e-5)


def test_unlike_prompts_get_one_greedy_draft(caplog: pytest.LogCaptureFixture) -> None:
    subject = reviser()
    calibrated(subject, SHORT)
    with caplog.at_level(logging.WARNING, "srpo"):
        same = subject.revise(SHORT, 2, **SETTINGS)
        assert {len(trail.answers) for trail in same} == {3}
        assert all(trail.answers[-1].in_hand is not None for trail in same)  # the calibrated selector
        assert not caplog.records
        other = subject.revise(LONG, 2, **SETTINGS)
    assert (
        "prompts unlike those of the calibration (length of the prompt, tokens: 9, calibrated on 5 ± 0)" in caplog.text
    )
    greedy = subject.revise(LONG, 0, policy="drafts", temperature=0.0, max_new_tokens=3)
    assert [[a.text for a in trail.answers] for trail in other] == [[a.text for a in t.answers] for t in greedy]
    # Controls: a policy that is asked for by name is used, and so is a calibration without statistics.
    assert {len(trail.answers) for trail in subject.revise(LONG, 2, policy="always", **SETTINGS)} == {3}
    subject.calibration = replace(subject.calibration, seen={})
    assert {len(trail.answers) for trail in subject.revise(LONG, 2, **SETTINGS)} == {3}


def test_less_likely_drafts_are_unlike(caplog: pytest.LogCaptureFixture) -> None:
    subject = reviser()
    calibrated(subject, SHORT)
    mean, deviation = subject.calibration.seen["logp"]
    subject.calibration = replace(
        subject.calibration, seen={**subject.calibration.seen, "logp": [mean + 2 * deviation, deviation]}
    )
    with caplog.at_level(logging.WARNING, "srpo"):
        assert {len(trail.answers) for trail in subject.revise(SHORT, 2, **SETTINGS)} == {1}
    assert "log π of the draft per token" in caplog.text


def test_a_calibration_keeps_selector_and_statistics(tmp_path: Path) -> None:
    subject = reviser(carry_llama(0))
    calibrated(subject, SHORT)
    subject.calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == subject.calibration
