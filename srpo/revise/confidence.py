"""The model's own confidence in a revision: p(revision ≻ draft), from log-ratios of trained policy to reference.

A scorer computes log π − log π_ref of an answer after a context: `ModelScorer` with both models in this process,
`RatioScorer` from the log-probs of two engines, such as a server with the adapter on and off.

Axes: B prompts, K scored sequences of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from srpo.data.read import PromptRow
from srpo.errors import ConfigError, did_you_mean
from srpo.generate.engine import Logps
from srpo.maths.confidence import preference_eq9, preference_eq14
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.unwrap import adapted, device_of
from srpo.sequences.protocols import PromptRenderer
from srpo.sequences.render import options_of
from srpo.sequences.tree import PrefixTree

Sequences = Sequence[Sequence[tuple[list[int], list[int]]]]
EQUATIONS = ("eq9", "eq14")
REDUCTIONS = ("sum", "mean")


def expect_known(reduction: str, equation: str) -> None:
    """Checks that the name of a reduction (sum or mean) and of an equation (eq9 or eq14) of the confidence are known.

    Raises:
        ConfigError: An unknown name.
    """
    for where, value, known in (("logps_reduction", reduction, REDUCTIONS), ("equation", equation, EQUATIONS)):
        if value not in known:
            fix = did_you_mean(value, known)
            raise ConfigError(f"{value!r}", where=where, expected="one of " + ", ".join(known), fix=fix)


class Scorer(Protocol):
    """Protocol of a scorer: computes log π − log π_ref of answers, trained policy π against reference π_ref."""

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, in nats."""
        ...


class ModelScorer:
    """A scorer that runs a model and its reference in this process; shared prefixes are computed once.

    Args:
        model: The trained policy.
        reference: The model before training; None takes the base under the policy's adapter.
        backend: computation of shared prefixes: auto, path or flat.
    """

    def __init__(self, model: nn.Module, reference: nn.Module | None, *, backend: str = "auto") -> None:
        self.model, self.reference, self.backend = model, reference, backend

    @classmethod
    def available(
        cls, model: nn.Module, reference: nn.Module | None, trained_from: str | None, *, backend: str
    ) -> ModelScorer | None:
        """Returns a scorer that runs both models in this process; None if there is no reference.

        Args:
            reference: The model before training; None takes the base under the adapter of `model`, if it has one.
            trained_from: Kind of reference in training, as the model's record names it; None without a record. For a
                kind other than "adapter off", such as "frozen adapter", the base is not the reference.
            backend: computation of shared prefixes: auto, path or flat.
        """
        has_base = adapted(model) is not None and trained_from in (None, "adapter off")
        return cls(model, reference, backend=backend) if reference is not None or has_base else None

    @torch.no_grad()
    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, in nats."""
        forest = Forest.plant([PrefixTree.pack(each) for each in sequences], device_of(self.model))
        backend = settle_backend(self.model, forest.trees, self.backend)  # one back-end for both models
        policy_BK = sequence_logps(self.model, forest, backend)
        with self._active_reference() as reference:
            return policy_BK - sequence_logps(reference, forest, backend)

    @contextmanager
    def _active_reference(self) -> Iterator[nn.Module]:
        if self.reference is not None:
            yield self.reference.eval()
        else:
            adapter = adapted(self.model)
            assert adapter is not None  # otherwise `available` returns no scorer
            with adapter.disable_adapter():
                yield self.model


@dataclass(frozen=True)
class RatioScorer:
    """A scorer from two functions that return log-probs of (context ids, answer ids) pairs.

    Attributes:
        policy: Returns log π; nan marks an answer that a server could not score.
        reference: Returns log π_ref.
    """

    policy: Logps
    reference: Logps

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, in nats.

        Equal pairs are requested once.
        """
        rows = [[(tuple(context), tuple(answer)) for context, answer in row] for row in sequences]
        pairs = list(dict.fromkeys(pair for row in rows for pair in row))
        scored = zip(pairs, self.policy(pairs), self.reference(pairs), strict=True)
        ratio = {pair: policy - reference for pair, policy, reference in scored}
        return torch.tensor([[ratio[pair] for pair in row] for row in rows], dtype=torch.float64)


@dataclass(frozen=True)
class Confidence:
    """Computes p(new answer ≻ old answer) as the model itself estimates it, by Eq. 9 or Eq. 14 of the paper.

    Attributes:
        scorer: Computes the log-ratios.
        renderer: Makes the contexts of the scored answers.
        beta: β of training.
        reduction: Reduction of token log-probs in training, sum or mean.
        equation: eq9 scores the revising policy alone; eq14 scores drafting and revising, at twice the tokens.
    """

    scorer: Scorer
    renderer: PromptRenderer[list[int]]
    beta: float
    reduction: str = "sum"
    equation: str = "eq9"

    def log_ratios(self, sequences: Sequences) -> Tensor:
        """Returns [B, K] log π − log π_ref of K (context ids, answer ids) for each of B prompts, in nats.

        Log-probs of an answer's tokens are summed or averaged as in training.
        """
        ratio_BK = self.scorer.log_ratios(sequences)
        if self.reduction == "mean":
            ratio_BK = ratio_BK / ratio_BK.new_tensor([[len(answer) for _, answer in each] for each in sequences])
        return ratio_BK

    def compare(self, rows: Sequence[PromptRow], old: Sequence[str], new: Sequence[str]) -> list[tuple[float, int]]:
        """Returns for each prompt p(new ≻ old), the model's own estimate, and the number of tokens read to compute it.

        The estimate is linear, so it may leave [0, 1]. `old` and `new` have one answer per prompt.
        """
        sequences = self._sequences(rows, old, new)
        ratio_KB = self.log_ratios(sequences).unbind(1)
        if self.equation == "eq9":
            preferred_B = preference_eq9(*ratio_KB, beta=self.beta)
        else:
            preferred_B = preference_eq14(*ratio_KB, beta=self.beta)
        tokens = [2 * len(PrefixTree.pack(each)) for each in sequences]  # policy and reference
        return list(zip(preferred_B.tolist(), tokens, strict=True))

    def _sequences(self, rows: Sequence[PromptRow], old: Sequence[str], new: Sequence[str]) -> Sequences:
        """Returns the (context ids, answer ids) pairs to score for each row: 2 for Eq. 9, 4 for Eq. 14."""
        prompts, options = [row.prompt for row in rows], [options_of(row) for row in rows]
        after_old = self.renderer.revisions(prompts, list(old), options)
        answers = (self.renderer.answers(list(new), options), self.renderer.answers(list(old), options))
        if self.equation == "eq9":  # h(new|old), h(old|old)
            return [[(after, to), (after, keep)] for after, to, keep in zip(after_old, *answers, strict=True)]
        drafts, after_new = self.renderer.drafts(prompts, options), self.renderer.revisions(prompts, list(new), options)
        return [  # h(new|old), g(new), h(old|new), g(old)
            [(after, to), (draft, to), (back, keep), (draft, keep)]
            for draft, after, back, to, keep in zip(drafts, after_old, after_new, *answers, strict=True)
        ]
