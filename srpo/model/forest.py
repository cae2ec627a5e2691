"""A forest of prefix trees as tensors: ids, positions, the plan for attending and where answers are scored.

Keys of a chain (see pairs/tree.py) are its path from the root in order, so key j stands at depth j: visibility is
"j ≤ depth of the query", a window W adds "depth − j < W", and a padded key lies beyond every real query by itself.

Axes: S packed tokens, C chains in a group, Q queries, K keys, P scored parents, T answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from srpo.errors import DataError
from srpo.pairs.tree import PrefixTree

# Merging chains of unlike shapes into one call saves a launch and costs padding. One launch with its gathers takes
# about as long as this many extra query-key products; measured on CPU, and not sensitive within a factor of four.
FREE_PADDING = 4096
PADDING_SHARE = 0.15


@dataclass
class ChainGroup:
    """Chains attended to in one call, padded to the longest.

    Attributes:
        queries_CQ: packed index of each query; short chains repeat their last.
        keys_CK: packed index of each key; short paths repeat their last.
        depth_CQ: depth of each query.
        causal: every chain starts at a root, so the plain causal kernel serves.
    """

    queries_CQ: Tensor
    keys_CK: Tensor
    depth_CQ: Tensor
    causal: bool
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> ChainGroup:
        """The same group on another device."""
        queries_CQ, keys_CK, depth_CQ = (t.to(device) for t in (self.queries_CQ, self.keys_CK, self.depth_CQ))
        return ChainGroup(queries_CQ, keys_CK, depth_CQ, self.causal)

    def mask(self, window: int | None) -> Tensor:
        """[C, 1, Q, K] True where the query sees the key."""
        if window not in self.masks:
            key_depth_K = torch.arange(self.keys_CK.shape[1], device=self.keys_CK.device)
            behind_CQK = self.depth_CQ[:, :, None] - key_depth_K
            seen_CQK = behind_CQK >= 0
            if window is not None:
                seen_CQK &= behind_CQK < window
            self.masks[window] = seen_CQK[:, None]
        return self.masks[window]


@dataclass(frozen=True)
class Forest:
    """Trees laid end to end in one row, with the plan for attending over them and for scoring their answers.

    Attributes:
        trees: what was planted, all with equally many sequences.
        ids_1S: token ids.
        positions_1S: position ids: depth in the own tree.
        groups: the chains, grouped by shape.
        place_S: where each token's attention output stands among the groups' outputs.
        parents_P: packed index of each node that some answer token hangs from, each once.
        row_T: which of the parents each answer token is scored at.
        token_T: the answer token's id.
        owner_T: the (tree, sequence) it belongs to, as tree · sequences + sequence.
        block_masks: FlexAttention's, by window, as they have been made.
    """

    trees: tuple[PrefixTree, ...]
    ids_1S: Tensor
    positions_1S: Tensor
    groups: tuple[ChainGroup, ...]
    place_S: Tensor
    parents_P: Tensor
    row_T: Tensor
    token_T: Tensor
    owner_T: Tensor
    block_masks: dict[int | None, Any] = field(default_factory=dict, init=False)

    @cached_property
    def ends_S(self) -> Tensor:
        """[S] one past the last descendant of each token, as packed."""
        ends: list[int] = []
        for tree in self.trees:
            offset = len(ends)
            ends += [offset + end for end in tree.subtree_end]
        return torch.tensor(ends, device=self.ids_1S.device)

    @classmethod
    def plant(cls, trees: Sequence[PrefixTree], device: torch.device | str = "cpu") -> Forest:
        """Lays the trees end to end; no padding between them.

        Raises:
            DataError: an answer has no token, or nothing stands before its first; no tree, or trees of unlike numbers
                of sequences.
        """
        if len({len(tree.answers) for tree in trees}) != 1:
            raise DataError("no trees, or of unlike numbers of sequences", expected="as many of each as of the first")
        starts: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        runs: list[_Run] = []
        for tree in trees:
            offset = len(ids)
            starts.append(offset)
            ids.extend(tree.ids)
            positions.extend(tree.depth)
            for chain in tree.chains:
                path = [(start + offset, stop + offset) for start, stop in tree.slices(chain.stop - 1)]
                runs.append(_Run(chain.start + offset, chain.stop + offset, chain.depth, path))
        groups = [_group(members) for members in _by_shape(runs)]
        rows = (ids, positions, _places(groups, len(ids)), *_scored(trees, starts))
        ids_S, positions_S, *rest = (torch.tensor(values, device=device) for values in rows)
        on_device = tuple(group.to(device) for group, _ in groups)
        return cls(tuple(trees), ids_S[None], positions_S[None], on_device, *rest)


def _places(groups: list[tuple[ChainGroup, list[_Run]]], tokens: int) -> list[int]:
    """Where each packed token's output stands when the padded groups are laid end to end."""
    place, base = [0] * tokens, 0
    for group, members in groups:
        width = group.queries_CQ.shape[1]
        for row, run in enumerate(members):
            at = base + row * width
            place[run.start : run.stop] = range(at, at + run.queries)
        base += len(members) * width
    return place


def _scored(trees: Sequence[PrefixTree], starts: Sequence[int]) -> tuple[list[int], ...]:
    """parents_P, row_T, token_T and owner_T as lists."""
    rows: dict[int, int] = {}
    row_T: list[int] = []
    token_T: list[int] = []
    owner_T: list[int] = []
    sequences = len(trees[0].answers)
    for b, (tree, start) in enumerate(zip(trees, starts, strict=True)):
        for k, answer in enumerate(tree.answers):
            path = tree.path(answer.leaf)
            if not 0 < answer.context < len(path):
                problem = "an answer without tokens" if answer.context else "an answer with nothing before it"
                raise DataError(problem, expected="at least one token before and one in each answer")
            parents = path[answer.context - 1 : -1]
            row_T += [rows.setdefault(start + parent, len(rows)) for parent in parents]
            token_T += [tree.ids[node] for node in path[answer.context :]]
            owner_T += [b * sequences + k] * len(parents)
    return list(rows), row_T, token_T, owner_T


@dataclass(frozen=True)
class _Run:
    """A chain in the packed row: its tokens, the depth of the first, and its path from the root as slices."""

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


def _by_shape(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Runs of like shape together, unlike ones as long as the padding is cheaper than another call."""
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


def _group(members: list[_Run]) -> tuple[ChainGroup, list[_Run]]:
    """Index tensors of chains padded to the longest. Padding repeats a real index, so that no row is fully masked."""
    q_width, k_width = max(run.queries for run in members), max(run.keys for run in members)
    queries, keys, depth = [], [], []
    for run in members:
        short = q_width - run.queries
        queries.append([*range(run.start, run.stop), *[run.stop - 1] * short])
        depth.append([*range(run.depth, run.keys), *[run.keys - 1] * short])
        path = [k for start, stop in run.path for k in range(start, stop)]
        keys.append(path + [run.stop - 1] * (k_width - run.keys))
    causal = members[0].depth == 0
    return ChainGroup(torch.tensor(queries), torch.tensor(keys), torch.tensor(depth), causal), members
