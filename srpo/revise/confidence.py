"""The model's own judgement of a revision: p(revision ≻ draft), from log-ratios of what it became to what it was.

Whoever can tell log π − log π_ref of an answer after a context can stand behind it: a model and its reference in this
process (`ModelScorer`), or a server with the adapter on and off.

Axes: B prompts, K scored sequences of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from srpo.data.read import PromptRow
from srpo.errors import ConfigError, did_you_mean
from srpo.maths.confidence import preference_eq9, preference_eq14
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.sequences.render import Renderer, options_of
from srpo.sequences.tree import PrefixTree

Sequences = Sequence[Sequence[tuple[list[int], list[int]]]]
EQUATIONS = ("eq9", "eq14")
REDUCTIONS = ("sum", "mean")


def expect_known(reduction: str, equation: str) -> None:
    """Names that a user may have mistyped.

    Raises:
        ConfigError: there is no such reduction or equation.
    """
    for where, value, known in (("logps_reduction", reduction, REDUCTIONS), ("equation", equation, EQUATIONS)):
        if value not in known:
            fix = did_you_mean(value, known)
            raise ConfigError(f"{value!r}", where=where, expected="one of " + ", ".join(known), fix=fix)


class Scorer(Protocol):
    """Tells log-ratios of answers."""

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """[B, K] log π − log π_ref of the K (context ids, answer ids) of each of B prompts, nats, summed over answer
        tokens."""
        ...


class ModelScorer:
    """Log-ratios from a model and its reference in this process; what sequences share is computed once.

    Args:
        model: the trained policy.
        reference: what it was before training; None takes the base under its adapter.
        backend: auto, path or flat.
    """

    def __init__(self, model: Any, reference: Any | None, *, backend: str = "auto") -> None:
        self.model, self.backend = model, backend
        self._reference = _active(model, reference)

    @classmethod
    def at_hand(cls, model: Any, reference: Any, trained_from: str | None, *, backend: str) -> ModelScorer | None:
        """A scorer, or None where there is no reference.

        Args:
            reference: a model, or None.
            trained_from: the kind of the reference in training, where it is known: under an adapter that was trained
                on from another one, the base is not what it was trained from.
        """
        switched = hasattr(model, "disable_adapter") and trained_from in (None, "adapter off")
        if reference is None and not switched:
            return None
        return cls(model, reference, backend=backend)

    @torch.no_grad()
    def log_ratios(self, sequences: Sequences) -> Tensor:
        """As `Scorer` says."""
        forest = Forest.plant([PrefixTree.pack(each) for each in sequences], next(self.model.parameters()).device)
        backend = settle_backend(self.model, forest.trees, self.backend)  # the same for both
        ours_BK = sequence_logps(self.model, forest, backend)
        with self._reference() as reference:
            return ours_BK - sequence_logps(reference, forest, backend)


def _active(model: Any, frozen: Any | None) -> Callable[[], AbstractContextManager[Any]]:
    """A context manager that yields the reference."""

    @contextmanager
    def active() -> Iterator[Any]:
        if frozen is not None:
            yield frozen.eval()
        else:
            with model.disable_adapter():
                yield model

    return active


@dataclass(frozen=True)
class Confidence:
    """p(new answer ≻ old answer) as the model itself estimates it.

    Attributes:
        scorer: where log-ratios come from.
        renderer: of the contexts answers are scored after.
        beta: the β the model was trained with.
        reduction: how log-probs of an answer's tokens were reduced in training, sum or mean.
        equation: eq9 asks the revising policy alone; eq14 asks drafting and revising both, for twice the tokens.
    """

    scorer: Scorer
    renderer: Renderer
    beta: float
    reduction: str = "sum"
    equation: str = "eq9"

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """[B, K] log π − log π_ref, nats, reduced over answer tokens as in training."""
        ratio_BK = self.scorer.log_ratios(sequences)
        if self.reduction == "mean":
            ratio_BK = ratio_BK / ratio_BK.new_tensor([[len(answer) for _, answer in each] for each in sequences])
        return ratio_BK

    def compare(self, rows: Sequence[PromptRow], old: Sequence[str], new: Sequence[str]) -> list[tuple[float, int]]:
        """p(new ≻ old) for each row, and the tokens that policy and reference read for it."""
        sequences = self._sequences(rows, old, new)
        ratio_KB = self.log_ratios(sequences).unbind(1)
        if self.equation == "eq9":
            preferred_B = preference_eq9(*ratio_KB, beta=self.beta)
        else:
            preferred_B = preference_eq14(*ratio_KB, beta=self.beta)
        tokens = [2 * len(PrefixTree.pack(each)) for each in sequences]  # policy and reference
        return list(zip(preferred_B.tolist(), tokens, strict=True))

    def _sequences(self, rows: Sequence[PromptRow], old: Sequence[str], new: Sequence[str]) -> Sequences:
        """The scored (context, answer) of each row, in the order in which its equation names them."""
        prompts, options = [row.prompt for row in rows], [options_of(row) for row in rows]
        after_old = self.renderer.revisions(prompts, list(old), options)
        answers = (self.renderer.answers(list(new)), self.renderer.answers(list(old)))
        if self.equation == "eq9":  # h(new|old), h(old|old)
            return [[(after, to), (after, keep)] for after, to, keep in zip(after_old, *answers, strict=True)]
        drafts, after_new = self.renderer.drafts(prompts, options), self.renderer.revisions(prompts, list(new), options)
        return [  # h(new|old), g(new), h(old|new), g(old)
            [(after, to), (draft, to), (back, keep), (draft, keep)]
            for draft, after, back, to, keep in zip(drafts, after_old, after_new, *answers, strict=True)
        ]
