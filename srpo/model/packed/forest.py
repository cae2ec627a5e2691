"""A forest of prefix trees as tensors: ids, positions, the plan of attention and the places where answers are scored.

Pairs with one prompt become one tree, so that their prompt, and every answer they share, is computed once.

Keys of a chain (see sequences/tree.py) are its path from the root in order, so key j has depth j: visibility is
"j ≤ depth of the query", a window W adds "depth − j < W", and a padded key is deeper than every real query.

Axes: S packed tokens, C chains in a group, Q queries, K keys, P scored parents, T answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srpo.errors import ConfigError, DataError
from srpo.model.transfer import page_locked, to_device
from srpo.sequences.tree import PrefixTree, merge_prompts, ranges

# Merging chains of different shapes into one call saves a kernel launch and costs padding. One launch with its gathers
# takes as long as about this many query-key products (measured on CPU; a factor of four either way changes little).
FREE_PADDING = 4096
PADDING_SHARE = 0.15  # padding allowed beyond `FREE_PADDING`, as a share of the real query-key products
BLOCK = 64  # largest number of queries of a chain in a padded forest; more would pad short answers too far


@dataclass
class ChainGroup:
    """Chains (runs of tree nodes) that one attention call computes, padded to the longest chain and the longest path.

    C chains have Q queries and K keys each.

    Attributes:
        queries_CQ: packed index of each query; short chains repeat their last query.
        keys_CK: packed index of each key; short paths repeat their last key.
        depth_CQ: depth of each query in its tree.
        causal: True if every chain starts at a root, so that the plain causal kernel is exact.
        masks: results of the method `mask`, kept by window.
    """

    queries_CQ: Tensor
    keys_CK: Tensor
    depth_CQ: Tensor
    causal: bool
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Returns the boolean mask [C, 1, Q, K] of the group's C chains: True where a query sees a key.

        `window` is a sliding window in tokens; None sets no limit.
        """
        if window not in self.masks:
            key_depth_K = torch.arange(self.keys_CK.shape[1], device=self.keys_CK.device)
            behind_CQK = self.depth_CQ[:, :, None] - key_depth_K
            seen_CQK = behind_CQK >= 0
            if window is not None:
                seen_CQK &= behind_CQK < window
            self.masks[window] = seen_CQK[:, None]
        return self.masks[window]


class Layout(NamedTuple):
    """Describes how all tensors of a `Forest` lie in its one block of memory, so that they can be found there.

    Attributes:
        shapes: shapes of the tensors in their order: those of `_NAMES`, then queries, keys and depths of each group.
        causal: for each group, True if all of its chains start at a root.
        sorted_T: the values of `Forest.row_T` in rising order, on the host.
        multiple: the number whose multiples all lengths are padded to; None if nothing is padded.
    """

    shapes: tuple[tuple[int, ...], ...]
    causal: tuple[bool, ...]
    sorted_T: NDArray[np.int64]
    multiple: int | None = None


# Tensors in the block of a forest, in this order.
_NAMES = ("ids_1S", "positions_1S", "ends_S", "place_S", "parents_P", "row_T", "token_T", "owner_T", "order_T")


