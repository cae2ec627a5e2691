"""People as judges: reads and writes files with their votes on two answers.

Each line of a vote file is one comparison, `{"prompt": …, "first": …, "second": …, "vote": "first"}`. The vote is
"first", "second" or "tie", or null until somebody has voted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from srpo.data.read import Prompt, jsonl_rows
from srpo.disk import appending, os_write, write_file
from srpo.errors import DataError
from srpo.judge.verdict import TIE, AnswerPair, Verdict

VOTES = "votes:"
SCORES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class Votes:
    """A judge of two answers whose verdicts are people's votes in a file; a pair without a vote is unscored.

    `path` is the vote file, JSON lines with the keys prompt, first, second and vote.

    Raises:
        InputError: the file cannot be read.
        DataError: a line is not a vote, or two votes contradict each other.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._votes: dict[tuple[str, str, str], float] = {}
        for where, row in jsonl_rows(path):
            self._add(where, row)

    @property
    def identity(self) -> str:
        """Name of the judge in reports: "votes in" and the file's name without its folder, which may change."""
        return f"votes in {Path(self.path).name}"

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields the vote on each pair, in order; a vote on the same answers in the other order counts too."""
        for pair in comparisons:
            score = self._votes.get(_key(pair.prompt, pair.first, pair.second))
            if pair.identical:
                yield TIE
            else:
                yield Verdict(score) if score is not None else Verdict(None, reason="no vote")

    def _add(self, where: str, row: object) -> None:
        expected = "prompt, first, second and vote: first, second, tie or null"
        if not isinstance(row, Mapping) or not {"prompt", "first", "second", "vote"} <= set(row):
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


def append_vote(path: str, prompt: Prompt, first: str, second: str, vote: str, **more: object) -> dict[str, Any]:
    """Appends a person's vote on two answers to a file, and returns its row.

    A vote other than "tie" also has the columns `chosen` and `rejected`, so training reads the file as it is. A
    repeated vote is not written again. Several processes may append to one file.

    Args:
        vote: "first", "second" or "tie".
        more: further columns, such as the model's name.

    Raises:
        DataError: the answers are equal or one is empty, or the vote contradicts an earlier one.
        OutputError: the file cannot be written; it keeps its old length.
    """
    row: dict[str, Any] = {"prompt": prompt, "first": first, "second": second, "vote": vote}
    if vote not in SCORES:
        raise DataError(f"vote {vote!r}", where="vote", expected="first, second or tie")
    if first == second or not (first.strip() and second.strip()):
        raise DataError("two different answers are needed, neither of them empty", where="vote")
    if vote != "tie":
        chosen, rejected = (first, second) if vote == "first" else (second, first)
        row |= {"chosen": chosen, "rejected": rejected}
    with appending(Path(path), "--votes") as file:
        for line in file:
            earlier = _vote_on(line, prompt, first, second)
            if earlier == SCORES[vote]:
                return row
            if earlier is not None:
                fix = "remove the earlier vote, or vote on other answers"
                raise DataError("contradicts an earlier vote on the same answers", where=path, fix=fix)
        os_write(file.fileno(), json.dumps({**row, **more}, ensure_ascii=False).encode() + b"\n")
    return row


def _vote_on(line: bytes, prompt: Prompt, first: str, second: str) -> float | None:
    """The score that a line of a vote file gives to `first` against `second`; None if it is about other answers."""
    try:
        row = json.loads(line)
        score = SCORES[row["vote"]]
        same = row["prompt"] == prompt
        one, other = row["first"], row["second"]
    except (ValueError, KeyError, TypeError):
        return None
    if same and (one, other) == (second, first):
        return 1 - score
    return score if same and (one, other) == (first, second) else None


def write_questions(comparisons: Iterable[AnswerPair], target: str) -> None:
    """Writes the file `target` for people to fill in: one line per comparison, with a null vote.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = ({"prompt": pair.prompt, "first": pair.first, "second": pair.second, "vote": None} for pair in comparisons)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file(Path(target), text.encode(), flag="--output")


def _key(prompt: object, first: str, second: str) -> tuple[str, str, str]:
    return json.dumps(prompt, sort_keys=True), first, second
