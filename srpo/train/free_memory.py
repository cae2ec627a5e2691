"""During a training on a CPU, gives memory back to the system that the program has freed and the C library keeps.

glibc keeps freed blocks of up to 32 MB, and the blocks of a step leave gaps that the next step does not fill. Five
steps of two pairs, with an adapter on 0.6B weights in float32, took 20 GB.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

GROWTH = 1.25  # memory of the process, relative to that after the last return, at which freed memory is returned


class FreeMemory(TrainerCallback):
    """Callback that gives the memory that the C library keeps back to the system, after steps of a training on a CPU.

    It does so when the process has grown; it does nothing without glibc.
    """

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = 0

    def free(self) -> None:
        """Gives freed memory back to the system, if the process has grown by a factor `GROWTH` since the last time."""
        if self._trim is not None and resident() > GROWTH * self._least:
            self._trim(0)
            self._least = resident()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if args.device.type == "cpu":
            self.free()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.on_step_end(args, state, control)


def resident() -> int:
    """Returns the main memory that the process holds now, in bytes; 0 where that is unknown (not Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