class Forest:
    """A batch of prefix trees as tensors: all S tokens in one row, groups for attention, and the T answer tokens.

    All numbers are views of one block of memory, so that a batch goes to a device in one copy. Not a dataclass, because
    FSDP takes apart and rebuilds every dataclass among the inputs of a layer.

    A padded forest (see `plant`) has further tokens, positions and answer tokens at the end. No answer depends on them:
    padded tokens see themselves or a real token's path, and padded answer tokens belong to no sequence.

    Attributes:
        trees: the planted trees, one per pair, all with the same number of sequences.
        packed: the trees as they lie in the row: those of one prompt are merged into one.
        layout: the layout of the block.
        block: all numbers, int64.
        ids_1S: token ids.
        positions_1S: position ids: depth of each token in its tree.
        ends_S: for each packed token, the packed index one past its last descendant in the tree.
        groups: the chains, grouped by shape.
        place_S: index of each token's attention output in the concatenated outputs of the groups.
        parents_P: packed index of each node at which answer tokens are scored, without repeats.
        row_T: index into `parents_P` of the node at which each answer token is scored.
        token_T: id of each answer token.
        owner_T: sequence of each answer token: (index in `trees`) · (sequences of a tree) + index in the tree; the
            number of all sequences for a padded answer token.
        order_T: indices of the answer tokens, sorted by `row_T`.
        block_masks: FlexAttention's block masks, kept by window.
    """

    def __init__(
        self, trees: tuple[PrefixTree, ...], packed: tuple[PrefixTree, ...], layout: Layout, block: Tensor
    ) -> None:
        self.trees, self.packed, self.layout, self.block = trees, packed, layout, block
        parts = block.split([math.prod(shape) for shape in layout.shapes])
        views = [part.view(shape) for part, shape in zip(parts, layout.shapes, strict=True)]
        self.ids_1S, self.positions_1S, self.ends_S, self.place_S, *scored = views[: len(_NAMES)]
        self.parents_P, self.row_T, self.token_T, self.owner_T, self.order_T = scored
        first = range(len(_NAMES), len(views), 3)
        self.groups = tuple(
            ChainGroup(views[i], views[i + 1], views[i + 2], causal)
            for i, causal in zip(first, layout.causal, strict=True)
        )
        self.block_masks: dict[int | None, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Forest, (self.trees, self.packed, self.layout, self.block)  # one block instead of its many views

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Forest:
        """Returns the forest on a device; the host does not wait for a GPU, whatever `non_blocking` is."""
        return self._with(to_device(self.block, device))

    def pin_memory(self) -> Forest:
        """Returns the forest in page-locked memory; torch's DataLoader calls this where a GPU trains."""
        return self._with(page_locked(self.block))

    def _with(self, block: Tensor) -> Forest:
        return self if block is self.block else Forest(self.trees, self.packed, self.layout, block)

    @classmethod
    def plant(
        cls, trees: Sequence[PrefixTree], device: torch.device | str = "cpu", multiple: int | None = None
    ) -> Forest:
        """Builds a forest from trees, laid end to end in one row; trees with one prompt are merged.

        Args:
            multiple: pads the row, the scored positions, the answer tokens, and the keys and queries of attention to
                multiples of this number, with one group of chains, so that few shapes serve all batches of a size.
                None pads nothing and makes as many groups as the chains need.

        Raises:
            DataError: an answer has no token or no token before it; no trees, or trees with different numbers of
                sequences.
            ConfigError: pictures, which are not padded.
        """
        if len({len(tree.answers) for tree in trees}) != 1:
            raise DataError("no trees, or of unlike numbers of sequences", expected="as many of each as of the first")
        if multiple and any(tree.pictures for tree in trees):
            raise ConfigError("rows with pictures are not padded", where="pad_to_multiple_of", fix="leave it out")
        packed, members = merge_prompts(trees)
        starts = _starts(packed)
        ids_S = np.concatenate([np.array(tree.ids, np.int64) for tree in packed])
        sequences = len(trees[0].answers)
        owners = [index * sequences + k for group in members for index in group for k in range(sequences)]
        parents_P, row_T, token_T, owner_T = _scored(packed, starts, ids_S, owners)
        runs = _runs(packed, starts, BLOCK if multiple else None)
        groups = [_padded_group(runs, multiple)] if multiple else [_group(members) for members in _by_shape(runs)]
        positions_S, place_S = np.concatenate([tree.depth for tree in packed]), _places(groups, len(ids_S))
        ends_S = np.concatenate([tree.subtree_end + start for tree, start in zip(packed, starts, strict=True)])
        if multiple:
            more_S = np.arange(len(ids_S), rounded_up(len(ids_S), multiple))  # tokens that see themselves alone
            ends_S = np.concatenate([ends_S, more_S + 1])
            ids_S, positions_S = (_padded(each, multiple, 0) for each in (ids_S, positions_S))
            place_S, parents_P = (_padded(each, multiple, each[-1]) for each in (place_S, parents_P))
            row_T, token_T = _padded(row_T, multiple, len(parents_P) - 1), _padded(token_T, multiple, 0)
            owner_T = _padded(owner_T, multiple, len(trees) * sequences)
        order_T = row_T.argsort(kind="stable")
        numbers = [ids_S[None], positions_S[None], ends_S, place_S, parents_P, row_T, token_T, owner_T, order_T]
        numbers += [array for group in groups for array in group.arrays]
        shapes, causal = tuple(array.shape for array in numbers), tuple(group.causal for group in groups)
        block = torch.from_numpy(np.concatenate([array.ravel() for array in numbers]))
        return cls(tuple(trees), tuple(packed), Layout(shapes, causal, row_T[order_T], multiple), block).to(device)


def rounded_up(count: int, multiple: int | None) -> int:
    """Returns the smallest multiple of `multiple` that is at least `count`; `count` itself for None."""
    return -(-count // multiple) * multiple if multiple else count


def _padded(values: NDArray[np.int64], multiple: int, value: int) -> NDArray[np.int64]:
    """Appends `value` to the values until their number is a multiple of `multiple`."""
    return np.pad(values, (0, rounded_up(len(values), multiple) - len(values)), constant_values=value)


def _starts(trees: Sequence[PrefixTree]) -> list[int]:
    """Returns the index of each tree's first token in the packed row, where the trees lie end to end."""
    return [0, *accumulate(map(len, trees))][:-1]


def _places(groups: list[_Group], tokens: int) -> NDArray[np.int64]:
    """Makes `Forest.place_S`, which puts attention outputs back in the order of the packed row.

    Returns the index of each of the row's `tokens` in the outputs of all groups, one after the other.
    """
    place_S, base = np.empty(tokens, np.int64), 0
    for group in groups:
        width = group.arrays[0].shape[1]
        for row, run in enumerate(group.runs):
            at = base + row * width
            place_S[run.start : run.stop] = np.arange(at, at + run.queries)
        base += len(group.runs) * width
    return place_S


def _scored(
    trees: Sequence[PrefixTree], starts: Sequence[int], ids_S: NDArray[np.int64], owners: Sequence[int]
) -> tuple[NDArray[np.int64], ...]:
    """Finds the answer tokens of packed trees; returns the fields parents_P, row_T, token_T and owner_T of a `Forest`.

    Args:
        trees: the trees of the row.
        starts: packed index of each tree's first token.
        ids_S: token ids of the row.
        owners: the entry of owner_T for each sequence of the trees, in order.

    Raises:
        DataError: an answer has no token, or no token before it.
    """
    parents: list[NDArray[np.int64]] = []
    tokens: list[NDArray[np.int64]] = []
    for tree, start in zip(trees, starts, strict=True):
        for answer in tree.answers:
            path = ranges(tree.slices(answer.leaf)) + start
            if not 0 < answer.context < len(path):
                problem = "an answer without tokens" if answer.context else "an answer with nothing before it"
                raise DataError(problem, expected="at least one token before and one in each answer")
            parents.append(path[answer.context - 1 : -1])
            tokens.append(ids_S[path[answer.context :]])
    owner_T = np.repeat(np.array(owners, np.int64), [len(each) for each in tokens])
    sorted_P, first_P, rank_T = np.unique(np.concatenate(parents), return_index=True, return_inverse=True)
    order_P = first_P.argsort()
    return sorted_P[order_P], order_P.argsort()[rank_T], np.concatenate(tokens), owner_T


@dataclass(frozen=True)
class _Run:
    """One chain (run of tree nodes) at its place in the packed row.

    Attributes:
        start, stop: packed indices of its first token and one past its last.
        depth: depth of its first token in the tree.
        path: (start, stop) slices of the row from the tree's root to the chain's end.
    """

    start: int
    stop: int
    depth: int
    path: list[tuple[int, int]]

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return self.depth + self.queries


def _runs(trees: Sequence[PrefixTree], starts: Sequence[int], most: int | None) -> list[_Run]:
    """Lists the chains of packed trees in the order of the row; cuts them into runs of at most `most` tokens, if given.

    `starts` holds the packed index of each tree's first token.
    """
    runs = []
    for tree, offset in zip(trees, starts, strict=True):
        for chain in tree.chains:
            for first in range(chain.start, chain.stop, most or chain.stop - chain.start):
                last = min(first + (most or chain.stop), chain.stop)
                path = [(start + offset, stop + offset) for start, stop in tree.slices(last - 1)]
                runs.append(_Run(first + offset, last + offset, chain.depth + first - chain.start, path))
    return runs


def _by_shape(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Sorts chains into lists, one for each attention call.

    Chains of different lengths share a call, padded, as long as the padding costs less than another call.
    """
    members: list[_Run] = []
    real = queries = keys = 0
    for run in sorted(runs, key=lambda run: (run.depth > 0, run.keys, run.queries)):
        wide_q, wide_k = max(queries, run.queries), max(keys, run.keys)
        area = real + run.queries * run.keys
        padding = (len(members) + 1) * wide_q * wide_k - area
        unlike = bool(members) and (members[0].depth > 0) != (run.depth > 0)
        if members and (unlike or padding > FREE_PADDING + PADDING_SHARE * area):
            yield members
            members, area, wide_q, wide_k = [], run.queries * run.keys, run.queries, run.keys
        members.append(run)
        real, queries, keys = area, wide_q, wide_k
    if members:
        yield members


class _Group(NamedTuple):
    """A `ChainGroup` in the making, in NumPy.

    Attributes:
        arrays: its queries_CQ, keys_CK and depth_CQ.
        runs: its chains.
        causal: True if every chain starts at a root.
    """

    arrays: tuple[NDArray[np.int64], ...]
    runs: list[_Run]
    causal: bool


def _padded_group(runs: list[_Run], multiple: int) -> _Group:
    """Makes the one group of a padded forest, of chains of at most `BLOCK` tokens.

    The last chain is repeated until the queries of all chains, and the keys of each, are a multiple of `multiple` or
    the next number that chains of equal length allow. The mask of such a group is never left out: whether all chains
    start at a root depends on the batch.
    """
    count = rounded_up(len(runs), -(-multiple // BLOCK))
    keys = rounded_up(max(run.keys for run in runs), multiple)
    group = _group([*runs, *[runs[-1]] * (count - len(runs))], BLOCK, keys)
    return group._replace(causal=False)


def _group(runs: list[_Run], queries: int = 0, keys: int = 0) -> _Group:
    """Makes the arrays of one group of chains, padded to the longest chain and path, or to more queries and keys.

    Padding repeats a real token's index: a query that sees no key at all would give nan.
    """
    q_width = max(queries, *(run.queries for run in runs))
    k_width = max(keys, *(run.keys for run in runs))
    queries_CQ, depth_CQ = np.empty((2, len(runs), q_width), np.int64)
    keys_CK = np.empty((len(runs), k_width), np.int64)
    for query_Q, depth_Q, key_K, run in zip(queries_CQ, depth_CQ, keys_CK, runs, strict=True):
        query_Q[: run.queries], query_Q[run.queries :] = np.arange(run.start, run.stop), run.stop - 1
        depth_Q[: run.queries], depth_Q[run.queries :] = np.arange(run.depth, run.keys), run.keys - 1
        key_K[: run.keys], key_K[run.keys :] = ranges(run.path), run.stop - 1
    return _Group((queries_CQ, keys_CK, depth_CQ), runs, runs[0].depth == 0)
