"""Batches that are computed in pieces, and batches of unlike size that make one optimiser step.

How many pairs an optimiser step learns from is a matter of the method; how many tokens are computed at once is a matter
of memory. A batch over the budget is cut where the budget is reached, and every pair of a step weighs the same, however
the step is cut: the gradient is that of one large batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from srpo.sequences.tree import PrefixTree

SHARE = "share"  # of a batch in its optimiser step, relative to that of one among equal batches


def tokens_of(tree: PrefixTree, backend: str) -> int:
    """Tokens that are computed for a pair."""
    return tree.flat_tokens if backend == "flat" else len(tree)


def pieces(inputs: dict[str, Any], most: int | None, backend: str, accelerator: Any = None) -> list[dict[str, Any]]:
    """The batch cut where the next pair would exceed the budget; a pair that exceeds it by itself goes alone.

    Order is kept: in evaluation the rows that only fill the last batch up are told by their place.

    Args:
        most: tokens in a piece; None cuts nothing.
        accelerator: of processes that compute their batches together, and wait for each other at every piece: all of
            them cut as often as the one that has to most. Their batches are of one size.

    Returns:
        Parts of the batch, whose shares add up to that of the whole.
    """
    sizes = [tokens_of(tree, backend) for tree in inputs["trees"]] if most is not None else []
    cuts = [0]
    for i in range(1, len(sizes)):
        if sum(sizes[cuts[-1] : i + 1]) > (most or 0):
            cuts.append(i)
    ends = [*cuts, len(inputs["trees"])]
    if most is not None and accelerator is not None and accelerator.num_processes > 1:
        asked = accelerator.gather(torch.tensor([len(cuts)], device=accelerator.device))
        ends = _cut_again(ends, int(asked.max()))
    return [_part(inputs, start, stop) for start, stop in pairwise(ends)]


def _cut_again(ends: list[int], count: int) -> list[int]:
    """As many pieces as that, by halving the longest."""
    while len(ends) - 1 < count:
        start, stop = max(pairwise(ends), key=lambda piece: piece[1] - piece[0])
        assert stop - start > 1, "batches of several processes are of one size"
        ends = sorted([*ends, (start + stop) // 2])
    return ends


def share_out(batches: list[dict[str, Any]], accelerator: Any) -> None:
    """Gives the batches of one optimiser step their shares, so that pairs weigh alike whatever batch they are in.

    transformers divides a loss by the number of batches, and processes' gradients are averaged: both suppose that all
    are of one size, which the last step of an epoch is not.
    """
    pairs = torch.tensor(sum(len(batch["trees"]) for batch in batches), device=accelerator.device)
    whole = int(accelerator.gather(pairs).sum())
    for batch in batches:
        batch[SHARE] = len(batch["trees"]) * len(batches) * accelerator.num_processes / whole


def _part(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    count = len(inputs["trees"])
    return {**dict(_sliced(inputs, start, stop)), SHARE: inputs.get(SHARE, 1.0) * (stop - start) / count}


def _sliced(inputs: dict[str, Any], start: int, stop: int) -> Iterator[tuple[str, Any]]:
    for name, column in inputs.items():
        is_column = isinstance(column, list | tuple | torch.Tensor) and len(column) == len(inputs["trees"])
        yield name, column[start:stop] if is_column else column
