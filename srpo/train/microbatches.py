"""Cuts batches into pieces that fit a token budget, and weights batches of different sizes in one optimiser step.

The method decides how many pairs an optimiser step uses; memory decides how many tokens are computed at once. Every
pair of a step has the same weight, however the step is cut, so the gradient is that of one large batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from srpo.sequences.tree import PrefixTree, merge_prompts
from srpo.train.dataset import FOREST

SHARE = "share"  # key in a batch: its weight in the optimiser step; 1.0 if all batches have one size


def tokens_of(trees: Sequence[PrefixTree], backend: str) -> int:
    """Returns the number of tokens that a back-end computes for some pairs.

    "flat" computes every sequence; the others compute each shared prefix, also the prompt of several pairs, once.
    """
    if backend == "flat":
        return sum(tree.flat_tokens for tree in trees)
    return sum(map(len, merge_prompts(trees)[0]))


def pieces(
    inputs: dict[str, Any], most: int | None, backend: str, accelerator: Accelerator | None = None
) -> list[dict[str, Any]]:
    """Cuts a batch into pieces of at most `most` tokens; a pair over that number is a piece of its own.

    The order of pairs is kept, because transformers drops rows that only fill up the last batch by their position.

    Args:
        inputs: the batch, from `collate`.
        most: maximum tokens in a piece; None cuts nothing.
        backend: attention back-end, which decides how many tokens a pair takes.
        accelerator: accelerator of several processes, which wait for each other at every piece. All of them then cut
            their batches, which have one size, into the same number of pieces.

    Returns:
        Pieces of the batch, each with its weight in the optimiser step; the weights add up to the batch's weight.
    """
    trees = inputs["trees"]
    cuts = [0]
    for i in range(1, len(trees)):
        if most is not None and tokens_of(trees[cuts[-1] : i + 1], backend) > most:
            cuts.append(i)
    ends = [*cuts, len(trees)]
    if most is not None and accelerator is not None and accelerator.num_processes > 1:
        counts = accelerator.gather(torch.tensor([len(cuts)], device=accelerator.device))
        ends = _cut_again(ends, int(counts.max()))
    return [_part(inputs, start, stop) for start, stop in pairwise(ends)]


def _cut_again(ends: list[int], count: int) -> list[int]:
    """Halves the piece with most pairs again and again until there are `count` pieces; returns their boundaries.

    `ends` holds the boundaries before, from 0 to the number of pairs.
    """
    while len(ends) - 1 < count:
        start, stop = max(pairwise(ends), key=lambda piece: piece[1] - piece[0])
        assert stop - start > 1, "batches of several processes have one size"
        ends = sorted([*ends, (start + stop) // 2])
    return ends


def share_out(batches: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Sets the weight (`SHARE`) of each batch of an optimiser step, so that every pair counts equally.

    transformers divides the loss by the number of batches and averages gradients over processes. Both assume batches
    of one size, which fails in the last step of an epoch.
    """
    pairs = whole = sum(len(batch["trees"]) for batch in batches)
    if accelerator.num_processes > 1:
        whole = int(accelerator.gather(torch.tensor(pairs, device=accelerator.device)).sum())
    for batch in batches:
        batch[SHARE] = len(batch["trees"]) * len(batches) * accelerator.num_processes / whole


def _part(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Returns a piece of a batch: rows `start` to `stop` of every column, and their part of the batch's weight.

    Entries that are no columns are copied unchanged.
    """
    count = len(inputs["trees"])
    columns = (list, tuple, torch.Tensor, np.ndarray)
    part = {
        name: value[start:stop] if isinstance(value, columns) and len(value) == count else value
        for name, value in inputs.items()
        if name != FOREST or stop - start == count  # the plan of a whole batch
    }
    return {**part, SHARE: inputs.get(SHARE, 1.0) * (stop - start) / count}
