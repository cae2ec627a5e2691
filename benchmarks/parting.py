"""The first difference between two engines' greedy answers to one context, and the model's certainty there.

Two ways to compute the same logits differ by rounding. Where the two likeliest tokens are nearer to each other than
that, either may be written, and all that follows may differ; anywhere else a difference is a mistake.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

TIE = 1e-3  # nats between the two likeliest tokens, up to which two float32 engines may write either


@dataclass(frozen=True)
class Parting:
    """Differences between two answers to one context.

    Attributes:
        at: tokens they have in common before the first difference.
        tokens: places from there on with different tokens; a missing token differs.
        gap: nats between the model's two likeliest tokens at the first difference.
    """

    at: int
    tokens: int
    gap: float


@torch.no_grad()
def parting(model: Any, context: Sequence[int], plain: Sequence[int], other: Sequence[int]) -> Parting | None:
    """Returns the difference between an answer and that of plain decoding; None if they are equal.

    The gap is computed by one forward pass over context and common tokens, without a cache.

    Args:
        context: token ids that both answers go on from.
        plain, other: token ids of the answers, the terminator included.

    Example:
        >>> from srpo.tasks.carry import BaseConfig, untrained_base
        >>> found = parting(untrained_base(BaseConfig(hidden=24)), [14, 3], [5, 6, 7], [5, 9, 7, 8])
        >>> found.at, found.tokens
        (1, 2)
    """
    if list(plain) == list(other):
        return None
    shorter = min(len(plain), len(other))
    differ = [i for i in range(shorter) if plain[i] != other[i]]
    at = differ[0] if differ else shorter
    ids = torch.tensor([[*context, *plain[:at]]], device=next(model.parameters()).device)
    logits_V = model(input_ids=ids).logits[0, -1].double()
    best = logits_V.topk(2).values
    return Parting(at, len(differ) + abs(len(plain) - len(other)), float(best[0] - best[1]))


@dataclass
class Count:
    """Counts, over many contexts, how answers differ from those of plain decoding.

    Attributes:
        answers, tokens: number of plain decoding's answers, and of their tokens.
        differing: number of tokens that differ.
        gaps: gap of each answer that differs, in nats; see `Parting`.
    """

    answers: int = 0
    tokens: int = 0
    differing: int = 0
    gaps: list[float] = field(default_factory=list)

    def see(
        self, model: Any, contexts: Iterable[Sequence[int]], plain: Iterable[Sequence[int]], others: Iterable[Any]
    ) -> None:
        """Adds the answers of plain decoding (`plain`) and of another engine (`others`) to the same contexts."""
        for context, one, other in zip(contexts, plain, others, strict=True):
            self.answers, self.tokens = self.answers + 1, self.tokens + len(one)
            if (found := parting(model, context, one, other)) is not None:
                self.differing += found.tokens
                self.gaps.append(found.gap)

    @property
    def largest(self) -> float:
        """The largest gap at which an answer parted; 0 if none did."""
        return max(self.gaps, default=0.0)

    @property
    def mistakes(self) -> int:
        """Number of answers that differ although the gap is too large for rounding, above `TIE`."""
        return sum(not gap <= TIE for gap in self.gaps)

    def sentence(self) -> str:
        """Returns the counts as one line of text."""
        said = f"{self.differing} of {self.tokens} tokens differ from plain decoding"
        if self.gaps:
            said += f", in {len(self.gaps)} of {self.answers} answers; top-two gap there at most {self.largest:.1e}"
        return said
