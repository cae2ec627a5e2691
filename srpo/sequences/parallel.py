"""Applies one function to many chunks of pairs in several processes, in order and in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from threading import Event, Semaphore
from typing import Any, TypeVar

CHUNK = 512  # pairs sent to a worker process at once
ALONE = 4 * CHUNK  # pairs; for fewer, starting processes takes longer than the work
MOST = 8

Item = TypeVar("Item")
Result = TypeVar("Result")

_work: Callable[[list[Any]], Any]


def processes(asked: int | None) -> int:
    """Returns the number of processes to work in: `asked`, or for None one per available core and at most eight.

    The number is 1 where the system cannot fork a process.
    """
    if sys.platform in ("darwin", "win32"):
        return 1
    return asked or min(MOST, len(os.sched_getaffinity(0)))


def mapped(
    work: Callable[[list[Item]], Result], items: Iterable[Item], *, num_proc: int | None = None
) -> Iterator[Result]:
    """Calls `work` on chunks of the items in several processes, and yields its results in order.

    Workers are forks of this process, so `work` may be any function with any state; only items and results are sent. An
    error in a worker is raised here.

    Args:
        work: function of a list of items.
        num_proc: number of processes; None takes one per available core and at most eight.
    """
    remaining = iter(items)
    head = list(islice(remaining, ALONE))
    count = processes(num_proc) if len(head) == ALONE else 1
    if count == 1:
        yield from map(work, _chunks(_chained(head, remaining)))
        return
    ahead, ended = Semaphore(3 * count), Event()  # limits reading ahead: imap alone would read every item first

    def fed() -> Iterator[list[Item]]:
        for chunk in _chunks(_chained(head, remaining)):
            ahead.acquire()
            if ended.is_set():
                return
            yield chunk

    global _work
    _work = work
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked process lacks the threads of its parent
    try:
        with multiprocessing.get_context("fork").Pool(count) as pool:
            try:
                for result in pool.imap(_call, fed()):
                    ahead.release()
                    yield result
            finally:  # wakes the pool's thread, which would otherwise wait in `fed` for ever
                ended.set()
                ahead.release()
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _call(chunk: list[Any]) -> Any:
    return _work(chunk)


def _chained(head: list[Item], rest: Iterator[Item]) -> Iterator[Item]:
    head.reverse()
    while head:
        yield head.pop()
    yield from rest


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk
