"""A trail: one prompt with its draft and revisions, written to and read from one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from srpo.errors import DataError

FAILED = "failed: "  # another try may succeed
VOTE = "vote"  # all answers are drafts, and the reviser's vote chose
IMPOSSIBLE = "impossible: "  # the item has no room in the model's context


@dataclass(frozen=True)
class Answer:
    """A draft or a revision, with its cost and the policy's decision.

    Attributes:
        text: The answer without its thinking and its terminator.
        tokens: Number of generated answer tokens, terminator included.
        finished: True if the model ended the answer itself; False if the token limit cut it.
        preferred: The model's own p(this answer ≻ the answer it revised), Eq. 9, raw: it may leave [0, 1]. None for a
            draft, and without a reference.
        kept: True if the policy kept the answer; otherwise the answer kept before it remains the result.
        seconds: Wall seconds of the batch divided by its number of rows.
        forward_tokens: Tokens read by forward passes: context, answer, and the tokens that policy and reference scored
            for the confidence. Prefixes cached from the step before count again.
        thinking: The generated text before the answer, `<think>` and `</think>` included; "" without thinking.
        in_hand: Place in the trail of the best answer so far, as a selector chose it (revise/select.py);
            None without a selector: the last kept answer is the result.
    """

    text: str
    tokens: int
    finished: bool = True
    preferred: float | None = None
    kept: bool = True
    seconds: float = 0.0
    forward_tokens: int = 0
    thinking: str = ""
    in_hand: int | None = None

    @property
    def whole(self) -> str:
        """The whole generated text: thinking, then answer."""
        return self.thinking + self.text


@dataclass(frozen=True)
class Trail:
    """A prompt, its draft and its revisions.

    Attributes:
        prompt: Text, or a list of messages.
        answers: The draft first, then one entry per generated revision.
        stopped: Reason for the end of the trail. "revisions": the requested number was reached. "fixed point": greedy
            decoding repeated an answer, so all later revisions are identical. "worse" or "unchanged": the policy
            stopped. "failed: …" with a reason: an engine gave no answer; earlier answers remain, possibly zero.
            "impossible: …" with a reason: the prompt does not fit the model; earlier answers remain.
            "vote": all answers are drafts, and the reviser's vote chose one.
        meta: All other columns of the input row, unchanged.
    """

    prompt: Any
    answers: tuple[Answer, ...]
    stopped: str = "revisions"
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> str:
        """Reason why the draft or a revision is missing; empty if every answer was drawn."""
        found = [prefix for prefix in (FAILED, IMPOSSIBLE) if self.stopped.startswith(prefix)]
        return self.stopped.removeprefix(found[0]) if found else ""

    @property
    def can_retry(self) -> bool:
        """True if an engine failed to give an answer, so that another try may succeed."""
        return self.stopped.startswith(FAILED)

    def after(self, revisions: int) -> Answer:
        """Returns the answer of this prompt that is used after a number of revisions (0 is the draft).

        That is the answer that a selector chose among those so far, or without a selector the last one kept.

        Example:
            >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2), Answer("7", 2, kept=False)))
            >>> [trail.after(k).text for k in range(4)]
            ['5', '4', '4', '4']
        """
        place = self.answers[: revisions + 1][-1].in_hand
        return self.last_kept(revisions) if place is None else self.answers[place]

    def last_kept(self, revisions: int) -> Answer:
        """Returns the last answer that the policy kept among the draft and the first `revisions` revisions.

        The choice of a selector has no effect.
        """
        kept = self.answers[0]
        for answer in self.answers[1 : revisions + 1]:
            if answer.kept:
                kept = answer
        return kept

    def to_json(self) -> str:
        """Returns the prompt, the draft and the revisions as one line of JSON, without a newline."""
        row = asdict(self)
        for answer in row["answers"]:
            if not answer["thinking"]:
                del answer["thinking"]
            if answer["in_hand"] is None:
                del answer["in_hand"]
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str, *, where: str = "") -> Trail:
        """Makes the trail (a prompt with its draft and revisions) from a line that `to_json` wrote.

        Raises:
            DataError: The line is not a trail; the message names `where`, the place of the line.
        """
        expected = "a line written by `srpo revise`"
        try:
            row = json.loads(line)
            answers = tuple(Answer(**answer) for answer in row["answers"])
            trail = cls(row["prompt"], answers, row["stopped"], row.get("meta", {}))
            texts = (trail.stopped, *(text for answer in answers for text in (answer.text, answer.thinking)))
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("text is expected in stopped and in each answer")
            if not isinstance(trail.meta, dict):
                raise TypeError("an object is expected in meta")
            for place in (answer.in_hand for answer in answers):
                if place is not None and not (type(place) is int and 0 <= place < len(answers)):
                    raise TypeError(f"the place of an answer is expected in in_hand, not {place!r}")
        except KeyError as error:
            raise DataError(f"not a trail: no {error}", where=where, expected=expected) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"not a trail: {error}", where=where, expected=expected) from None
        if not answers and not trail.failed:
            raise DataError("a trail without a draft", where=where, expected=expected)
        return trail
