"""Differences between two versions of an answer, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Change = Literal["same", "removed", "added"]
Opcode = tuple[str, int, int, int, int]


class Piece(NamedTuple):
    """A piece of text and its change: "same" in both versions, "removed" from the old or "added" in the new one."""

    text: str
    change: Change


def diff(old: str, new: str) -> list[Piece]:
    """Splits two versions of a text into the pieces that are the same, removed from `old` and added in `new`.

    Texts with white space are compared by words. Single words are compared by letters: position by position if they
    are equally long, so that equal digits in different places do not count as the same.

    Example:
        >>> diff("the cat sat", "the dog sat down")[1:3]
        [Piece(text='cat', change='removed'), Piece(text='dog', change='added')]
        >>> [piece.text for piece in diff("0911", "0811")]
        ['0', '9', '8', '11']
    """
    if re.search(r"\s", old + new):
        ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    else:
        ours, theirs = list(old), list(new)
        if len(old) == len(new):
            return _joined(_by_position(old, new))
    opcodes = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    return _joined((kind, "".join(ours[a:b]), "".join(theirs[c:d])) for kind, a, b, c, d in opcodes)


def _by_position(old: str, new: str) -> Iterator[tuple[str, str, str]]:
    for a, b in zip(old, new, strict=True):
        yield ("equal" if a == b else "replace"), a, b


def _joined(changes: Iterator[tuple[str, str, str]]) -> list[Piece]:
    """Makes pieces of changes (kind, old text, new text); neighbouring changes and the space between them merge."""
    merged: list[tuple[bool, str, str]] = []
    for kind, old, new in changes:
        equal = kind == "equal"
        if len(merged) > 1 and not equal and merged[-1][0] and not merged[-1][1].strip():
            (_, before, after), (_, space, _) = merged[-2], merged[-1]
            merged[-2:] = [(False, before + space + old, after + space + new)]
        elif merged and merged[-1][0] == equal:
            _, before, after = merged[-1]
            merged[-1] = (equal, before + old, after + new)
        else:
            merged.append((equal, old, new))
    pieces: list[Piece] = []
    for equal, old, new in merged:
        changed = [Piece(old, "removed"), Piece(new, "added")]
        pieces += [Piece(new, "same")] if equal else [piece for piece in changed if piece.text]
    return pieces
