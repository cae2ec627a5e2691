"""What drafting and revising one prompt left behind: a value, written to and read from one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from srpo.errors import DataError

FAILED = "failed: "


@dataclass(frozen=True)
class Answer:
    """One text the model wrote on the way.

    Attributes:
        text: the answer without its terminator.
        tokens: answer tokens generated, terminator included.
        finished: the model ended the answer itself, rather than running into the token limit.
        preferred: the model's own p(this ≻ the answer it revised), Eq. 9, raw (it may leave [0, 1]); None for a draft
            and where no reference was at hand.
        kept: the policy took it; a revision that is not kept leaves the answer before it in place.
        seconds: wall seconds of the batch that produced it, divided by the batch's rows.
        forward_tokens: tokens read by forward passes to get it: context and answer, and for its confidence what policy
            and reference had to score. Prefixes kept from the step before are counted again.
    """

    text: str
    tokens: int
    finished: bool = True
    preferred: float | None = None
    kept: bool = True
    seconds: float = 0.0
    forward_tokens: int = 0


@dataclass(frozen=True)
class Trail:
    """A prompt, its draft and its revisions.

    Attributes:
        prompt: what was asked: text, or a list of messages.
        answers: the draft first, then one entry per revision actually generated.
        stopped: why there are no more: "revisions" (as many as asked for), "fixed point" (greedy decoding repeated an
            answer, so every later revision is identical), what the policy stops at, "worse" (a revision that the model
            does not prefer) or "unchanged" (one that repeats its draft), or "failed: …" with a reason (a server could
            not answer; the answers before that stand, and there may be none).
        meta: whatever else stood in the input row; carried through untouched.
    """

    prompt: Any
    answers: tuple[Answer, ...]
    stopped: str = "revisions"
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> str:
        """Why the trail could not be finished; empty if it was."""
        return self.stopped.removeprefix(FAILED) if self.stopped.startswith(FAILED) else ""

    def after(self, revisions: int) -> Answer:
        """The answer in hand after that many revisions (0 is the draft): the last one kept so far.

        Example:
            >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2), Answer("7", 2, kept=False)))
            >>> [trail.after(k).text for k in range(4)]
            ['5', '4', '4', '4']
        """
        in_hand = self.answers[0]
        for answer in self.answers[1 : revisions + 1]:
            if answer.kept:
                in_hand = answer
        return in_hand

    def to_json(self) -> str:
        """One line of JSON, without a newline."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str, *, where: str = "") -> Trail:
        """Reads what `to_json` wrote.

        Raises:
            DataError: the line is not a trail; `where` names it.
        """
        expected = "a line written by `srpo revise`"
        try:
            row = json.loads(line)
            answers = tuple(Answer(**answer) for answer in row["answers"])
            trail = cls(row["prompt"], answers, row["stopped"], row.get("meta", {}))
            if not all(isinstance(text, str) for text in (trail.stopped, *(answer.text for answer in answers))):
                raise TypeError("text is expected in stopped and in each answer")
            if not isinstance(trail.meta, dict):
                raise TypeError("an object is expected in meta")
        except KeyError as error:
            raise DataError(f"not a trail: no {error}", where=where, expected=expected) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"not a trail: {error}", where=where, expected=expected) from None
        if not answers and not trail.failed:
            raise DataError("a trail without a draft", where=where, expected=expected)
        return trail
