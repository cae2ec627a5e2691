"""Groups the reasons why rows were rejected: reasons that differ only in numbers are one group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PLACES = 5  # number of rows named per reason
SHOWN = 5  # number of reasons named in a sentence
_VARYING = re.compile(r"(\d+|\[[^\]]*\])")


@dataclass
class Reason:
    """One reason that several rejected rows share.

    Attributes:
        reason: the text, with … for numbers that differ between the rows.
        count: number of rows.
        where: places of the first few rows.
    """

    reason: str
    count: int = 0
    where: list[str] = field(default_factory=list)


class Reasons:
    """Collects the reasons of rejected rows, and groups those that differ only in numbers."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[list[str], Reason]] = {}

    def add(self, where: str, reason: str) -> None:
        """Counts one rejected row; `where` is its place, such as `file:line`."""
        new = _VARYING.split(reason)
        pieces, group = self._found.setdefault(_VARYING.sub("…", reason), (new, Reason(reason)))
        pieces[:] = [old if old == piece else "…" for old, piece in zip(pieces, new, strict=True)]
        group.reason = "".join(pieces)
        group.count += 1
        if len(group.where) < PLACES:
            group.where.append(where)

    def sorted(self) -> list[Reason]:
        """Returns the groups of reasons for rejected rows, the most frequent first."""
        return sorted((each for _, each in self._found.values()), key=lambda each: -each.count)


def reasons(rejects: Iterable[tuple[str, str]]) -> str:
    """Returns one sentence with the reasons of (place, reason) rejects and their counts, the most frequent first.

    Example:
        >>> reasons([("a:1", "9 tokens, over 8"), ("a:2", "is empty"), ("a:3", "12 tokens, over 8")])
        '2 × … tokens, over 8, 1 × is empty'
    """
    found = Reasons()
    for where, reason in rejects:
        found.add(where, reason)
    groups = found.sorted()
    rest = f", {sum(each.count for each in groups[SHOWN:])} others" if groups[SHOWN:] else ""
    return ", ".join(f"{each.count} × {each.reason}" for each in groups[:SHOWN]) + rest
