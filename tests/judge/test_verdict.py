"""Verdicts: combining the two orders of one comparison."""

from __future__ import annotations

import itertools

import pytest

from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine


@pytest.mark.parametrize(("a", "b"), itertools.product((1.0, 0.5, 0.0, None), repeat=2))
def test_two_orders_agree_tie_or_leave_it_unscored(a: float | None, b: float | None) -> None:
    verdict = combine([OrderVerdict(a, reason="r"), OrderVerdict(b, reason="r")])
    if a is None or b is None:
        assert (verdict.score, verdict.flipped, verdict.reason) == (None, None, "r")
    else:
        assert verdict.score == (a if a == b else 0.5)
        assert verdict.flipped == (a != b)


def test_one_order_keeps_its_score_and_no_order_is_unscored() -> None:
    assert combine([OrderVerdict(0.0)]) == Verdict(0.0, (OrderVerdict(0.0),))
    assert combine([OrderVerdict(0.0)]).flipped is None
    assert combine([]).score is None


def test_identical_texts_tie() -> None:
    assert AnswerPair("p", "a", "a").identical
    assert not AnswerPair("p", "a", "a ").identical
    assert (TIE.score, TIE.orders, TIE.flipped) == (0.5, (), None)
