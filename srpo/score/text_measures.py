"""Measures of answers that need no judge: length, edit distance to the draft, and the share copied from the draft.

Axes: N prompts, R = revisions + 1 newest kept answers, the draft first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from srpo.statistics.edit_distance import common_length, edit_distance

Unit = Literal["words", "characters"]


def unit_of(texts: Iterable[str]) -> Unit:
    """Returns the unit to measure texts in: "words" if any text has several, else "characters", as for digits."""
    return "words" if any(len(text.split()) > 1 for text in texts) else "characters"


def units(text: str, unit: Unit) -> Sequence[str]:
    """Returns the words of a text as a list, or for the unit "characters" the text without white space at its ends."""
    return text.split() if unit == "words" else text.strip()


def edited(before: str, after: str, unit: Unit) -> float:
    """Returns the edit distance between two texts, in `unit`, as a share of the longer text's length: 0 if equal.

    Example:
        >>> edited("a tidy answer", "a tidy reply, at last", "words")
        0.6
    """
    return _edited_and_copied(before, after, unit)[0]


def copied(before: str, after: str, unit: Unit) -> float:
    """Returns the share of `after`, in `unit`, that appears in `before` in the same order; 1 if `after` is empty.

    Example:
        >>> copied("a tidy answer", "a tidy reply, at last", "words")
        0.4
    """
    return _edited_and_copied(before, after, unit)[1]


def measured(texts: Sequence[Sequence[str]], unit: Unit) -> dict[str, Tensor]:
    """Measures newest kept answers, [N prompts][R answers]; returns measure → [N, R] float64 tensor.

    Returns:
        changed: 1 where the answer differs from the previous one, 0 for the draft.
        length: length of the answer in `unit`.
        edited: edit distance to the draft, as a share of the longer text's length.
        copied: share of the answer that is copied from the draft.
    """
    length_NR = lengths(texts, unit)
    rows: dict[str, list[list[float]]] = {"changed": [], "edited": [], "copied": []}
    for answers in texts:
        both = [_edited_and_copied(answers[0], answer, unit) for answer in answers]
        rows["changed"].append([0.0, *(float(new != old) for old, new in pairwise(answers))])
        rows["edited"].append([edits for edits, _ in both])
        rows["copied"].append([kept for _, kept in both])
    found = {name: torch.tensor(each, dtype=torch.float64) for name, each in rows.items()}
    return found | {"length": length_NR}


def lengths(texts: Sequence[Sequence[str]], unit: Unit) -> Tensor:
    """Returns the length in `unit` of each of the [N][R] texts, as an [N, R] tensor."""
    rows = [[float(len(units(answer, unit))) for answer in answers] for answers in texts]
    return torch.tensor(rows, dtype=torch.float64)


@lru_cache(maxsize=4096)  # a cache, because most revisions repeat an answer
def _edited_and_copied(before: str, after: str, unit: Unit) -> tuple[float, float]:
    if before == after:
        return 0.0, 1.0
    a, b = units(before, unit), units(after, unit)
    longer = max(len(a), len(b))
    return edit_distance(a, b) / longer if longer else 0.0, common_length(a, b) / len(b) if b else 1.0
