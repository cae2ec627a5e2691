"""What a judge of two answers is asked and what it says.

A score is 1 where the first answer is better, ½ for a tie, 0 where the second is, and None where the judge gave no
verdict that can be read. Unscored is not a tie: such a comparison is counted, told, and left out of every mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, Protocol

from srpo.data.values import Prompt


@dataclass(frozen=True)
class AnswerPair:
    """A prompt and two answers to it.

    Attributes:
        prompt: text, or the messages before the answers.
        first: one answer; which of the two it is carries no meaning to a judge.
        second: the other.
        gold: what was wanted, for judges that score each answer against it; language models never see it.
    """

    prompt: Prompt
    first: str
    second: str
    gold: Any = None

    @property
    def identical(self) -> bool:
        """Whether there is nothing to compare; such texts tie, and no judge is asked."""
        return self.first == self.second


class OrderVerdict(NamedTuple):
    """What one showing of the two answers yielded: a score, always as seen from `first`, and the judge's own word.

    An unscored order says in `reason` why.
    """

    score: float | None
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """What became of one comparison.

    Attributes:
        score: 1 first better, ½ tie, 0 second better, None unscored.
        orders: what each order said: `first` shown first, then `second` shown first; fewer where one was not asked.
        reason: why it is unscored, or what made it a tie without the judge having said so; otherwise empty.
        again: scores of the same comparison asked again, in orders as before; empty where it was asked once.
    """

    score: float | None
    orders: tuple[OrderVerdict, ...] = ()
    reason: str = ""
    again: tuple[float | None, ...] = ()

    @property
    def flipped(self) -> bool | None:
        """Whether the two orders disagree; None where they were not both asked and scored."""
        scores = [order.score for order in self.orders]
        return None if len(scores) != 2 or None in scores else scores[0] != scores[1]

    @property
    def contradicted(self) -> float | None:
        """Share of the pairs of runs that differ in their verdict; None where fewer than two could be read.

        Example:
            >>> Verdict(1.0, again=(1.0, 0.5)).contradicted, Verdict(1.0, again=(None,)).contradicted
            (0.6666666666666666, None)
        """
        read = [score for score in (self.score, *self.again) if score is not None]
        pairs = list(combinations(read, 2))
        return sum(a != b for a, b in pairs) / len(pairs) if pairs else None


class PairJudge(Protocol):
    """Anything that compares two answers.

    Attributes:
        identity: what its verdicts depend on, in one line without secrets: name, model, template, temperature. Two
            judges of one identity are one judge.
    """

    @property
    def identity(self) -> str: ...

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """A verdict for each comparison, in their order."""
        ...


def combine(orders: Sequence[OrderVerdict]) -> Verdict:
    """The verdict of all orders asked: their common word, a tie where they disagree, unscored where one is.

    A judge that says "the one shown first" both ways round has said nothing about the answers.

    Example:
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(1.0, "B")]).score
        1.0
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(0.0, "A")]).score
        0.5
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(None, reason="no verdict")]).reason
        'no verdict'
    """
    kept = tuple(orders)
    unscored = [order.reason or "unscored" for order in kept if order.score is None]
    if unscored or not kept:
        return Verdict(None, kept, "; ".join(dict.fromkeys(unscored)) or "not asked")
    agreed = all(order.score == kept[0].score for order in kept)
    return Verdict(kept[0].score, kept) if agreed else Verdict(0.5, kept, "the orders disagree")


TIE = Verdict(0.5, reason="identical texts")
