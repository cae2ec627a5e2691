"""Log-ratios for the model's own confidence, from an engine that tells log-probs of what it is shown.

Axes: B prompts, K scored sequences of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Scored = tuple[tuple[int, ...], tuple[int, ...]]  # context ids, answer ids
Logps = Callable[[Sequence[Scored]], list[float]]  # log-prob of each answer after its context, nats, summed over tokens


@dataclass(frozen=True)
class RatioScorer:
    """log π − log π_ref of answers.

    Attributes:
        policy: tells log π; nan where it could not be had.
        reference: tells log π_ref.
    """

    policy: Logps
    reference: Logps

    def log_ratios(self, sequences: Sequence[Sequence[tuple[list[int], list[int]]]]) -> Tensor:
        """[B, K] of the K (context ids, answer ids) of each of B prompts; equal ones are asked for once."""
        rows = [[(tuple(context), tuple(answer)) for context, answer in row] for row in sequences]
        pairs = list(dict.fromkeys(pair for row in rows for pair in row))
        scored = zip(pairs, self.policy(pairs), self.reference(pairs), strict=True)
        ratio = {pair: ours - theirs for pair, ours, theirs in scored}
        return torch.tensor([[ratio[pair] for pair in row] for row in rows], dtype=torch.float64)
