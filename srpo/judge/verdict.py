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
    """A prompt and two answers to it that a judge compares.

    Attributes:
        prompt: text, or the list of chat messages before the answer.
        first, second: texts of the answers; a judge must not favour one for its place.
        gold: the reference answer, for judges that score each answer against it; language models never see it.
    """

    prompt: Prompt
    first: str
    second: str
    gold: object = None

    @property
    def identical(self) -> bool:
        """True if the texts of both answers are equal; such a pair is a tie, and no judge is asked."""
        return self.first == self.second


class OrderVerdict(NamedTuple):
    """A judge's verdict on two answers that were shown in one order.

    Attributes:
        score: 1 if `AnswerPair.first` is better, whichever answer was shown first; ½ tie, 0 worse, None unscored.
        label: the verdict in the judge's own word, such as "A".
        reason: why `score` is None; empty if there is a score.
    """

    score: float | None
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one pair of answers.

    Attributes:
        score: 1 if the first answer is better, ½ for a tie, 0 if the second is better, None if unscored.
        orders: verdict with the first answer shown first, then with the second shown first; fewer, or empty, if the
            judge was not asked in both orders.
        reason: why the pair is unscored, or why it ties without the judge calling it a tie; otherwise empty.
        again: scores from repeated runs of the same comparison; empty if it was asked once.
    """

    score: float | None
    orders: tuple[OrderVerdict, ...] = ()
    reason: str = ""
    again: tuple[float | None, ...] = ()

    @property
    def flipped(self) -> bool | None:
        """True if the verdicts of the two orders of showing differ; None unless both orders have a score."""
        scores = [order.score for order in self.orders]
        return None if len(scores) != 2 or None in scores else scores[0] != scores[1]

    @property
    def contradicted(self) -> float | None:
        """Share of the pairs of runs of this comparison whose verdicts differ; None with fewer than two scored runs."""
        read = [score for score in (self.score, *self.again) if score is not None]
        pairs = list(combinations(read, 2))
        return sum(a != b for a, b in pairs) / len(pairs) if pairs else None


class PairJudge(Protocol):
    """The protocol of a judge that compares two answers.

    Attributes:
        identity: everything its verdicts depend on, in one line without secrets: name, model, template, temperature.
            Judges with equal identities share cached verdicts.
    """

    @property
    def identity(self) -> str: ...

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields the judge's verdict on each pair of answers, in order."""
        ...


TIE = Verdict(0.5, reason="identical texts")


def combine(orders: Sequence[OrderVerdict]) -> Verdict:
    """Returns one verdict from a judge's verdicts on both orders of showing two answers: a tie if their scores differ.

    A judge that prefers the answer shown first in both orders has compared positions, not answers. The verdict is
    unscored if one of `orders` is, or if there are none.

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
    """Checks that a judge scored at least one of the pairs with different texts; `judge` is its name for the error.

    Raises:
        DataError: every pair with different texts is unscored; the message has the commonest reason.
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
    """Returns the verdict on two answers that were scored separately: the higher score wins, equal scores tie.

    Args:
        first, second: scores of the first and the second answer.
        form: format of the scores in the verdict's label.
    """
    score = 0.5 + 0.5 * ((first > second) - (first < second))
    return TIE if pair.identical else combine([OrderVerdict(score, f"{first:{form}} {second:{form}}")])
