"""Work that goes on behind the steps of a run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Behind:
    """One piece of work at a time that goes on behind the run; what goes wrong in it is raised where it is settled."""

    def __init__(self) -> None:
        self._work: Future[None] | None = None

    def begin(self, name: str, work: Callable[[], None]) -> None:
        """Has it done by a thread of that name, which a process that ends of itself waits for."""
        self.settle()
        threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._work = threads.submit(work)
        threads.shutdown(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """Returns once nothing is being done any more.

        Args:
            wait: otherwise it only raises what went wrong in work that is done by now.
        """
        if self._work and (wait or self._work.done()):
            work, self._work = self._work, None
            work.result()
