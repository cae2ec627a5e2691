"""Interrupted runs: each finished answer is on disk at once, and the same command draws the others only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from srpo import Reviser
from srpo.errors import Interrupted
from srpo.generate.journal import Journal, JournaledEngine
from srpo.generate.speculative import SpeculativeEngine
from srpo.revise.settings import ANSWERS, RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import revise_file
from tests.revise.tiny import PROMPTS, carry_llama, reviser

SETTINGS = RevisionSettings(revisions=2, max_new_tokens=6)


class Stopping(SpeculativeEngine):
    """The engine, interrupted at one of its forward passes."""

    stop_at = -1

    def _forward(self, *args, **settings):  # type: ignore[no-untyped-def]
        if self.forwards == self.stop_at:
            raise KeyboardInterrupt
        return super()._forward(*args, **settings)


def make(journal: Path, stop_at: int, made: list[Stopping]) -> Callable[[], Reviser]:
    def build() -> Reviser:
        subject = reviser(carry_llama(), batch_size=8)
        assert isinstance(subject.engine, SpeculativeEngine)
        engine = Stopping(subject.model, pad_id=subject.engine.pad_id, batch_size=8)
        engine.stop_at = stop_at
        made.append(engine)
        subject.engine = JournaledEngine(engine, Journal(journal, durable=False))
        return subject

    return build


def texts(path: Path) -> list[list[str]]:
    lines = path.read_text("utf-8").splitlines()
    return [[answer.text for answer in Trail.from_json(line).answers] for line in lines]


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_an_interruption_loses_no_finished_answer(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), "utf-8")
    whole, made = tmp_path / "whole.jsonl", list[Stopping]()
    revise_file(make(tmp_path / f"whole.jsonl{ANSWERS}", -1, made), str(source), str(whole), SETTINGS)
    last = made[0].forwards
    kept = []
    for moment in range(10):
        out = tmp_path / f"{moment}.jsonl"
        journal, stop_at = Path(f"{out}{ANSWERS}"), 3 + moment * (last - 4) // 9
        with pytest.raises(Interrupted, match="the same command goes on") as caught:
            revise_file(make(journal, stop_at, made), str(source), str(out), SETTINGS)
        kept.append(lines(journal))
        assert (f"other finished answers in {journal}" in str(caught.value)) == (kept[-1] > 0)
        revise_file(make(journal, -1, made), str(source), str(out), SETTINGS)
        assert texts(out) == texts(whole)
        assert made[-1].forwards <= last
        answers = sum(len(trail) for trail in texts(out))
        assert lines(journal) == answers, "an answer was drawn twice"
    # Answers are kept inside a batch, and more of them the later the interruption comes.
    assert kept == sorted(kept)
    assert 0 < kept[2] < kept[-1]


def test_answers_of_other_settings_are_dropped(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS[:2]), "utf-8")
    journal, made = Path(f"{out}{ANSWERS}"), list[Stopping]()
    with pytest.raises(Interrupted):
        revise_file(make(journal, 9, made), str(source), str(out), SETTINGS, made_with={"model": "one"})
    before = lines(journal)
    assert before
    revise_file(make(journal, -1, made), str(source), str(out), SETTINGS, made_with={"model": "two"})
    assert lines(journal) == sum(len(trail) for trail in texts(out))
