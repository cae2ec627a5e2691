"""Protocol of the members of a reviser that selectors and the check of drift use; `Reviser` has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from srpo.data.read import PromptRow
from srpo.generate.engine import Engine
from srpo.revise.confidence import Confidence, Sequences
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.sequences.protocols import PromptRenderer


class DraftsAndScores(Protocol):
    """Protocol of a model that answers prompts and computes log-probs of answers."""

    renderer: PromptRenderer[Any]
    engine: Engine
    confidence: Confidence | None

    @property
    def has_logps(self) -> bool:
        """True if log π of an answer can be computed."""

    def logps(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π of K (context ids, answer ids) for each of B prompts, nats, summed over tokens."""

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, in nats.

        Log-probs of an answer's tokens are summed or averaged as in training.
        """

    def trails(self, rows: Sequence[PromptRow], settings: RevisionSettings) -> Iterator[Trail]:
        """Yields a trail for each prompt: its draft and revisions."""
