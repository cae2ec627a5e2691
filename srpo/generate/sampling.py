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
    """Returns `count` random numbers in [0, 1), float64, that depend on seed and key alone.

    A longer sequence starts with the same numbers.
    """
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def choose(logits_NV: Tensor, uniform_N: Tensor | None, temperature: float) -> Tensor:
    """Returns the id of one token per row, [N], drawn from the softmax of its logits / temperature.

    Args:
        logits_NV: logits of N rows over V tokens.
        uniform_N: number in [0, 1) of each row that decides the draw; None takes the most probable token.
    """
    if uniform_N is None:
        return logits_NV.argmax(-1)
    rows = max(1, _CHUNK // logits_NV.shape[1])
    pieces = zip(logits_NV.split(rows), uniform_N.split(rows), strict=True)
    return torch.cat([inverse_sample(_scaled(some, temperature).softmax(-1), at) for some, at in pieces])


def _scaled(logits_NV: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature, in float64.

    Near temperature 0 the row's largest logit is subtracted first, since the quotients would overflow.
    """
    if temperature >= COLD:
        return (logits_NV / temperature).double()
    below_NV = logits_NV.double() - logits_NV.double().amax(-1, keepdim=True)
    return torch.where(below_NV == 0, below_NV, below_NV / temperature)


def inverse_sample(probabilities_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Returns for each of N rows the token at which its cumulative distribution passes its uniform number, [N].

    Args:
        probabilities_NV: N distributions over V tokens; a token of probability 0 is never drawn.
        uniform_N: numbers in [0, 1).
    """
    cumulative_NV = probabilities_NV.cumsum(-1)
    total_N1 = cumulative_NV[:, -1:]
    # Rounding leaves the total probability a little off 1: scale the uniform number to stay below the total.
    reach_N1 = uniform_N[:, None].to(cumulative_NV) * total_N1
    reach_N1 = reach_N1.minimum(total_N1.nextafter(torch.zeros_like(total_N1)))
    return torch.searchsorted(cumulative_NV, reach_N1, right=True)[:, 0].clamp(max=probabilities_NV.shape[1] - 1)
