"""Edit distance and longest common subsequence, bit-parallel.

Each column of the textbook table is held in the bits of one integer, so that a step costs a few integer operations
instead of a loop over cells: Myers (1999) in the form of Hyyrö (2003) for the edit distance, Hyyrö (2004) for the
longest common subsequence. Python's integers have no fixed width, so texts may have any length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Returns the smallest number of insertions, deletions and substitutions of items that turn `a` into `b`.

    Example:
        >>> edit_distance("a tidy answer".split(), "a short tidy reply".split())
        2
        >>> edit_distance("", "abc")
        3
    """
    if not a:
        return len(b)
    places = _places(a)
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)  # bits of table rows where a column increases, and decreases, by one
    for symbol in b:
        equal = places.get(symbol, 0)
        level = (((equal & rises) + rises) ^ rises) | equal | falls
        right_up, right_down = falls | ~(level | rises) & every, rises & level
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1 | 1) & every
        right_down = right_down << 1 & every
        rises, falls = right_down | ~(level | right_up) & every, right_up & level
    return distance


def common_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Returns the length of the longest common subsequence: most items of `a` that occur in `b` in the same order.

    Example:
        >>> common_length("a tidy answer".split(), "a short tidy reply".split())
        2
    """
    places = _places(a)
    every = open_ = (1 << len(a)) - 1
    for symbol in b:
        equal = places.get(symbol, 0)
        taken = open_ & equal
        open_ = ((open_ + taken) | (open_ - taken)) & every
    return len(a) - open_.bit_count()


def _places(a: Sequence[Hashable]) -> dict[Hashable, int]:
    """Item → integer whose bit i is set where the item has position i in `a`."""
    places: dict[Hashable, int] = {}
    for place, symbol in enumerate(a):
        places[symbol] = places.get(symbol, 0) | 1 << place
    return places
