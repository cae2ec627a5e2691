"""Two messages, each logged at most once: the policy is collapsing, and the policy has hardly moved.

A preference loss depends on differences, so it can fall while both answers of a pair lose probability: the policy then
moves to answers that no pair contains. The sign is the log-prob of chosen answers against the reference, per token. On
the carry task it fell by 0.2 to 1.3 nats in every run that ended with wrong answers (docs/lab-book/21-beta.md).

A β that is too large, or too few or too small steps, show as a small KL from the reference in the middle of a training.
"""

from __future__ import annotations

from collections.abc import Mapping

SIGNS = {"drift/chosen": "as drafts", "drift/chosen_revised": "as revisions"}
FALL = 0.5  # largest fall of a run that is well, as a share of the entropy at the start
MEMORY = 0.8  # weight of the past in the moving averages
STILL = 0.125  # largest KL of a policy that has hardly moved, as a share of the reference's entropy
MIDDLE = 0.4  # share of the steps after which that is looked at
LEAST_STEPS = 50  # a training of fewer steps after the warm-up is not looked at
ROLES = ("kl/drafts", "kl/revisions")
LEAST_ENTROPY = 0.05  # nats per token; a policy with less at the start is measured against this value


class CollapseLight:
    """Makes one warning in a training, when the log-probs of chosen answers fall far below those of the reference.

    The warning is due when the moving average of a log-ratio of chosen answers, as drafts or as revisions, falls below
    minus `FALL` times the entropy per token with which the policy started.

    Attributes:
        on: True once the warning has been made.
    """

    def __init__(self) -> None:
        self.on = False
        self._entropy = 0.0
        self._averages: dict[str, float] = {}

    def see(self, means: Mapping[str, float], beta: float) -> str:
        """Takes the mean metrics of a step and its β; returns the warning once, when it is due, else ""."""
        entropies = [means[name] for name in ("entropy/drafts", "entropy/revisions") if name in means]
        if not self._entropy and entropies:
            self._entropy = max(sum(entropies) / len(entropies), LEAST_ENTROPY)
        for name in SIGNS:
            if name in means:
                before = self._averages.get(name, 0.0)
                self._averages[name] = MEMORY * before + (1.0 - MEMORY) * means[name]
        if self.on or not self._averages or not self._entropy:
            return ""
        worst = min(self._averages, key=lambda name: self._averages[name])
        if self._averages[worst] >= -FALL * self._entropy:
            return ""
        self.on = True
        return (
            f"the policy is collapsing: chosen answers {SIGNS[worst]} lost {-self._averages[worst]:.2f} nats per token "
            f"against the reference (entropy at the start: {self._entropy:.2f}), although the loss may fall; "
            f"raise beta (now {beta:.3g}), lower learning_rate, or let beta_schedule budget adapt beta"
        )

    def state(self) -> dict[str, float]:
        """Returns moving averages, entropy at the start, and whether the warning was given, as JSON values."""
        return {**self._averages, "on": float(self.on), "entropy": self._entropy}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continues from a state that the method `state` returned."""
        self.on, self._entropy = bool(state["on"]), state["entropy"]
        self._averages = {name: state[name] for name in SIGNS if name in state}


class StillLight:
    """Makes one remark in a training if the policy has hardly moved from its reference after 40 % of the steps.

    The remark is due if the moving average of KL / entropy is then below `STILL`: the larger KL(policy ‖ reference) of
    drafts and revisions, relative to the entropy of the reference at the same tokens. It cannot be due in a training
    of fewer than `LEAST_STEPS` steps, or without the reference's distributions, such as one with a cached reference.

    Attributes:
        looked: True once the average has been looked at.
    """

    def __init__(self) -> None:
        self.looked = False
        self._average: float | None = None

    def see(self, means: Mapping[str, float], beta: float, step: int, steps: int) -> str:
        """Takes the mean metrics of a step and its β; returns the remark in the step in which it is due, else "".

        Args:
            means: name of a metric → its mean over the pairs of the step.
            beta: β of the step.
            step: number of optimiser steps since the warm-up of the learning rate, this one included.
            steps: the same number at the end of the training.
        """
        drifts = [means[role] for role in ROLES if role in means]
        if self.looked or steps < LEAST_STEPS or not drifts or "entropy/reference" not in means:
            return ""
        now = max(drifts) / max(means["entropy/reference"], LEAST_ENTROPY)
        self._average = now if self._average is None else MEMORY * self._average + (1.0 - MEMORY) * now
        if step < MIDDLE * steps:
            return ""
        self.looked = True
        if self._average >= STILL:
            return ""
        return (
            f"the policy has hardly moved: its KL from the reference is {100 * self._average:.2g} % of the entropy of "
            f"the reference; if validation answers are no better, lower beta (now {beta:.3g}) or raise learning_rate"
        )

    def state(self) -> dict[str, float | bool | None]:
        """Returns the moving average, and whether it has been looked at, as JSON values."""
        return {"average": self._average, "looked": self.looked}

    def restore(self, state: Mapping[str, float | bool | None]) -> None:
        """Continues from a state that the method `state` returned."""
        self._average, self.looked = state["average"], bool(state["looked"])
