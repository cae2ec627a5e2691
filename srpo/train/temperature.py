"""β of each optimiser step, from the settings of a run and from the drift that its batches measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.maths.control import BUDGET, DriftController, conservative_beta, scheduled_beta
from srpo.train.collapse import LEAST_ENTROPY, CollapseLight
from srpo.train.config import SRPOConfig

log = logging.getLogger("srpo")
ROLES = ("kl/drafts", "kl/revisions")
BUDGET_SHARE = 0.5  # default drift budget as a share of the reference's entropy (docs/lab-book/21-beta.md)


class Temperature(TrainerCallback):
    """Callback that sets β before each step, and measures the drift and the signs of collapse after it.

    Metrics of all micro-batches of a step count, from all processes, so every process computes the same β. The state
    is part of every checkpoint.

    Attributes:
        beta: β of the coming step.
    """

    def __init__(self, args: SRPOConfig) -> None:
        self.args, self.beta = args, args.beta
        self.control: DriftController | None = None  # made when the first step has measured the entropy
        self.light = CollapseLight()
        self._sums: dict[str, list[float]] = {}  # metric → sum and number of its values since the last step

    def add(self, columns: Mapping[str, list[float]]) -> None:
        """Adds the metrics of a micro-batch, gathered from all processes: values by name, nan without a value."""
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
        self._sums = {}
        message = self.light.see(means, self.beta)
        if message and state.is_world_process_zero:
            log.warning("srpo: step %d: %s", state.global_step, message)
        if message and self.args.on_collapse == "stop":
            control.should_training_stop = True
        if self.args.beta_schedule == BUDGET:
            if self.control is None:
                self.control = self._controller(means)
            self.beta = self.control.update(max(means[role] for role in ROLES if role in means))

    def _controller(self, means: Mapping[str, float]) -> DriftController:
        """The controller of a run, by the metrics of its first step, when policy and reference are still alike."""
        entropy = max(means["entropy/reference"], LEAST_ENTROPY)
        budget = self.args.drift_budget or BUDGET_SHARE * entropy
        tokens = 1.0 if self.args.logps_reduction == "mean" else means["answer_tokens"]
        start = max(self.args.beta, conservative_beta(entropy, tokens))
        message = "srpo: drift budget %.3g nats per answer token (entropy of the reference: %.3g); beta starts at %.3g"
        log.info(message, budget, entropy, start)
        return DriftController(start, budget)

    def state(self) -> dict[str, Any]:
        """State as JSON values, for a checkpoint."""
        control = self.control and {"begin": (self.control.start, self.control.budget), **self.control.state()}
        return {"beta": self.beta, "sums": dict(self._sums), "light": self.light.state(), "control": control}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the state that the method `state` returned."""
        self.beta, self._sums = state["beta"], {name: [*pair] for name, pair in state["sums"].items()}
        self.light.restore(state["light"])
        self.control = None
        if control := state["control"]:
            self.control = DriftController(*control["begin"])
            self.control.restore(control)
