"""Batches that are computed in pieces, and batches of unlike size that make one optimiser step.

How many pairs an optimiser step learns from is a matter of the method; how many tokens are computed at once is a matter
of memory. A batch over the budget is cut where the budget is reached, and every pair of a step weighs the same, however
the step is cut: the gradient is that of one large batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from srpo.pairs.tree import PrefixTree

SHARE = "share"  # of a batch in its optimiser step, relative to that of one among equal batches


def tokens_of(tree: PrefixTree, backend: str) -> int:
    """Tokens that are computed for a pair."""
    return tree.flat_tokens if backend == "flat" else len(tree)


def pieces(inputs: dict[str, Any], most: int | None, backend: str) -> list[dict[str, Any]]:
    """The batch cut where the next pair would exceed the budget; a pair that exceeds it by itself goes alone.

    Order is kept: in evaluation the rows that only fill the last batch up are told by their place.

    Args:
        most: tokens in a piece; None cuts nothing.

    Returns:
        Parts of the batch, whose shares add up to that of the whole.
    """
    trees = inputs["trees"]
    cuts = [0]
    if most is not None:
        held = 0
        for i, tree in enumerate(trees):
            tokens = tokens_of(tree, backend)
            if i > cuts[-1] and held + tokens > most:
                cuts.append(i)
                held = 0
            held += tokens
    return [_part(inputs, start, stop) for start, stop in zip(cuts, [*cuts[1:], len(trees)], strict=True)]


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
