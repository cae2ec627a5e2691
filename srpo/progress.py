"""How far a long piece of work is: a bar where standard error is a terminal, a line now and then where it is not."""

from __future__ import annotations

import logging
from time import monotonic
from types import TracebackType
from typing import Any

log = logging.getLogger("srpo")
STEPS, SECONDS = 100, 10.0  # a line after so many, or when the last one is so long ago


class Progress:
    """Counts up to a total; to be entered, and left however the work ends.

    Shown where the `srpo` logger's messages of level INFO are, which is what the command line asks for.

    Args:
        unit: what is counted, in the plural.
        total: of them.
        done: of them beforehand.

    Example:
        >>> with Progress("prompts", 2) as progress:
        ...     progress.step()
        ...     progress.done
        1
    """

    def __init__(self, unit: str, total: int, done: int = 0) -> None:
        self.unit, self.total, self.done = unit, total, done
        self._bar: Any = None
        self._said = monotonic()

    def __enter__(self) -> Progress:
        if self.done < self.total and log.isEnabledFor(logging.INFO):
            self._bar = _bar()
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task(self.unit, total=self.total, completed=self.done)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
        elif self.done % STEPS == 0 or self.done == self.total or monotonic() - self._said > SECONDS:
            self._said = monotonic()
            log.info("srpo: %d of %d %s", self.done, self.total, self.unit)


def _bar() -> Any:
    """rich's bar on standard error, or None where that is no terminal that could show one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    left = (TextColumn("left"), TimeLeft())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left)
    return Progress(*columns, console=console)
