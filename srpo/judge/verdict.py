"""Two answers to one prompt, and a judge's verdict on them.

A score is 1 where the first answer is better, ½ for a tie, 0 where the second is better, and None where the judge gave
no readable verdict. An unscored pair is not a tie: it is counted, reported and left out of every mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, Protocol

from srpo.data.values import Prompt
from srpo.errors import DataError


@dataclass(frozen=True)
class AnswerPair:
    """A prompt and two answers to compare.

    Attributes:
        prompt: text, or the messages before the answers.
        first, second: the answers; their order carries no meaning to a judge.
        gold: the reference answer, for judges that score each answer against it; language models never see it.
    """

    prompt: Prompt
    first: str
    second: str
    gold: object = None

    @property
    def identical(self) -> bool:
        """True if both texts are equal; such a pair ties without asking the judge."""
        return self.first == self.second


class OrderVerdict(NamedTuple):
    """The verdict for one order of presentation.

    Attributes:
        score: as seen from `AnswerPair.first`, whichever answer was shown first.
        label: the judge's own word.
        reason: why `score` is None; otherwise empty.
    """

    score: float | None
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        score: 1 first better, ½ tie, 0 second better, None unscored.
        orders: verdicts with `first` shown first, then with `second` shown first; shorter if an order was not asked.
        reason: why the pair is unscored, or why it ties without the judge calling it a tie; otherwise empty.
        again: scores from repeated runs of the same comparison; empty if it was asked once.
    """

    score: float | None
    orders: tuple[OrderVerdict, ...] = ()
    reason: str = ""
    again: tuple[float | None, ...] = ()

    @property
    def flipped(self) -> bool | None:
        """True if the two orders disagree; None unless both were asked and scored."""
        scores = [order.score for order in self.orders]
        return None if len(scores) != 2 or None in scores else scores[0] != scores[1]

    @property
    def contradicted(self) -> float | None:
        """Share of the pairs of runs with different verdicts; None with fewer than two readable runs."""
        read = [score for score in (self.score, *self.again) if score is not None]
        pairs = list(combinations(read, 2))
        return sum(a != b for a, b in pairs) / len(pairs) if pairs else None


class PairJudge(Protocol):
    """A judge that compares two answers.

    Attributes:
        identity: everything its verdicts depend on, in one line without secrets: name, model, template, temperature.
            Judges with equal identities share cached verdicts.
    """

    @property
    def identity(self) -> str: ...

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields one verdict for each pair, in order."""
        ...


TIE = Verdict(0.5, reason="identical texts")


def combine(orders: Sequence[OrderVerdict]) -> Verdict:
    """Combines the orders: equal scores keep their score, different scores tie, one unscored order leaves it unscored.

    A judge that prefers the answer shown first in both orders has compared positions, not answers.

    Example:
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(1.0, "B")]).score
        1.0
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(0.0, "A")]).score
        0.5
        >>> combine([OrderVerdict(1.0, "A"), OrderVerdict(None, reason="no verdict")]).reason
        'no verdict'
    """
    orders = tuple(orders)
    unscored = [order.reason or "unscored" for order in orders if order.score is None]
    if unscored or not orders:
        return Verdict(None, orders, "; ".join(dict.fromkeys(unscored)) or "not asked")
    agreed = all(order.score == orders[0].score for order in orders)
    return Verdict(orders[0].score, orders) if agreed else Verdict(0.5, orders, "the orders disagree")


def expect_verdicts(comparisons: Sequence[AnswerPair], verdicts: Sequence[Verdict], judge: str) -> None:
    """Checks that a judge scored at least one pair with different texts.

    Raises:
        DataError: every such pair is unscored; the message has the commonest reason.
    """
    asked = [verdict for pair, verdict in zip(comparisons, verdicts, strict=True) if not pair.identical]
    if asked and all(verdict.score is None for verdict in asked):
        [(reason, _)] = Counter(verdict.reason for verdict in asked).most_common(1)
        raise DataError(
            f"not one of {len(asked)} verdicts could be read: {reason}",
            where=judge,
            expected="a judge that says which answer is better",
        )


def prefer_higher(pair: AnswerPair, first: float, second: float, form: str = "g") -> Verdict:
    """The verdict from two separate scores: the higher one wins, equal scores tie. The order shown cannot matter.

    Args:
        form: format of the scores in the verdict's label.
    """
    score = 0.5 + 0.5 * ((first > second) - (first < second))
    return TIE if pair.identical else combine([OrderVerdict(score, f"{first:{form}} {second:{form}}")])
