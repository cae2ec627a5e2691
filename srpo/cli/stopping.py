"""SIGTERM, SIGINT and SIGUSR1 while a verb runs: the first is a KeyboardInterrupt, a second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from srpo.errors import Interrupted

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is what clusters send before a job's time is up


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals are answered by this inside, until a training answers them itself, as it has checkpoints to write.

    Handlers are put back afterwards, unless a signal came: then the process is about to end, and may be told to hurry.
    """
    owner, asked = os.getpid(), False

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if os.getpid() != owner:  # a worker that was forked and inherited this: it just ends, as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if asked:
            os._exit(Interrupted.exit_code)  # whatever the first one still waits for
        asked = True
        raise KeyboardInterrupt(signal.Signals(number).name)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # in another one Python lets nobody answer
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup and its like
                before[number] = signal.signal(number, answer)
    try:
        yield
    finally:
        if not asked:
            for number, handler in before.items():
                signal.signal(number, handler)
