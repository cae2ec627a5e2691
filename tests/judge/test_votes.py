"""People's votes from a file, and cached verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from srpo.errors import DataError, InputError
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.judge.verdict_cache import CachingJudge
from srpo.judge.votes import Votes, write_questions
from tests.judge.pair_judges import Scripted, first_shown


def votes(path: Path, *rows: dict[str, Any]) -> Votes:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Votes(str(path))


def vote(first: str, second: str, said: str | None, prompt: Any = "p") -> dict[str, Any]:
    return {"prompt": prompt, "first": first, "second": second, "vote": said}


def test_a_vote_counts_for_the_exchanged_pair_too(tmp_path: Path) -> None:
    judge = votes(
        tmp_path / "v.jsonl",
        vote("a", "b", "first"),
        vote("c", "d", "tie"),
        vote("e", "f", None),
        vote("a", "b", "second", prompt=[{"role": "user", "content": "p"}]),
    )
    asked = [("a", "b"), ("b", "a"), ("c", "d"), ("e", "f"), ("x", "y"), ("z", "z")]
    said = list(judge.compare(AnswerPair("p", *each) for each in asked))
    assert [verdict.score for verdict in said] == [1.0, 0.0, 0.5, None, None, 0.5]
    assert said[3].reason == "no vote"
    chat = AnswerPair([{"role": "user", "content": "p"}], "a", "b")
    assert [verdict.score for verdict in judge.compare([chat])] == [0.0]


def test_invalid_votes_are_errors_with_their_line(tmp_path: Path) -> None:
    for row, said in ((vote("a", "b", "left"), "vote 'left'"), ({"prompt": "p"}, "not a vote")):
        with pytest.raises(DataError, match=rf"v\.jsonl:1: {said}"):
            votes(tmp_path / "v.jsonl", row)
    with pytest.raises(DataError, match=r"v\.jsonl:2: contradicts"):
        votes(tmp_path / "v.jsonl", vote("a", "b", "first"), vote("b", "a", "first"))
    with pytest.raises(InputError):
        Votes(str(tmp_path / "none.jsonl"))


def test_vote_files_are_written_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    write_questions([AnswerPair("p", "a", "b")], str(file))
    (row,) = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert row == vote("a", "b", None)
    assert next(votes(file, row | {"vote": "second"}).compare([AnswerPair("p", "a", "b")])).score == 0.0


class Counting:
    """Prefers the first, has no verdict on "?", and stops the world after some questions."""

    identity = "counting"

    def __init__(self, stops_after: int = 10**9) -> None:
        self.asked: list[str] = []
        self.stops_after = stops_after

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        for each in comparisons:
            if len(self.asked) == self.stops_after:
                raise KeyboardInterrupt
            self.asked.append(each.first)
            yield Verdict(None, reason="silent") if each.first == "?" else Verdict(1.0)


def test_verdicts_are_cached_and_unscored_pairs_asked_again(tmp_path: Path) -> None:
    asked = [AnswerPair("p", text, "other") for text in ("a", "?", "b", "c")]
    stopped = Counting(stops_after=3)
    with pytest.raises(KeyboardInterrupt):
        list(CachingJudge(stopped, tmp_path / "v").compare(asked))
    again = Counting()
    scores = [verdict.score for verdict in CachingJudge(again, tmp_path / "v").compare(asked)]
    assert (stopped.asked, again.asked) == (["a", "?", "b"], ["?", "c"])
    assert scores == [1.0, None, 1.0, 1.0]
    forgetful = Counting()  # without the file, everything is asked again
    list(CachingJudge(forgetful, tmp_path / "other").compare(asked))
    assert forgetful.asked == ["a", "?", "b", "c"]


def test_orders_are_cached(tmp_path: Path) -> None:
    asked = [AnswerPair("1", "a", "b"), AnswerPair("2", "b", "a"), AnswerPair("3", "a", "a")]
    said = list(CachingJudge(Scripted(first_shown), tmp_path / "v").compare(asked))
    again = CachingJudge(Counting(), tmp_path / "v")
    again.judge.identity = "scripted"
    assert list(again.compare(asked)) == said
    assert [verdict.flipped for verdict in said] == [True, True, None]
    # A file from before orders were kept still serves, and says that it does not know.
    lines = [json.loads(line) for line in (tmp_path / "v").read_text().splitlines()]
    bare = [{name: value for name, value in line.items() if name != "orders"} for line in lines]
    (tmp_path / "v").write_text("".join(json.dumps(line) + "\n" for line in bare))
    old = CachingJudge(again.judge, tmp_path / "v").compare(asked)
    assert [(verdict.score, verdict.flipped) for verdict in old] == [(0.5, None)] * 3


def test_the_cache_distinguishes_judges_and_gold_answers(tmp_path: Path) -> None:
    list(CachingJudge(Counting(), tmp_path / "v").compare([AnswerPair("p", "a", "b", gold="1")]))
    other = Counting()
    other.identity = "other"
    list(CachingJudge(other, tmp_path / "v").compare([AnswerPair("p", "a", "b", gold="1")]))
    gold = Counting()
    list(CachingJudge(gold, tmp_path / "v").compare([AnswerPair("p", "a", "b", gold="2")]))
    assert other.asked == gold.asked == ["a"]
