"""SIGTERM, SIGINT and SIGUSR1: the first asks the process to stop, the second ends it at once with exit code 75.

A process has one set of handlers, `signals`. The command line installs them for every verb; training holds a signal
back until the current step is complete and a checkpoint is written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from srpo.errors import Interrupted

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # clusters send SIGUSR1 before the time of a job is up


class Signals:
    """The signal handlers of this process; the first signal asks it to stop, the second ends it with exit code 75.

    Attributes:
        asked: name of the signal that asked the process to stop; "" before any signal arrives.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._held_back = 0
        self._owner = os.getpid()
        self._installed = False

    @contextmanager
    def heard(self, *, until_exit: bool = False) -> Iterator[Signals]:
        """Installs the handlers for a `with` block: a signal raises KeyboardInterrupt; in `held_back`, it sets `asked`.

        Does nothing where handlers are installed already, and in threads other than the main one, in which Python
        refuses handlers. Signals that are ignored on entry (`nohup`) stay ignored.

        Args:
            until_exit: after a signal, leave the handlers in place: the process is about to end, and a second signal
                must still end it with 75.
        """
        installed = self._installed and self._owner == os.getpid()
        if installed or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {}
        self._owner, self._installed = os.getpid(), True
        try:
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._answer)
            yield self
        finally:
            if not (until_exit and self.asked):
                for number, handler in before.items():
                    signal.signal(number, handler)
                self.asked, self._installed = "", False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Inside this `with` block a signal raises nothing: it sets `asked`, and the caller stops where it can."""
        self._held_back += 1
        try:
            yield
        finally:
            self._held_back -= 1

    def expect_none(self) -> None:
        """Raises KeyboardInterrupt if a signal arrived earlier and Python lost the exception that it raised.

        Python drops an exception that is raised inside a callback of the garbage collection or of a weak reference.
        """
        if self.asked and not self._held_back:
            raise KeyboardInterrupt(self.asked)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker inherited this handler: it ends as it would have without it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.asked:
            os._exit(Interrupted.exit_code)  # runs no cleanup that could wait; an unfinished commit does not count
        self.asked = signal.Signals(number).name
        if not self._held_back:
            raise KeyboardInterrupt(self.asked)
        # os.write, not print: the signal may have interrupted a print, whose lock print would wait for.
        os.write(2, f"srpo: {self.asked}: stopping after the current step\n".encode())


signals = Signals()
