"""Orders of pairs that keep the pairs of one prompt in one batch, where they are computed as one tree.

Pairs keep their weights: a batch has as many pairs as without grouping, and the loss is their mean. The order of draws
changes: the pairs of a batch are no longer drawn independently.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data import Sampler

from srpo.train.dataset import TreeDataset


class PromptSampler(Sampler[int]):
    """Draws every pair once per epoch, prompts in random order, the pairs of a prompt together.

    Args:
        data: the training pairs.
        batch: pairs in a batch.
        seed: seed of the order; together with the epoch it determines every draw.

    Attributes:
        groups: indices of the pairs of each prompt.
    """

    def __init__(self, data: TreeDataset, batch: int, seed: int) -> None:
        self.groups = groups_of(data, range(len(data)))
        self._batch, self._seed, self._epoch = batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the pairs in an epoch, from 0; a loader calls it before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        source = random.Random(f"{self._seed} {self._epoch}")
        groups = [source.sample(group, len(group)) for group in source.sample(self.groups, len(self.groups))]
        return iter([index for batch in batches_of(groups, self._batch) for index in batch])

    def __len__(self) -> int:
        return sum(map(len, self.groups))


def groups_of(data: TreeDataset, indices: Iterable[int]) -> list[list[int]]:
    """Groups the indices of pairs by prompt and pictures; returns a list per prompt, in order of appearance."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index in indices:
        groups.setdefault((data.trees[index].prompt, *data.picture_keys(index)), []).append(index)
    return list(groups.values())


def batches_of(groups: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Fills batches of `size` pairs with whole groups, earlier groups first; only the last batch may be smaller.

    A batch takes the earliest group that fits into its remaining room. If no group fits, the earliest one is split, as
    is a group above `size`.
    """
    parts = [list(group[at : at + size]) for group in groups for at in range(0, len(group), size)]
    waiting: dict[int, deque[int]] = {}  # length of a part → positions in `parts`, in order
    for position, part in enumerate(parts):
        waiting.setdefault(len(part), deque()).append(position)
    batches: list[list[int]] = []
    batch: list[int] = []
    while heads := [queue[0] for queue in waiting.values() if queue]:
        room = size - len(batch)
        fitting = [position for position in heads if len(parts[position]) <= room]
        position = min(fitting or heads)
        part = parts[position]
        waiting[len(part)].popleft()
        batch += part[:room]
        if rest := part[room:]:
            parts[position] = rest
            waiting.setdefault(len(rest), deque()).appendleft(position)
        if len(batch) == size:
            batches.append(batch)
            batch = []
    return [*batches, batch] if batch else batches
