"""β during a training: schedules, and a controller that keeps the policy's drift inside a budget.

Every step minimises Eq. 15–17 of arXiv 2406.01660 at the β of that step. The larger β, the nearer Eq. 5 and 11 keep the
optimum to the reference: its divergence D(β), in nats per answer token, falls as β grows. The controller looks for the
β* with D(β*) = δ, where δ is the budget. That is dual ascent on the constrained game

    min over π, max over π†  of  E[p(y' ≻ y)]   subject to   D ≤ δ,

with β as the multiplier of the constraint, and its fixed point is the optimum of Eq. 1 at β*.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from srpo.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine", "exponential")
BUDGET = "budget"  # the schedule that the controller makes
STUDIED = 120  # steps of the trainings for which rate and ahead were chosen (docs/lab-book/21-beta.md)
LEAST = 0.01  # share of the budget; a smaller drift counts as this one, so that the average soon forgets the start


def scheduled_beta(schedule: str, start: float, end: float, progress: float) -> float:
    """Returns the β of a schedule after a share `progress`, in [0, 1], of the training.

    Args:
        schedule: "constant", "linear", "cosine" (half a period) or "exponential" (linear in log β).
        start, end: β before the first and after the last step, > 0; "constant" does not use `end`.

    Raises:
        ConfigError: unknown schedule.

    Example:
        >>> [round(scheduled_beta("exponential", 1.0, 0.01, t), 3) for t in (0.0, 0.5, 1.0)]
        [1.0, 0.1, 0.01]
    """
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "cosine":
        return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
    if schedule == "exponential":
        return start * (end / start) ** progress
    raise ConfigError(f"{schedule!r}", where="beta_schedule", expected="one of " + ", ".join(SCHEDULES))


def conservative_beta(entropy: float, tokens: float) -> float:
    """Returns the β at which a pair's target margin, 1/(2β) nats, is the reference's entropy over a whole answer.

    It is meant for the first steps of a training. The loss asks for log-ratios of the size of the margin, and a margin
    above the entropy asks for more change than the reference's distribution allows. A controller that starts below this
    β would raise β only after the policy has drifted, when the policy may be beyond repair.

    Args:
        entropy: entropy of the reference's next-token distributions, nats per answer token, > 0.
        tokens: mean number of tokens of an answer, ≥ 1; 1 if log-probs are means over tokens.

    Example:
        >>> round(conservative_beta(0.35, 7), 3)
        0.204
    """
    return 1.0 / (2.0 * entropy * tokens)


class ControllerState(TypedDict):
    """State of a `DriftController` as JSON values.

    Attributes:
        beta: the current β.
        drift: moving average of log(drift / budget); None before the first step.
        moving: direction in which β moves: 1, 0 or −1.
    """

    beta: float
    drift: float | None
    moving: int


@dataclass
class DriftController:
    """Controls β in training: raises it while the policy's drift from the reference exceeds a budget, else lowers it.

    The error is log(drift / budget), averaged over steps. In each step log β changes by `rate` · error, with the error
    clipped to [−1, 1]. The change is `patience` times smaller downwards, because a policy far from its reference is
    harder to repair than one too near to it.

    A policy follows a change of β many steps later, so this rule alone would make β oscillate. Two rules prevent that:

    1. The drift is also extrapolated by `ahead` steps. β changes only if the drift now and the extrapolated drift lie
       on the same side of the budget, and by the smaller of the two errors. So β rests while the drift already moves
       towards the budget, as at the start of a training.
    2. If β rests, it moves again only when the drift differs from the budget by more than a factor of 1 + `band`. Then
       it moves until the drift crosses the budget.

    Args:
        beta: β of the first step, > 0.
        budget: δ, the wanted drift in nats per answer token, > 0.
        rate: largest change of log β in a step.
        patience: factor by which β falls slower than it rises, ≥ 1.
        band: half width of the band of rule 2, relative to the budget.
        ahead: number of steps over which the drift is extrapolated.
        span: largest factor between β and its first value, in both directions.
        memory: weight of the past in the moving average of the log of the drift, in [0, 1).

    Example:
        >>> control = DriftController(beta=0.1, budget=0.05)
        >>> [round(control.update(drift), 3) for drift in (0.05, 0.5, 0.5)]
        [0.1, 0.107, 0.118]
    """

    beta: float
    budget: float
    rate: float = 0.1
    patience: float = 2.0
    band: float = 0.2
    ahead: float = 20.0
    span: float = 100.0
    memory: float = 0.7
    drift: float | None = None
    moving: int = 0

    def __post_init__(self) -> None:
        for name in ("beta", "budget"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{getattr(self, name)}", where=name, expected="a number > 0")
        self.start = self.beta

    @classmethod
    def paced(cls, beta: float, budget: float, steps: int) -> DriftController:
        """Returns a controller whose speed suits the length of a training.

        In a training of more than `STUDIED` steps the drift changes more slowly, so β does too: `rate` is divided, and
        `ahead` multiplied, by steps / `STUDIED`.

        Args:
            beta: β of the first step.
            budget: wanted drift in nats per answer token.
            steps: optimiser steps of the whole training.
        """
        slower = max(1.0, steps / STUDIED)
        return cls(beta, budget, rate=cls.rate / slower, ahead=cls.ahead * slower)

    def update(self, drift: float) -> float:
        """Takes the drift of a step in nats per answer token, ≥ 0, and returns the β of the next step."""
        now = math.log(max(drift / self.budget, LEAST))
        before = now if self.drift is None else self.drift
        self.drift = self.memory * before + (1.0 - self.memory) * now
        if self.moving * self.drift <= 0:  # the drift crossed the budget, or β rests
            self.moving = 0 if abs(self.drift) <= math.log1p(self.band) else (1 if self.drift > 0 else -1)
        later = self.drift + self.ahead * (self.drift - before)
        if self.moving and self.moving * later > 0:
            error = self.moving * min(abs(self.drift), abs(later), 1.0)
            step = self.rate * error / (self.patience if error < 0 else 1.0)
            bounds = (self.start / self.span, self.start * self.span)
            self.beta = max(bounds[0], min(bounds[1], self.beta * math.exp(step)))
        return self.beta

    def state(self) -> ControllerState:
        """Returns the controller's state as JSON values, from which `restore` continues to the last bit."""
        return ControllerState(beta=self.beta, drift=self.drift, moving=self.moving)

    def restore(self, state: ControllerState) -> None:
        """Continues from a state that the method `state` returned."""
        self.beta, self.drift, self.moving = state["beta"], state["drift"], state["moving"]
