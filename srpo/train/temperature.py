"""Sets β of each optimiser step, from the settings of a run and the drift that its batches measured."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.maths.control import BUDGET, DriftController, conservative_beta, scheduled_beta
from srpo.maths.objective import OBJECTIVES
from srpo.train.collapse import LEAST_ENTROPY, ROLES, CollapseLight, StillLight
from srpo.train.config import SRPOConfig

log = logging.getLogger("srpo")
BUDGET_SHARE = 0.5  # default drift budget as a share of the reference's entropy (docs/lab-book/21-beta.md)


class Temperature(TrainerCallback):
    """Callback that sets β before each step, and measures the drift and the signs of collapse after it.

    It takes the metrics of all processes in a step, so every process computes the same β. Its state is part of every
    checkpoint.

    Attributes:
        beta: β of the coming step.
        last: β of the step before it.
    """

    def __init__(self, args: SRPOConfig) -> None:
        self.args, self.beta, self.last = args, args.beta, args.beta
        self.control: DriftController | None = None  # made when the first step has measured the entropy
        self.light, self.still = CollapseLight(), StillLight()
        self._sums: dict[str, list[float]] = {}  # metric → sum and number of its values since the last step

    def add(self, columns: Mapping[str, list[float]]) -> None:
        """Adds metrics to the means over the pairs of the current step.

        Args:
            columns: name of a metric → its values, one for each pair of all processes; nan where a pair has none.
        """
        for name, values in columns.items():
            found = [value for value in values if not math.isnan(value)]
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = [total + sum(found), count + len(found)]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.args.beta_schedule != BUDGET:
            progress = min(1.0, state.global_step / max(1, state.max_steps - 1))
            end = self.args.beta if self.args.beta_end is None else self.args.beta_end
            self.beta = scheduled_beta(self.args.beta_schedule, self.args.beta, end, progress)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        means = {name: total / count for name, (total, count) in self._sums.items() if count}
        self._sums, self.last = {}, self.beta
        message = self.light.see(means, self.beta)
        if message and state.is_world_process_zero:
            log.warning("srpo: step %d: %s", state.global_step, message)
        if message and self.args.on_collapse == "stop":
            control.should_training_stop = True
        warmup = args.get_warmup_steps(state.max_steps)  # its steps are too small to show anything of β
        if self.args.beta_schedule == BUDGET:
            first = self.control is None  # policy and reference were alike
            self.control = self.control or self._controller(means, state.max_steps)
            drift = max(means[role] for role in ROLES if role in means)
            warming = state.global_step <= warmup
            self.beta = self.control.beta if first or warming else self.control.update(drift)
        elif OBJECTIVES[self.args.objective].compares:  # otherwise β has no meaning; a budget lowers β itself
            remark = self.still.see(means, self.beta, state.global_step - warmup, state.max_steps - warmup)
            if remark and state.is_world_process_zero:
                log.info("srpo: step %d: %s", state.global_step, remark)

    def _controller(self, means: Mapping[str, float], steps: int) -> DriftController:
        """Makes the controller of a run from the metrics of its first step, when policy and reference are still alike.

        Args:
            means: mean of each metric in that step.
            steps: optimiser steps of the whole training.
        """
        entropy = max(means["entropy/reference"], LEAST_ENTROPY)
        budget = self.args.drift_budget or BUDGET_SHARE * entropy
        tokens = 1.0 if self.args.logps_reduction == "mean" else means["answer_tokens"]
        start = max(self.args.beta, conservative_beta(entropy, tokens))
        message = "srpo: drift budget %.3g nats per answer token (entropy of the reference: %.3g); beta of step 2: %.3g"
        log.info(message, budget, entropy, start)
        return DriftController.paced(start, budget, steps)

    def state(self) -> dict[str, Any]:
        """Returns the state of β and of its controller as JSON values, for a checkpoint."""
        control = None
        if self.control is not None:
            begin = {name: getattr(self.control, name) for name in ("budget", "rate", "ahead")}
            control = {"begin": {"beta": self.control.start, **begin}, **self.control.state()}
        return {
            "beta": self.beta,
            "last": self.last,
            "sums": dict(self._sums),
            "light": self.light.state(),
            "still": self.still.state(),
            "control": control,
        }

    def resume(self, file: Path) -> None:
        """Restores the state from `file`, the first process's file in a checkpoint: β is the same in every process."""
        if file.exists() and (state := json.loads(file.read_text("utf-8")).get("temperature")):
            self.restore(state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state that the method `state` returned."""
        self.beta, self.last = state["beta"], state["last"]
        self._sums = {name: [*pair] for name, pair in state["sums"].items()}
        self.light.restore(state["light"])
        # Older checkpoints lack it: an average that begins in the middle says nothing.
        self.still.restore(state.get("still", {"average": None, "looked": True}))
        self.control = None
        if control := state["control"]:
            begin = control["begin"]
            self.control = DriftController(**{**begin, "budget": self.args.drift_budget or begin["budget"]})
            self.control.restore(control)
