"""Stages of a longer run: each step has its own folder, is done once, and is reused while its settings are equal."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import RawArray, get_context
from pathlib import Path
from typing import Any, TypeVar

STAGE_FILE = "stage.json"
Job = TypeVar("Job")
Result = TypeVar("Result")


def run_stage(folder: Path, settings: dict[str, Any], work: Callable[[Path], None]) -> float:
    """Runs one step of a longer run in an empty folder, unless the folder already has its result for these settings.

    The folder is marked as done last, so an interrupted stage is done again.

    Args:
        settings: everything that the result depends on, as JSON values.
        work: writes its files into the folder it is called with.

    Returns:
        Wall seconds of the work; 0.0 if the stage was reused.
    """
    if is_done(folder, settings):
        return 0.0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    work(folder)
    seconds = time.perf_counter() - began
    (folder / STAGE_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    return seconds


def is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """True if the folder holds a finished step of a run with exactly these settings."""
    try:
        return json.loads((folder / STAGE_FILE).read_text("utf-8")) == json.loads(json.dumps(settings))
    except (OSError, ValueError):
        return False


class Counts:
    """For each step of a run the number of completed and of all items, in memory shared with spawned processes.

    Each number has one writer and no lock, so that a killed process blocks nobody.

    Args:
        stages: names of the stages.

    Example:
        >>> counts = Counts(["pairs"])
        >>> counts["pairs"]
        (0, 0)
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self.place = {stage: 2 * at for at, stage in enumerate(stages)}
        self._numbers = RawArray("q", 2 * len(self.place))

    def __getitem__(self, stage: str) -> tuple[int, int]:
        done, total = self._numbers[self.place[stage] : self.place[stage] + 2]
        return done, total

    def __setitem__(self, stage: str, count: tuple[int, int]) -> None:
        self._numbers[self.place[stage] : self.place[stage] + 2] = list(count)


_shown: list[Counts] = []  # at most one: the counts that this process writes


def share(counts: Counts | None) -> None:
    """Selects the `Counts` that `report` writes to in this process; None selects none, so `report` does nothing."""
    _shown[:] = [counts] if counts is not None else []


def report(stage: str, done: int, total: int) -> None:
    """Records how many items of the step `stage` are done, for the display; a step that is not displayed is ignored."""
    for counts in _shown:
        if stage in counts.place:
            counts[stage] = (done, total)


def side_by_side(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    counts: Counts | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yields `function(job)` for each job, in order, computed in parallel by spawned processes.

    Args:
        counts: the counts that `report` writes while a job is computed.
        workers: number of processes; None is one per core, 1 computes in this process.
    """
    jobs = list(jobs)
    workers = max(1, min(len(jobs), workers or os.cpu_count() or 1))
    if workers == 1:
        share(counts)
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=share, initargs=(counts,)) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
