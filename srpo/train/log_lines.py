"""Logs a training as one readable line at a time, the size of the run before it, and a progress bar."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import monotonic

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from srpo.progress import Forecast, Progress, clock
from srpo.train.view import TrainerView

log = logging.getLogger("srpo")
REPLACED = (PrinterCallback, ProgressCallback)  # transformers' own callbacks, which print every metric as one dict
SHOWN = {"loss": "loss {:.4f}", "rewards/margins": "margin {:.4g}", "rewards/accuracies": "accuracy {:.0%}"}


class LogLines(TrainerCallback):
    """Callback that logs steps, loss, margin, accuracy, seconds per step and time left in one line."""

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer = trainer
        self._progress: Progress | None = None
        self._forecast: Forecast | None = None
        self._begun = self._since = 0.0
        self._steps_then = self._first = 0

    def take_over(self, trainer: Trainer) -> None:
        """Adds this callback to a trainer, in place of transformers' callbacks that print metrics."""
        for callback in REPLACED:
            trainer.remove_callback(callback)
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._first = self._steps_then = state.global_step
        self._begun = self._since = monotonic()
        for line in _cost(self._trainer, state):
            log.info("srpo: %s", line)
        self._forecast = Forecast("", state.max_steps - self._first, "steps").__enter__()
        self._progress = Progress("steps", state.max_steps, state.global_step)
        self._progress.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._progress is None or self._forecast is None:
            return
        if state.global_step == self._first + 1:
            self._forecast.timed(1, monotonic() - self._begun)
        self._progress.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if state.is_world_process_zero and logs and (text := self._line(state, logs)):
            log.info("srpo: step %d of %d%s", state.global_step, state.max_steps, text)

    def close(self) -> None:
        """Ends the training's progress bar; does nothing if there is none."""
        if self._progress is not None and self._forecast is not None:
            self._progress.__exit__(None, None, None)
            self._forecast.__exit__(None, None, None)
            self._progress = self._forecast = None

    def _line(self, state: TrainerState, logs: Mapping[str, float]) -> str:
        if "loss" in logs:
            parts = _shown(logs, "")
            if steps := state.global_step - self._steps_then:
                each = (monotonic() - self._since) / steps
                parts += [f"{each:.2f} s/step", f"{clock(each * (state.max_steps - state.global_step))} left"]
            self._steps_then, self._since = state.global_step, monotonic()
            return ": " + ", ".join(parts)
        prefix = next(
            (key.removesuffix("loss") for key in logs if key.startswith("eval_") and key.endswith("_loss")), ""
        )
        return f", {prefix.strip('_') or 'eval'}: " + ", ".join(_shown(logs, prefix)) if prefix else ""


def _shown(logs: Mapping[str, float], prefix: str) -> list[str]:
    return [text.format(logs[prefix + name]) for name, text in SHOWN.items() if prefix + name in logs]


def _cost(trainer: TrainerView, state: TrainerState) -> list[str]:
    """Returns lines for the log about the size of a run: its steps, pairs and tokens, and the weights it trains."""
    args, pairs = trainer.args, trainer.train_dataset
    lines = []
    if pairs is not None:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        tokens = sum(map(pairs.size, range(len(pairs)))) * batch / len(pairs)
        epochs = state.max_steps * batch / len(pairs)
        size = f"{state.max_steps} steps of {batch} pairs, {epochs:.3g} epochs of {len(pairs)} pairs"
        lines.append(f"{size}; about {tokens:.0f} packed tokens a step")
    weights = list(trainer.model.parameters())
    trained = [p for p in weights if p.requires_grad]
    kind = str(trained[0].dtype).removeprefix("torch.")
    counts = [sum(p.numel() for p in some) for some in (trained, weights)]
    return [*lines, f"{counts[0]:,} of {counts[1]:,} weights trained, in {kind}, on {args.device}"]
