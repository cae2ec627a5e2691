"""Judges of two answers with known preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine


@dataclass
class Scripted:
    """Calls `says` in both orders: 1 if the text shown first is better, ½, 0, or None.

    `asked` counts comparisons of different texts.
    """

    says: Callable[[AnswerPair, str, str], float | None]
    identity: str = "scripted"
    asked: int = 0

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        for each in comparisons:
            if each.identical:
                yield TIE
                continue
            self.asked += 1
            ahead, behind = self.says(each, each.first, each.second), self.says(each, each.second, each.first)
            yield combine(
                [
                    OrderVerdict(ahead, reason="mute"),
                    OrderVerdict(None if behind is None else 1 - behind, reason="mute"),
                ]
            )


def honest(comparison: AnswerPair, shown: str, other: str) -> float:
    """Prefers the text with more characters of the gold answer in place."""
    right = [sum(a == b for a, b in zip(text, str(comparison.gold), strict=False)) for text in (shown, other)]
    return 0.5 + 0.5 * ((right[0] > right[1]) - (right[0] < right[1]))


def first_shown(comparison: AnswerPair, shown: str, other: str) -> float:
    """Prefers the text shown first."""
    return 1.0


def longest(comparison: AnswerPair, shown: str, other: str) -> float:
    """Prefers the longer text."""
    return 0.5 + 0.5 * ((len(shown) > len(other)) - (len(shown) < len(other)))


def mute(comparison: AnswerPair, shown: str, other: str) -> None:
    """Gives no verdict."""


def often_mute(comparison: AnswerPair, shown: str, other: str) -> float | None:
    """Honest, but without a verdict on prompts that end in an even digit."""
    return None if comparison.prompt[-2] in "02468" else honest(comparison, shown, other)


LONGEST = Scripted(longest)  # for a command line
