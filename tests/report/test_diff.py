"""Differences between two versions: worked examples, and no character is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.report.diff import Piece, diff

WORDS = st.text("ab1 <&.\n", max_size=30)


def shown(pieces: list[Piece]) -> str:
    """Removed text in [-…-], added text in {+…+}."""
    marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
    return "".join(marks[piece.change].format(piece.text) for piece in pieces)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("It is 5.", "It is 4.", "It is [-5-]{+4+}."),
        ("the cat sat", "the dog sat down", "the [-cat-]{+dog+} sat{+ down+}"),
        (
            "a big cat ran",
            "a small dog ran",
            "a [-big cat-]{+small dog+} ran",
        ),  # with the space between
        ("0123", "0923", "0[-1-]{+9+}23"),
        ("2345", "1234", "[-2345-]{+1234+}"),  # by position: an alignment would call only the 1 new
        ("0811", "811", "[-0-]811"),  # lengths differ: aligned
        ("", "a", "{+a+}"),
        ("a", "", "[-a-]"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)
def test_worked_examples(old: str, new: str, expected: str) -> None:
    assert shown(diff(old, new)) == expected


@given(WORDS, WORDS)
def test_both_versions_can_be_read_back(old: str, new: str) -> None:
    pieces = diff(old, new)
    assert "".join(piece.text for piece in pieces if piece.change != "removed") == new
    assert "".join(piece.text for piece in pieces if piece.change != "added") == old
    assert all(piece.text for piece in pieces)
    assert old != new or {piece.change for piece in pieces} <= {"same"}
