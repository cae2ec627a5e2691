"""Runs work in a thread beside the training steps: hashing, syncing and renaming a staged checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs one task at a time in a background thread; an error in the task is raised by `settle`."""

    def __init__(self) -> None:
        self._task: Future[None] | None = None

    def start(self, name: str, task: Callable[[], None]) -> None:
        """Waits for the previous task, then starts `task` in a thread called `name`; a normal exit waits for it."""
        self.settle()
        threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._task = threads.submit(task)
        threads.shutdown(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """Waits for the current background task and raises its error.

        Args:
            wait: False returns at once, and raises the error of a task that has already ended.
        """
        if self._task and (wait or self._task.done()):
            task, self._task = self._task, None
            task.result()
