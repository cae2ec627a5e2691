"""Chunks through several processes: the same results in the same order, and no reading ahead without bound."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from srpo.errors import DataError
from srpo.sequences.parallel import ALONE, CHUNK, mapped, processes


def squares(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


def fails(numbers: list[int]) -> list[int]:
    if ALONE + 1 in numbers:
        raise DataError("no such number", where="row 7")
    return numbers


needs_copies = pytest.mark.skipif(processes(2) == 1, reason="processes cannot be copied here")


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, ALONE, ALONE + 3 * CHUNK + 5])
@pytest.mark.parametrize("num_proc", [1, 2])
def test_in_order_and_whole(count: int, num_proc: int) -> None:
    found = list(mapped(squares, range(count), num_proc=num_proc))
    assert [number for chunk in found for number in chunk] == squares(list(range(count)))
    assert all(len(chunk) == CHUNK for chunk in found[:-1])


@needs_copies
def test_processes_start_only_for_enough_rows() -> None:
    def here(_: list[int]) -> int:
        return os.getpid()

    assert set(mapped(here, range(ALONE - 1), num_proc=2)) == {os.getpid()}
    assert os.getpid() not in set(mapped(here, range(ALONE + 1), num_proc=2))


@needs_copies
def test_reading_ahead_is_bounded() -> None:
    taken = 0

    def counted() -> Iterator[int]:
        nonlocal taken
        for number in range(100 * CHUNK):
            taken += 1
            yield number

    results = mapped(squares, counted(), num_proc=2)
    next(results)
    assert taken <= (3 * 2 + 2) * CHUNK
    results.close()  # type: ignore[attr-defined]


@needs_copies
def test_an_error_in_a_worker_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with pytest.raises(DataError, match="row 7: no such number"):
        list(mapped(fails, range(ALONE + CHUNK), num_proc=2))
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
