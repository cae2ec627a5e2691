"""Sampling by keyed uniform numbers: one number per (seed, row key, token position), and the distribution inverted.

A completion depends on its prompt and key alone: not on its batch, on earlier rows, on the number of guessed tokens, or
on an interruption.

Axes: N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# Entries of [N, V] in double precision at a time: a vocabulary of 128k times 33 verified tokens of 8 rows is 270 MB.
_CHUNK = 2**22
COLD = 1e-3  # temperature below which a quotient could overflow in float32


def uniforms(seed: int, key: str, count: int) -> Tensor:
    """[count] numbers in [0, 1) that depend on (seed, key) alone; a longer sequence starts with the same numbers."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def choose(logits_NV: Tensor, uniform_N: Tensor | None, temperature: float) -> Tensor:
    """[N] the most probable token of each row, or the token that the row's number selects after temperature."""
    if uniform_N is None:
        return logits_NV.argmax(-1)
    rows = max(1, _CHUNK // logits_NV.shape[1])
    pieces = zip(logits_NV.split(rows), uniform_N.split(rows), strict=True)
    return torch.cat([inverse_sample(_scaled(some, temperature).softmax(-1), at) for some, at in pieces])


def _scaled(logits_NV: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature, in float64; near zero, from the largest logit of a row down to −∞."""
    if temperature >= COLD:
        return (logits_NV / temperature).double()
    below_NV = logits_NV.double() - logits_NV.double().amax(-1, keepdim=True)
    return torch.where(below_NV == 0, below_NV, below_NV / temperature)


def inverse_sample(probabilities_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """[N] the token at which the cumulative distribution passes the uniform number; never of probability zero."""
    cumulative_NV = probabilities_NV.cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    # Rounding leaves the last sum a little off 1: scale the number to it, and stay below, rather than fall off the end.
    reach_N1 = uniform_N[:, None].to(cumulative_NV) * total_N1
    reach_N1 = reach_N1.minimum(total_N1.nextafter(torch.zeros_like(total_N1)))
    return torch.searchsorted(cumulative_NV, reach_N1, right=True)[:, 0].clamp(max=probabilities_NV.shape[1] - 1)
