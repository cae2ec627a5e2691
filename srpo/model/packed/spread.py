"""Entropy and divergence of next-token distributions, taken from logits while log-probs are computed.

Inside `watched`, the head adds the log-probs of the whole vocabulary at a sample of the scored positions. The sample
has at most `SAMPLED` numbers, so time and memory do not grow with the batch; for a vocabulary of a thousand words it is
every position of a usual batch. Two models that score the same batch are sampled at the same positions, so entropy and
divergence are exact there.

Axes: B pairs, K sequences, T answer tokens, N sampled answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from srpo.model.packed.sums import device_of_sums, wide

SAMPLED = 2**20  # largest number of log-probs in the sample of one forward pass
LEAST = 16  # smallest number of sampled tokens, for large vocabularies
GOLDEN = 0.6180339887498949  # multiples of it modulo 1 are spread evenly over [0, 1)


class Spread:
    """Collects a sample of the next-token distributions of one model on one batch, for entropy and KL.

    Results are sums over the sampled answer tokens of each pair and sequence, [B, K], with the numbers of these tokens,
    so that a caller can add up drafts or revisions before it divides.
    """

    def __init__(self) -> None:
        self._owner: list[Tensor] = []
        self._logps: list[Tensor] = []
        self._sampled_owner: list[Tensor] = []

    @torch.no_grad()
    def add(self, row_T: Tensor, owner_T: Tensor, logits_of: Callable[[Tensor], Tensor], words: int) -> None:
        """Samples answer tokens of one call of the output head, and adds their next-token distributions.

        Args:
            row_T: index of the position at which each answer token is scored.
            owner_T: sequence of each answer token: (index of the pair) · K + index of the sequence; B · K for a padded
                answer token, which is not counted.
            logits_of: function that returns the logits [N, V] of some positions, given their indices [N].
            words: V, size of the vocabulary.
        """
        tokens = len(row_T)
        if not tokens:
            return
        pick_N = sample(tokens, max(LEAST, SAMPLED // words), row_T.device)
        self._owner.append(owner_T)
        self._logps.append(logits_of(row_T[pick_N]).log_softmax(-1))
        self._sampled_owner.append(owner_T[pick_N])

    @property
    def empty(self) -> bool:
        """True if nothing was added, since no forward pass ran: log-probs from a cache come without distributions."""
        return not self._owner

    def tokens(self, shape: tuple[int, int]) -> Tensor:
        """Returns the number of answer tokens of B pairs and K sequences each, [B, K], float64; `shape` is (B, K)."""
        owner_T = torch.cat(self._owner)
        return _sums(torch.ones_like(owner_T), owner_T, shape)[0]

    def entropy(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns sums of entropies of the model's next-token distributions, nats, and how many: [B, K] each.

        They are taken at a random part of the answer tokens. `shape` is (B, K): pairs and sequences of each.
        """
        entropy = [torch.special.entr(logps_NV.exp()).sum(-1) for logps_NV in self._logps]
        return _sums(torch.cat(entropy), torch.cat(self._sampled_owner), shape)

    def divergence(self, other: Spread, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns sums of KL(self ‖ other) over sampled tokens in nats, and the numbers of these tokens, [B, K] each.

        Args:
            other: the distributions of a second model on the same batch.
            shape: (B, K): pairs and sequences of each.
        """
        kl = [_kl(ours, theirs) for ours, theirs in zip(self._logps, other._logps, strict=True)]
        return _sums(torch.cat(kl), torch.cat(self._sampled_owner), shape)


def sample(tokens: int, most: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns indices [N] of a sample of `tokens` tokens, spread evenly: one token in each of N equal parts.

    N is at most `most`. The place within a part changes from part to part: with a fixed one, answers of equal length
    would all be sampled at their first token. The indices are computed on `device`: with a copy from the host, the host
    would wait.
    """
    taken, there = min(tokens, most), device_of_sums(torch.device(device))
    starts = torch.arange(taken + 1, device=there) * tokens // taken
    within_N = torch.arange(1, taken + 1, dtype=torch.float64, device=there) * GOLDEN % 1
    return (starts[:-1] + (within_N * starts.diff()).long()).to(device)


def _kl(ours_NV: Tensor, theirs_NV: Tensor) -> Tensor:
    terms_NV = ours_NV.exp() * (ours_NV - theirs_NV)
    return terms_NV.masked_fill_(ours_NV == -torch.inf, 0.0).sum(-1)  # a word that is never drawn adds nothing


def _sums(value_T: Tensor, owner_T: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    value_T = wide(value_T)
    # The last owner is that of padded answer tokens.
    empty, owner_T = value_T.new_zeros(shape[0] * shape[1] + 1), owner_T.to(value_T.device)
    summed, counted = (empty.index_add(0, owner_T, each)[:-1] for each in (value_T, torch.ones_like(value_T)))
    return summed.view(shape), counted.view(shape)


_watching: Spread | None = None


@contextmanager
def watched() -> Iterator[Spread]:
    """Inside this `with` block, each forward pass adds a sample of its distributions to the `Spread` that it yields."""
    spread = Spread()
    with _set(spread):
        yield spread


def unwatched() -> AbstractContextManager[None]:
    """Inside this `with` block, forward passes add nothing to an outer `watched` block, as those of a self-check."""
    return _set(None)


@contextmanager
def _set(spread: Spread | None) -> Iterator[None]:
    global _watching
    before, _watching = _watching, spread
    try:
        yield
    finally:
        _watching = before


def watching() -> Spread | None:
    """Returns the `Spread` that collects the distributions of forward passes now; None outside of a `watched` block."""
    return _watching
