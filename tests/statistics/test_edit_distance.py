"""Edit distance and longest common subsequence against their textbook tables."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.statistics.edit_distance import common_length, edit_distance

TEXTS = st.lists(st.integers(0, 3), max_size=70)


def table(a: list[int], b: list[int]) -> tuple[int, int]:
    """Both numbers, a cell at a time."""
    distance = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            distance[i][j] = min(distance[i - 1][j] + 1, distance[i][j - 1] + 1, distance[i - 1][j - 1] + (x != y))
            common[i][j] = common[i - 1][j - 1] + 1 if x == y else max(common[i - 1][j], common[i][j - 1])
    return distance[-1][-1], common[-1][-1]


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_bit_parallel_distances_equal_the_textbook_tables(a: list[int], b: list[int]) -> None:
    assert (edit_distance(a, b), common_length(a, b)) == table(a, b)


def test_worked_examples() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert common_length("kitten", "sitting") == 4
    assert (edit_distance("", ""), common_length("", "")) == (0, 0)
    assert (edit_distance("abc", ""), common_length("abc", "")) == (3, 0)
