"""People as judges: their votes on two answers, from a file.

A file of votes has a line per comparison, `{"prompt": …, "first": …, "second": …, "vote": "first"}`, with "first",
"second" or "tie" as the vote, or null where nobody has voted yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from srpo.data.read import jsonl_rows
from srpo.disk import write_file
from srpo.errors import DataError
from srpo.judge.verdict import TIE, AnswerPair, Verdict

VOTES = "votes:"
SCORES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class Votes:
    """Votes from a file as a judge; a comparison nobody has voted on is unscored.

    Raises:
        InputError: the file cannot be read.
        DataError: a line that is no vote, or two that contradict each other.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._votes: dict[tuple[str, str, str], float] = {}
        for where, row in jsonl_rows(path):
            self._take(where, row)

    @property
    def identity(self) -> str:
        """The file's name; its place may change."""
        return f"votes in {Path(self.path).name}"

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """The votes on these, whichever way round they were shown."""
        for each in comparisons:
            score = self._votes.get(_key(each.prompt, each.first, each.second))
            if each.identical:
                yield TIE
            else:
                yield Verdict(score) if score is not None else Verdict(None, reason="no vote")

    def _take(self, where: str, row: Any) -> None:
        expected = "prompt, first, second and vote: first, second, tie or null"
        if not isinstance(row, dict) or not {"prompt", "first", "second", "vote"} <= set(row):
            raise DataError("not a vote", where=where, expected=expected)
        if row["vote"] is None:
            return
        if row["vote"] not in SCORES:
            raise DataError(f"vote {row['vote']!r}", where=where, expected=expected)
        score = SCORES[row["vote"]]
        prompt, first, second = row["prompt"], row["first"], row["second"]
        for key, value in ((_key(prompt, first, second), score), (_key(prompt, second, first), 1 - score)):
            if self._votes.setdefault(key, value) != value:
                fix = "keep one of them, or call it a tie"
                raise DataError("contradicts an earlier vote on the same answers", where=where, fix=fix)


def write_questions(comparisons: Iterable[AnswerPair], target: str) -> None:
    """A file for people to vote in.

    Raises:
        OutputError: it cannot be written.
    """
    lines = []
    for said in comparisons:
        lines.append({"prompt": said.prompt, "first": said.first, "second": said.second, "vote": None})
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_file(Path(target), written.encode(), flag="--output")


def _key(prompt: Any, first: str, second: str) -> tuple[str, str, str]:
    return json.dumps(prompt, sort_keys=True), first, second
