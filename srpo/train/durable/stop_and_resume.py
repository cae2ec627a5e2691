"""Training callback that stops a run at a signal, with a checkpoint, and restores the sums of a resumed run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.errors import Interrupted
from srpo.model.randomness import generators, set_generators
from srpo.signals import signals
from srpo.train.durable.trainer import DurableTrainer


class StopsAndResumes(TrainerCallback):
    """Callback that stops a run at a signal such as Ctrl-C, and restores on resuming what transformers does not save.

    It stops between micro-batches, after a checkpoint. The micro-batches of an unfinished optimiser step are dropped,
    as if the step had not begun, and a resumed run computes it again. All processes stop together.
    """

    def __init__(self, trainer: DurableTrainer) -> None:
        self._trainer = trainer
        self._before: tuple[Any, ...] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if folder := self._trainer.start.folder:
            self._trainer.load_extra_state(folder)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop_if_asked()
        trainer = self._trainer
        trainer.background.settle(wait=False)  # reports a full disk now, not at the next save
        if args.gradient_accumulation_steps > 1:
            self._before = (generators(), trainer.running_sums(), trainer.current_flos, state.num_input_tokens_seen)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._trainer.anywhere(bool(signals.asked)):
            random, sums, self._trainer.current_flos, state.num_input_tokens_seen = self._before
            set_generators(random)
            self._trainer.restore_sums(sums)
            self._stop()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._trainer.anywhere(bool(signals.asked)):
            self._stop()

    def _stop(self) -> None:
        trainer = self._trainer
        step, of = trainer.state.global_step, trainer.state.max_steps
        reason = signals.asked or "another process was stopped"
        if step == 0:
            raise Interrupted(f"{reason}: stopped before the first step", fix="run the same command again")
        if trainer.saved != step:
            trainer._save_checkpoint(trainer.model_wrapped, None)
        trainer.settle()
        what = f"{reason}: stopped after step {step} of {of}; checkpoint-{step} is saved"
        raise Interrupted(what, where=str(trainer.args.output_dir), fix="continue with the same command and --resume")
