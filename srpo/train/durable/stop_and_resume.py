"""SIGTERM, SIGINT and SIGUSR1: the first asks a run to stop where it can go on from, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from srpo.errors import Interrupted
from srpo.model.randomness import generators, set_generators

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is what clusters send before a job's time is up


class Signals:
    """What has been asked for from outside.

    Attributes:
        asked: name of the signal that came; "" while none did.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._held_back = 0
        self._owner = os.getpid()

    @contextmanager
    def heard(self) -> Iterator[Signals]:
        """Signals are answered by this inside: at once, as a KeyboardInterrupt, where nothing holds them back.

        Python lets only the main thread answer signals; in another one nothing changes.
        """
        if threading.current_thread() is not threading.main_thread() or self._is_heard():
            yield self
            return
        before: dict[int, Any] = {}
        self._owner = os.getpid()
        try:
            for name in SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup and its like
                    before[number] = signal.signal(number, self._answer)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.asked = ""

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """A signal inside is only noted; the loop inside looks at `asked` where it can stop."""
        self._held_back += 1
        try:
            yield
        finally:
            self._held_back -= 1

    def _is_heard(self) -> bool:
        return any(signal.getsignal(getattr(signal, name)) == self._answer for name in SIGNALS if hasattr(signal, name))

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker that was forked and inherited this: it just ends, as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.asked:
            os._exit(Interrupted.exit_code)  # nothing that could wait or fail: a commit cut short here is not one
        self.asked = signal.Signals(number).name
        if not self._held_back:
            raise KeyboardInterrupt
        # Not print: what was interrupted may be in the middle of printing, and would not let another in.
        os.write(2, f"srpo: {self.asked}: stopping at the next place to go on from\n".encode())


signals = Signals()  # a process has one set of handlers


class StopsAndResumes(TrainerCallback):
    """Looks between micro-batches whether a signal asked to stop; puts a resumed run where its checkpoint stood."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._before: tuple[Any, ...] = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if folder := self._trainer.start.folder:
            self._trainer.load_besides(folder)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop_if_asked()
        self._trainer.behind.settle(wait=False)  # a disk that was full is told now, not at the next save
        if args.gradient_accumulation_steps > 1:
            trainer = self._trainer
            self._before = (generators(), trainer.position(), trainer.current_flos, state.num_input_tokens_seen)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.anywhere(bool(signals.asked)):  # half a step is dropped, as if it had not been begun
            set_generators(self._before[0])
            self._trainer.take_position(self._before[1])
            self._trainer.current_flos, state.num_input_tokens_seen = self._before[2:]
            self._stop()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._trainer.anywhere(bool(signals.asked)):
            self._stop()

    def _stop(self) -> None:
        trainer = self._trainer
        step, of = trainer.state.global_step, trainer.state.max_steps
        said = signals.asked or "another process was stopped"
        if step == 0:
            raise Interrupted(f"{said}: stopped before the first step was taken", fix="run the same command again")
        if trainer.saved != step:
            trainer._save_checkpoint(trainer.model_wrapped, None)
        trainer.settle()
        what = f"{said}: stopped after step {step} of {of}, which checkpoint-{step} holds"
        raise Interrupted(what, where=str(trainer.args.output_dir), fix="go on with the same command and --resume")
