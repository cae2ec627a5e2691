"""What can be said of answers without a judge: how long they are, how far from the draft, how much of it they keep.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
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
    """Words, unless no text has any space: digits and scripts without spaces are counted by the character."""
    return "words" if any(len(text.split()) > 1 for text in texts) else "characters"


def units(text: str, unit: Unit) -> Sequence[str]:
    """The text cut up."""
    return text.split() if unit == "words" else text.strip()


def edited(before: str, after: str, unit: Unit) -> float:
    """Edit distance in shares of the longer text: 0 for equal ones, 1 where nothing is left.

    Example:
        >>> edited("a tidy answer", "a tidy reply, at last", "words")
        0.6
    """
    return _both(before, after, unit)[0]


def copied(before: str, after: str, unit: Unit) -> float:
    """Share of `after` that stands in `before` in the same order; 1 for an empty text.

    Example:
        >>> copied("a tidy answer", "a tidy reply, at last", "words")
        0.4
    """
    return _both(before, after, unit)[1]


def measured(texts: Sequence[Sequence[str]], unit: Unit) -> dict[str, Tensor]:
    """[N, R] of each measure.

    Returns:
        changed: 1 where the answer differs from the one before, 0 for the draft.
        length: in that unit.
        edited, copied: against the draft.
    """
    rows: dict[str, list[list[float]]] = {"changed": [], "edited": [], "copied": []}
    for answers in texts:
        draft = answers[0]
        both = [_both(draft, answer, unit) for answer in answers]
        rows["changed"].append([0.0, *(float(new != old) for old, new in pairwise(answers))])
        rows["edited"].append([edits for edits, _ in both])
        rows["copied"].append([kept for _, kept in both])
    found = {name: torch.tensor(each, dtype=torch.float64) for name, each in rows.items()}
    return found | {"length": lengths(texts, unit)}


def lengths(texts: Sequence[Sequence[str]], unit: Unit) -> Tensor:
    """[N, R] in that unit."""
    rows = [[float(len(units(answer, unit))) for answer in answers] for answers in texts]
    return torch.tensor(rows, dtype=torch.float64)


@lru_cache(maxsize=4096)  # most revisions repeat an answer
def _both(before: str, after: str, unit: Unit) -> tuple[float, float]:
    if before == after:
        return 0.0, 1.0
    a, b = units(before, unit), units(after, unit)
    longer = max(len(a), len(b))
    return edit_distance(a, b) / longer if longer else 0.0, common_length(a, b) / len(b) if b else 1.0
