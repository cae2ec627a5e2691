"""A key/value cache with one slot per position, row by row: rolling back costs nothing, and rows may differ in length.

Row n stores the token at position p in slot p + 1. Slots after a row's last token hold rejected guesses; no query sees
them, and the next token at a position overwrites its slot. Cropping a row therefore only changes a number, and the rows
of a batch may advance by different amounts without gaps. Slot 0 takes the padding of rows with fewer new tokens.

Axes: N rows, H key-value heads, W slots, D head size, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 1.25  # a wider buffer is a copy of the old one


class _Where:
    """The cache slots to which a forward pass writes its tokens; the layers of a cache share one object."""

    def __init__(self) -> None:
        self.slots_NQ = torch.zeros(0, 0, dtype=torch.long)
        self.rows_N1 = torch.zeros(0, 1, dtype=torch.long)
        self.width, self.start = 0, -1

    def set(self, slots: Sequence[Sequence[int]], device: torch.device) -> None:
        first = slots[0]
        together = all(row == first for row in slots) and first[0] > 0  # then a slice replaces a scatter
        self.start = first[0] if together else -1
        self.width = max(row[-1] for row in slots) + 1
        self.slots_NQ = torch.tensor(slots if not together else [first], device=device)
        self.rows_N1 = torch.arange(len(slots), device=device)[:, None]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Returns the attention mask [N rows, 1, Q queries, W slots]: 0 where a query sees a slot, −∞ elsewhere.

        N is 1 if all rows write to the same slots. The mask is not boolean, since eager attention adds it to scores.
        """
        slots_NQ1 = self.slots_NQ[:, :, None]
        at_W = torch.arange(self.width, device=slots_NQ1.device)
        seen_NQW = (at_W <= slots_NQ1) & ((at_W > 0) | (slots_NQ1 == 0))
        blank = torch.zeros((), dtype=dtype, device=at_W.device)
        return torch.where(seen_NQW, blank, blank - torch.inf)[:, None]


class SlotLayer(DynamicLayer):
    """The cached keys and values of one model layer, for transformers' attention."""

    def __init__(self, where: _Where) -> None:
        super().__init__()
        self.where = where

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values of one layer into their slots; returns keys and values of all slots in use.

        All tensors are [rows, key-value heads, tokens, head size]. Slots hidden from a query are left to the mask.
        """
        self.keys, self.values = self._written(self.keys, key_states), self._written(self.values, value_states)
        self.is_initialized = True
        return self.keys[:, :, : self.where.width], self.values[:, :, : self.where.width]

    def _written(self, buffer_NHWD: Tensor | None, block_NHQD: Tensor) -> Tensor:
        where = self.where
        if buffer_NHWD is None:
            n, heads, _, size = block_NHQD.shape
            buffer_NHWD = block_NHQD.new_zeros(n, heads, 0, size)
        if buffer_NHWD.shape[2] < where.width:
            buffer_NHWD = widened(buffer_NHWD, int(GROWTH * where.width) + 8)
        if where.start >= 0:
            buffer_NHWD[:, :, where.start : where.start + block_NHQD.shape[2]] = block_NHQD
        else:
            buffer_NHWD[where.rows_N1, :, where.slots_NQ] = block_NHQD.transpose(1, 2)
        return buffer_NHWD


def widened(buffer_NHWD: Tensor, width: int) -> Tensor:
    """Returns a copy of a buffer of keys or values, [rows, heads, slots, head size], with `width` slots per row.

    New slots are 0 and not uninitialised: attention multiplies hidden slots by 0, which does not remove a nan.
    """
    n, heads, old, size = buffer_NHWD.shape
    wide_NHWD = buffer_NHWD.new_zeros(n, heads, width, size)
    wide_NHWD[:, :, :old] = buffer_NHWD
    return wide_NHWD


class SlotCache(Cache):
    """The key/value cache of a batch, with one `SlotLayer` per model layer."""

    def __init__(self, layers: int) -> None:
        self.where = _Where()
        self.kv = [SlotLayer(self.where) for _ in range(layers)]
        super().__init__(layers=list(self.kv))

    def place(self, slots: Sequence[Sequence[int]], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Sets the slots to which the next forward pass writes its tokens: a list of slot numbers per row.

        Returns:
            The additive attention mask, [rows, 1, new tokens, slots].
        """
        self.where.set(slots, device)
        return self.where.mask(dtype)

    def select(self, rows: Sequence[int]) -> SlotCache:
        """Returns a new cache with copies of the rows with these numbers, in the given order."""
        part = SlotCache(len(self.kv))
        for mine, theirs in zip(self.kv, part.kv, strict=True):
            if mine.keys is not None and mine.values is not None:
                index_N = torch.tensor(list(rows), device=mine.keys.device)
                theirs.keys, theirs.values = mine.keys.index_select(0, index_N), mine.values.index_select(0, index_N)
                theirs.is_initialized = True
        return part

    def put_back(self, rows: Sequence[int], part: SlotCache) -> None:
        """Copies the rows of `part`, a cache made by `select(rows)`, back into this cache."""
        for mine, theirs in zip(self.kv, part.kv, strict=True):
            mine.keys = _replaced(mine.keys, theirs.keys, rows)
            mine.values = _replaced(mine.values, theirs.values, rows)


def _replaced(whole_NHWD: Tensor | None, part_NHWD: Tensor | None, rows: Sequence[int]) -> Tensor:
    assert whole_NHWD is not None  # `select` copied from a filled cache
    assert part_NHWD is not None
    width = part_NHWD.shape[2]
    if whole_NHWD.shape[2] < width:
        whole_NHWD = widened(whole_NHWD, width)
    whole_NHWD[:, :, :width].index_copy_(0, torch.tensor(list(rows), device=whole_NHWD.device), part_NHWD)
    return whole_NHWD
