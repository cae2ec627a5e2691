"""SIGTERM, SIGINT and SIGUSR1: the first asks a run to stop where it can go on from, a second one ends it at once."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from srpo.errors import Interrupted
from srpo.model.randomness import generators, set_generators
from srpo.signals import signals


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
