"""Progress of long work: a bar with the time left on a terminal or in a notebook, a line every few seconds elsewhere.

A thread keeps the elapsed time moving, so that a slow item is never silent. Work inside other work takes the display
over and hands it back at its end. Everything is shown through the `srpo` logger at level INFO; a higher level is quiet.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
log = logging.getLogger("srpo")
FIRST, EVERY = 2.0, 5.0  # seconds until the first line, and between lines
_under_way: list[Progress] = []  # outermost first; the innermost one is shown
_newest = 0.0  # time of the newest line of the logger, or of the start of the outermost work


def _noted(record: logging.LogRecord) -> bool:
    """Filter of the logger that notes the time of each record and lets all records pass."""
    global _newest
    _newest = monotonic()
    return True


log.addFilter(_noted)


def remark(text: str) -> None:
    """Sets the note of the innermost progress under way, if there is one; an empty text removes the note."""
    if _under_way:
        _under_way[-1].note = text
        _under_way[-1].step(0)


def counted(items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows on a bar, or in log lines, how many have been used.

    Example:
        >>> list(counted("ab", "letters", 2))
        ['a', 'b']
    """
    with Progress(unit, total) as progress:
        for item in items:
            yield item
            progress.step()


class Progress:
    """Context manager that counts completed items and shows them with rate and time left.

    Args:
        unit: the items, in the plural; without a total, the activity ("reading the weights of my-model").
        total: number of items; None where the work cannot be counted.
        done: items completed beforehand.
        bar: False shows lines on a terminal too, around work that prints to standard output.

    Attributes:
        done: items completed so far.
        note: remark printed behind the numbers.

    Example:
        >>> with Progress("prompts", 2) as progress:
        ...     progress.step()
        ...     progress.done
        1
    """

    def __init__(self, unit: str, total: int | None = None, done: int = 0, *, bar: bool = True) -> None:
        self.unit, self.total, self.done = unit, total, done
        self._first, self._bar, self.note = done, bar, ""
        self._display: _Display | None = None

    def __enter__(self) -> Progress:
        global _newest
        self._begun = monotonic()
        if _under_way:
            _under_way[-1]._hide()
        else:
            _newest = self._begun
        _under_way.append(self)
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._display is not None:
            self._display.stop(last=True)
            self._display = None
        if self not in _under_way:
            return
        innermost = _under_way[-1] is self
        _under_way.remove(self)
        if innermost and _under_way:
            _under_way[-1]._show()

    def _show(self) -> None:
        if log.isEnabledFor(logging.INFO) and (self.total is None or self.done < self.total):
            self._display = (self._bar and _bar(self)) or _Lines(self)
            self._display.start()

    def _hide(self) -> None:
        if self._display is not None:
            self._display.stop(last=False)
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
        note = [self.note] if self.note else []
        if self.total is None:
            return ", ".join([self.unit, clock(seconds), *([f"{self.done} done"] if self.done else []), *note])
        parts = [f"{self.done} of {self.total} {self.unit}"]
        if (fresh := self.done - self._first) and self.done < self.total and seconds > 0:
            rate = fresh / seconds
            speed = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
            parts += [speed, f"{clock((self.total - self.done) / rate)} left"]
        elif self.done < self.total:
            parts.append(clock(seconds))
        return ", ".join([*parts, *note])


class _Display(Protocol):
    """The protocol of a display of progress: a bar or log lines."""

    def start(self) -> None: ...
    def update(self) -> None: ...
    def stop(self, *, last: bool) -> None: ...


def _ends(event: threading.Event, seconds: float) -> bool:
    """Waits for an event at most so many seconds; returns whether it is set."""
    return event.wait(seconds)


class _Lines:
    """Progress as log lines: the first after `FIRST` seconds, then every `EVERY`, and one when all items are done.

    Other lines of the logger postpone the next line. Phases shorter than `FIRST` cannot add up to a silence longer than
    `EVERY`, because the time since the newest line counts, whoever wrote it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        if FIRST <= 0:
            self._say()
        self._thread.start()

    def update(self) -> None:
        if self._progress.done == self._progress.total and not self._ended.is_set():
            self._ended.set()
            self._say()

    def stop(self, *, last: bool) -> None:
        self._ended.set()
        self._thread.join()

    def _say(self) -> None:
        log.info("srpo: %s", self._progress.line())

    def _run(self) -> None:
        due, first = min(monotonic() + FIRST, max(monotonic(), _newest + EVERY)), True
        while not _ends(self._ended, due - monotonic()):
            if first or monotonic() >= _newest + EVERY:
                self._say()
            due, first = _newest + EVERY, False


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

    def stop(self, *, last: bool) -> None:
        if not last:
            self._bar.live.transient = True  # leaves nothing behind; a new bar shows the same work later
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
    both = sys.stdout.isatty()  # a file on standard output must receive its own text
    if progress.total is None:
        spinner = (SpinnerColumn(), name, TimeElapsedColumn(), note)
        return _Bar(progress, RichProgress(*spinner, console=console, transient=True, redirect_stdout=both))
    left = (TextColumn("left"), TimeLeft())
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left, note)
    return _Bar(progress, RichProgress(*columns, console=console, redirect_stdout=both))


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
