"""Progress of long work: a bar with the time left on a terminal or in a notebook, a line every few seconds elsewhere.

A thread keeps the elapsed time moving, so that a slow item is never silent. Everything is shown through the `srpo`
logger at level INFO; a higher level is quiet.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

log = logging.getLogger("srpo")
FIRST, EVERY = 2.0, 5.0  # seconds until the first line, and between lines


class Progress:
    """Context manager that counts completed items and shows them with rate and time left.

    Args:
        unit: the items, in the plural; without a total, the activity ("reading the weights of my-model").
        total: number of items; None where the work cannot be counted.
        done: items completed beforehand.

    Attributes:
        done: items completed so far.
        note: remark printed behind the numbers.

    Example:
        >>> with Progress("prompts", 2) as progress:
        ...     progress.step()
        ...     progress.done
        1
    """

    def __init__(self, unit: str, total: int | None = None, done: int = 0) -> None:
        self.unit, self.total, self.done = unit, total, done
        self._first, self.note = done, ""
        self._display: _Display | None = None

    def __enter__(self) -> Progress:
        self._begun = monotonic()
        if log.isEnabledFor(logging.INFO) and (self.total is None or self.done < self.total):
            self._display = _bar(self) or _Lines(self)
            self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None

    def step(self, count: int = 1, note: str = "") -> None:
        """Adds to the number of completed items.

        Args:
            count: number of items completed now.
            note: a short remark behind the numbers, such as "3 failed"; stays until the next one.
        """
        self.done += count
        self.note = note or self.note
        if self._display is not None:
            self._display.update()

    def line(self) -> str:
        """The progress as one line: done, total, rate, time left."""
        seconds = monotonic() - self._begun
        if self.total is None:
            return f"{self.unit}, {clock(seconds)}"
        parts = [f"{self.done} of {self.total} {self.unit}"]
        if (fresh := self.done - self._first) and self.done < self.total and seconds > 0:
            rate = fresh / seconds
            speed = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
            parts += [speed, f"{clock((self.total - self.done) / rate)} left"]
        elif self.done < self.total:
            parts.append(clock(seconds))
        return ", ".join([*parts, *([self.note] if self.note else [])])


class _Display(Protocol):
    """The protocol of a display of progress: a bar or log lines."""

    def start(self) -> None: ...
    def update(self) -> None: ...
    def stop(self) -> None: ...


class _Lines:
    """Progress as log lines: the first after `FIRST` seconds, then every `EVERY`, and one when all items are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self) -> None:
        if self._progress.done == self._progress.total:
            self._ended.set()
            log.info("srpo: %s", self._progress.line())

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        wait = FIRST
        while not self._ended.wait(wait):
            log.info("srpo: %s", self._progress.line())
            wait = EVERY


class _Bar:
    """Shows progress as a bar of the library rich on standard error; messages appear above the bar."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        self._progress, self._bar = progress, bar

    def start(self) -> None:
        progress = self._progress
        self._bar.start()
        self._task = self._bar.add_task(progress.unit, total=progress.total, completed=progress.done, note="")

    def update(self) -> None:
        self._bar.update(self._task, completed=self._progress.done, note=self._progress.note)

    def stop(self) -> None:
        self._bar.stop()


def _bar(progress: Progress) -> _Bar | None:
    """A progress bar, or None where standard error is neither a terminal that can show a bar nor a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    if not console.is_jupyter and (not console.is_terminal or console.is_dumb_terminal):
        return None
    name, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    if progress.total is None:
        return _Bar(progress, RichProgress(SpinnerColumn(), name, TimeElapsedColumn(), console=console, transient=True))
    left = (TextColumn("left"), TimeLeft())
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left, note)
    return _Bar(progress, RichProgress(*columns, console=console))


def clock(seconds: float) -> str:
    """A number of seconds as text in hours, minutes and seconds.

    Example:
        >>> clock(7.2), clock(75), clock(3700)
        ('7 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
