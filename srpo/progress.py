"""Progress of long work: a bar with the time left on a terminal or in a notebook, a line every few seconds elsewhere.

A thread keeps the elapsed time moving, so that a slow item is never silent. Work inside other work takes the display
over and hands it back at its end. `Forecast` announces the cost of long work from its first part. Everything is shown
through the `srpo` logger at level INFO; a higher level is quiet.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
log = logging.getLogger("srpo")
FIRST, EVERY = 2.0, 4.0  # seconds until the first line, and between lines
PAUSE = 0.5  # seconds between two items that are not of one batch
LONG = 10.0  # seconds that work must still take for its cost to be announced
_under_way: list[Progress] = []  # outermost first; the innermost one is shown
_forecasts: list[Forecast] = []  # outermost first
_newest = 0.0  # time of the newest line of the logger, or of the start of the outermost work


def _noted(record: logging.LogRecord) -> bool:
    """Filter of the logger that lets all records pass and stores their time, so that `_Lines` knows of silence."""
    global _newest
    _newest = monotonic()
    return True


log.addFilter(_noted)


def remark(text: str) -> None:
    """Shows a note after the numbers of the innermost `Progress` now on display; "" removes the note.

    Does nothing while no progress is displayed.
    """
    if _under_way:
        _under_way[-1].note, _under_way[-1].detail = text, ""
        _under_way[-1].step(0)


def remark_detail(text: str) -> None:
    """Shows a detail after the note of the innermost `Progress` now on display; the next note removes the detail.

    Does nothing while no progress is displayed.
    """
    if _under_way:
        _under_way[-1].detail = text
        _under_way[-1].step(0)


def counted(items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows on a bar, or in log lines, how many have been yielded.

    Long work is announced by a `Forecast`, timed on the items before the first pause, since items often arrive in
    batches. If there is no pause, it is timed on the items of the first seconds.

    Args:
        unit: name of the items, in the plural.
        total: number of items; None if unknown.

    Example:
        >>> list(counted("ab", "letters", 2))
        ['a', 'b']
    """
    with Forecast(f"{total} {unit}", total or 0, unit) as forecast, Progress(unit, total) as progress:
        begun = newest = monotonic()
        first = float("inf")
        for item in items:
            now = monotonic()
            if progress.done and now - newest > PAUSE:
                forecast.timed(progress.done, newest - begun)
            elif now - first > EVERY:
                forecast.timed(progress.done, now - begun)
            first, newest = min(first, now), now
            yield item
            progress.step()


class Forecast:
    """Context manager that announces the cost of long work in three lines, once its first part has been timed.

    The lines are the size of the work, time and memory of its first part, and the time of its end. Work that has less
    than `LONG` seconds left announces nothing. Timings inside another forecast count for the outermost one.

    Args:
        size: the whole work as text; "" if it has been logged before.
        total: number of items, or the largest number that may come.
        items: name of the items, in the plural.
        besides: further work for the items, which the timed part does not contain; "" for none.

    Example:
        >>> with Forecast("2 prompts, at most 3 answers each", 6, "answers") as forecast:
        ...     forecast.timed(2, 0.1)
    """

    def __init__(self, size: str, total: int, items: str, besides: str = "") -> None:
        self.size, self.total, self.items, self.besides = size, total, items, besides
        self._announced = False

    def __enter__(self) -> Forecast:
        _forecasts.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _forecasts.remove(self)

    def timed(self, count: int, seconds: float) -> None:
        """Logs, at the first call only, when the work will end if its first `count` items took `seconds` seconds."""
        outermost = _forecasts[0]
        if outermost.items == self.items and count:
            outermost._announce(count, seconds)

    def _announce(self, count: int, seconds: float) -> None:
        left = seconds / count * (self.total - count)
        if not self._announced and left >= LONG:
            if self.size:
                log.info("srpo: %s", self.size)
            first, each = ("first", "") if count == 1 else (f"first {count}", f", {seconds / count:.2g} s each")
            taken = f"the {first} of {self.total} {self.items} took {seconds:.1f} s{each}"
            log.info("srpo: %s; %.1f GB of memory so far", taken, peak_memory() / 1e9)
            end = datetime.now() + timedelta(seconds=left)
            until = end.strftime("%H:%M" if left < 43200 else "%a %H:%M")
            besides = f"; {self.besides} come on top" if self.besides else ""
            log.info("srpo: about %s more, until %s%s", clock(left), until, besides)
        self._announced = True


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes: GPU memory where a model is on a GPU, otherwise main memory."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and (used := torch.cuda.max_memory_allocated()):
        return int(used)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
        detail: a second remark, behind the note.

    Example:
        >>> with Progress("prompts", 2) as progress:
        ...     progress.step()
        ...     progress.done
        1
    """

    def __init__(self, unit: str, total: int | None = None, done: int = 0, *, bar: bool = True) -> None:
        self.unit, self.total, self.done = unit, total, done
        self._first, self._bar, self.note, self.detail = done, bar, "", ""
        self._display: _Display | None = None

    def __enter__(self) -> Progress:
        global _newest
        self._begun = self._stepped = monotonic()
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
        if count:
            self._stepped = monotonic()
        self.note = note or self.note
        if self._display is not None:
            self._display.update()

    @property
    def remarks(self) -> str:
        """The note and the detail that are shown behind the numbers, as one text."""
        return ", ".join(each for each in (self.note, self.detail) if each)

    def line(self) -> str:
        """Returns the progress as one line of text: items done, total, rate and time left."""
        now = monotonic()
        seconds = now - self._begun
        note = [self.remarks] if self.remarks else []
        if self.total is None:
            return ", ".join([self.unit, clock(seconds), *([f"{self.done} done"] if self.done else []), *note])
        parts = [f"{self.done} of {self.total} {self.unit}"]
        taken = self._stepped - self._begun  # an item under way would make each finished one look slower
        if (fresh := self.done - self._first) and self.done < self.total and taken > 0:
            rate = fresh / taken
            speed = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
            left = (self.total - self.done) / rate - (now - self._stepped)
            parts += [speed, f"{clock(max(left, 0))} left"]
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

    `EVERY` is counted from the newest line of the logger, whichever code wrote it. Several short phases in a row, each
    with a `Progress` of its own, are therefore never silent for longer than `EVERY`.
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
        self._bar.update(self._task, completed=self._progress.done, note=self._progress.remarks)

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
    """Returns a number of seconds as text in hours, minutes and seconds.

    Example:
        >>> clock(7.2), clock(75), clock(3700)
        ('7 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
