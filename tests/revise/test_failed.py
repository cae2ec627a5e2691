"""Prompts on which an engine fails: the trail has the reason, the file counts them, the same command repeats them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Reviser
from srpo.errors import DataError, InputError
from srpo.generate.engine import Completion, Decoding
from srpo.revise.confidence import Sequences
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails, revise_file
from tests.revise.tiny import Scripted, reviser

PROMPTS = [f"{n}+0=" for n in range(9)]
ALL = RevisionSettings(revisions=2, max_new_tokens=4)


class Failing(Scripted):
    """Answers with a digit that counts up, and fails where it is told to."""

    same_batch_same_bits = False

    def __init__(self, subject: Reviser, fails: set[tuple[str, int]], **settings: Any) -> None:
        super().__init__(subject, lambda text: "7", **settings)
        self.fails, self.keys = fails, list[tuple[str, int]]()

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        done = super().complete(contexts, keys, decoding, **more)
        for i, (context, key) in enumerate(zip(contexts, keys, strict=True)):
            prompt = self.tokenizer.decode(context, skip_special_tokens=True).partition("=")[0] + "="
            asked = (prompt, int(key.rpartition("/")[2]))
            self.keys.append(asked)
            if asked in self.fails:
                done[i] = Completion((), False, 0.0, failed="HTTP 400: too long")
        return done


def failing(fails: set[tuple[str, int]], seen: list[Failing] | None = None) -> Reviser:
    subject = reviser()
    engine = Failing(subject, fails, batch_size=4)
    if seen is not None:
        seen.append(engine)
    return subject


@pytest.fixture
def source(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "gold": "7"}) + "\n" for text in PROMPTS), "utf-8")
    return str(file)


def trails(path: Path) -> list[Trail]:
    return [Trail.from_json(line) for line in path.read_text("utf-8").splitlines()]


def test_a_failed_step_ends_only_its_own_trail() -> None:
    found = failing({("1+0=", 0), ("2+0=", 1), ("3+0=", 2)}).revise(PROMPTS[:5], revisions=2, max_new_tokens=4)
    assert [len(trail.answers) for trail in found] == [3, 0, 1, 2, 3]
    assert [trail.failed for trail in found] == ["", *["HTTP 400: too long"] * 3, ""]
    assert found[1].stopped == "failed: HTTP 400: too long"
    assert Trail.from_json(found[1].to_json()) == found[1]


def test_the_same_command_tries_failed_prompts_only(source: str, tmp_path: Path) -> None:
    out = tmp_path / "trails.jsonl"
    with pytest.raises(InputError, match=r"2 of 9 prompts failed: 2 × HTTP 400: too long; the same command") as caught:
        revise_file(lambda: failing({("1+0=", 0), ("6+0=", 1)}), source, str(out), ALL)
    assert caught.value.exit_code == 66
    before = trails(out)
    assert [trail.prompt for trail in before] == PROMPTS
    seen: list[Failing] = []
    assert revise_file(lambda: failing(set(), seen), source, str(out), ALL) == (9, 9)
    assert {prompt for prompt, _ in seen[0].keys} == {"1+0=", "6+0="}
    after = trails(out)
    assert [trail.failed for trail in after] == [""] * 9
    assert [a for a, b in zip(after, before, strict=True) if not b.failed] == [b for b in before if not b.failed]
    assert not list(tmp_path.glob("*.new"))
    # The control: a finished file needs no engine, an unfinished one does.
    revise_file(never, source, str(out), ALL)
    out.write_text("".join(trail.to_json() + "\n" for trail in before), "utf-8")
    with pytest.raises(AssertionError, match="asked for"):
        revise_file(never, source, str(out), ALL)


def never() -> Reviser:
    raise AssertionError("asked for")


def test_a_resumed_run_requests_missing_trails_only(source: str, tmp_path: Path) -> None:
    """Killed in the middle of a batch of four: what stands in the file is not asked again."""
    out, seen = tmp_path / "trails.jsonl", list[Failing]()
    revise_file(lambda: failing(set()), source, str(out), ALL)
    whole = trails(out)
    out.write_text("".join(trail.to_json() + "\n" for trail in whole[:6]), "utf-8")
    assert revise_file(lambda: failing(set(), seen), source, str(out), ALL) == (9, 6)
    assert trails(out) == whole
    assert {prompt for prompt, _ in seen[0].keys} == {*PROMPTS[6:]}


def test_an_interruption_while_trying_failed_prompts_again(source: str, tmp_path: Path) -> None:
    out = tmp_path / "trails.jsonl"
    failed = {(prompt, 0) for prompt in PROMPTS[1:7]}
    with pytest.raises(InputError, match="6 of 9"):
        revise_file(lambda: failing(failed), source, str(out), ALL)

    class Dying(Failing):
        def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
            if len(self.keys) > 8:
                raise InputError("no server answers")
            return super().complete(contexts, keys, decoding, **more)

    def dying() -> Reviser:
        subject = reviser()
        Dying(subject, set(), batch_size=4)
        return subject

    with pytest.raises(InputError, match="no server"):
        revise_file(dying, source, str(out), ALL)
    assert [bool(trail.failed) for trail in trails(out)] == [False] * 5 + [True] * 2 + [False] * 2
    assert revise_file(lambda: failing(set()), source, str(out), ALL) == (9, 9)
    assert not any(trail.failed for trail in trails(out))


def test_a_revision_without_a_score_fails_instead_of_being_rejected() -> None:
    class Silent:
        def log_ratios(self, sequences: Sequences) -> torch.Tensor:
            return torch.tensor(
                [[0.0, float("nan") if (i, len(sequences)) == (1, 3) else 0.0] for i in range(len(sequences))]
            )

    subject = reviser(scorer=Silent(), beta=0.1)
    Failing(subject, set())
    found = subject.revise(PROMPTS[:3], revisions=2, max_new_tokens=4, policy="if_preferred")
    assert [trail.failed[:13] for trail in found] == ["", "no confidence", ""]
    assert [len(trail.answers) for trail in found] == [3, 1, 3]


def test_bad_rows_skip_accepts_failed_trails(source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "trails.jsonl"
    with caplog.at_level(logging.WARNING, "srpo"):
        assert revise_file(lambda: failing({("1+0=", 0)}), source, str(out), ALL, bad_rows="skip") == (9, 0)
        assert "1 of 9 prompts failed: 1 × HTTP 400: too long" in caplog.text
        assert len(read_trails(out)) == 8
        assert "1 of 9 trails failed and are left out" in caplog.text


def test_prompts_without_room_are_counted_and_not_tried_again(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "trails.jsonl"
    long = ["1" * 60 + "=", "1" * 45 + "="]  # no room for a draft; no room for a revision
    rows = [{"prompt": text} for text in [*PROMPTS[:3], *long, *PROMPTS[3:6]]]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = RevisionSettings(revisions=2, max_new_tokens=14)

    def scripted() -> Reviser:
        Scripted(subject := reviser(), lambda context: "123456", batch_size=2)
        return subject

    for make in (scripted, never):  # the second run draws no trail and reports the same
        with pytest.raises(DataError, match=r"2 of 8 prompts failed: .*a context of .* tokens leaves") as caught:
            revise_file(make, str(source), str(out), settings)
        assert caught.value.exit_code == 65
    assert [len(trail.answers) for trail in trails(out)] == [3, 3, 3, 0, 1, 3, 3, 3]
    assert revise_file(never, str(source), str(out), settings, bad_rows="skip") == (8, 8)
    # Control: a failure of the engine is tried again.
    text = out.read_text("utf-8").replace("impossible: ", "failed: ")
    out.write_text(text, "utf-8")
    with pytest.raises(AssertionError, match="asked for"):
        revise_file(never, str(source), str(out), settings, bad_rows="skip")
