"""A warning, logged once, if the metrics of a training show that the policy is collapsing.

A preference loss depends on differences, so it can fall while both answers of a pair lose probability: the policy then
moves to answers that no pair contains. The sign is the log-prob of chosen answers against the reference, per token. On
the carry task it fell by 0.2 to 1.3 nats in every run that ended with wrong answers (docs/lab-book/21-beta.md).
"""

from __future__ import annotations

from collections.abc import Mapping

SIGNS = {"drift/chosen": "as drafts", "drift/chosen_revised": "as revisions"}
FALL = 0.5  # largest fall of a run that is well, as a share of the entropy at the start
MEMORY = 0.8  # weight of the past in the moving averages
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
