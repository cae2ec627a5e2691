"""Flat token sequences that share prefixes, merged into one tree.

A pair gives six sequences (context, answer): both answers as drafts, and as revisions of each. Wherever two of them
begin with equal tokens, these are stored, and later computed, once. Merging can never change the results, only how
often they are computed; `unpack(pack(six)) == six` is a test.

Nodes are laid out depth-first, so two integers per token say everything:

    token q sees token k   exactly when   k ≤ q < subtree_end[k]
    its position id        is             depth[q]

and an answer token is scored at its *parent* node. (In a flat row the parent is the token before; in a tree siblings
share one, so the usual shift by one is wrong.)

The layout cuts the tree into chains: maximal runs in which every token is its predecessor's first child. A tree of six
sequences has at most six chains, and a token's ancestors are a few contiguous slices of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srpo.sequences.picture_inputs import PicturedIds, PictureInputs, keys_of, pictures_in


class TokenPair(NamedTuple):
    """One flat sequence: token ids given as context, and token ids scored as answer."""

    context: Sequence[int]
    answer: Sequence[int]


class Chain(NamedTuple):
    """A contiguous run of tree nodes, each the parent of the next.

    Attributes:
        start: first node.
        stop: one past the last node.
        attach: parent node of `start`, −1 for a root.
        depth: depth of `start`, which is `attach`'s plus one.
    """

    start: int
    stop: int
    attach: int
    depth: int


class Answer(NamedTuple):
    """The place of one sequence's scored tokens in a prefix tree.

    Attributes:
        leaf: node of the sequence's last token, −1 for an empty sequence.
        context: tokens of the sequence that are given rather than scored.
    """

    leaf: int
    context: int


@dataclass(frozen=True)
class PrefixTree:
    """Token sequences merged at their shared prefixes, one node per token in depth-first order.

    Attributes:
        ids: token id of each node.
        chains: the runs of nodes that make up the tree, in node order.
        answers: one entry per packed sequence, in the order given.
        pictures: pictures of the prompt, which every sequence contains in this order; () for text.

    Example:
        >>> tree = PrefixTree.pack([([1, 2], [3]), ([1, 2], [4]), ([1, 2, 3, 9], [4])])
        >>> tree.ids, tuple(tree.depth.tolist()), tuple(tree.subtree_end.tolist())
        ((1, 2, 3, 9, 4, 4), (0, 1, 2, 3, 4, 2), (6, 6, 5, 5, 5, 6))
        >>> tree.unpack()[2]
        TokenPair(context=[1, 2, 3, 9], answer=[4])
    """

    ids: tuple[int, ...]
    chains: tuple[Chain, ...]
    answers: tuple[Answer, ...]
    pictures: tuple[PictureInputs, ...] = ()

    @classmethod
    def pack(cls, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PrefixTree:
        """Merges (context ids, answer ids) sequences at equal prefixes into a tree; six come in `SixLogps` order.

        All contexts contain the same pictures. A sequence with an empty context can be merged but not scored, since no
        token is before its first answer token.
        """
        flat = [[*context, *answer] for context, answer in sequences]
        ids, chains, path_ends = _merge(flat)
        answers = tuple(Answer(leaf, len(context)) for leaf, (context, _) in zip(path_ends, sequences, strict=True))
        pictures = {pictures_in(context) for context, _ in sequences} or {()}
        assert len(pictures) == 1, "sequences of one tree show the same pictures"
        return cls(tuple(ids), tuple(chains), answers, pictures.pop())

    def unpack(self) -> list[TokenPair]:
        """Returns the (context ids, answer ids) sequences that were merged into the tree, in their order."""
        flat = [[self.ids[node] for node in self.path(answer.leaf)] for answer in self.answers]
        return [
            TokenPair(self._pictured(row[: answer.context]), row[answer.context :])
            for row, answer in zip(flat, self.answers, strict=True)
        ]

    def _pictured(self, context: list[int]) -> list[int]:
        return PicturedIds(context, self.pictures) if self.pictures else context

    def slices(self, node: int) -> list[tuple[int, int]]:
        """Returns the tree's nodes from the root to `node`, included, as contiguous (start, stop) slices; [] for −1."""
        found: list[tuple[int, int]] = []
        while node >= 0:
            chain = self.chains[self._chain_of(node)]
            found.append((chain.start, node + 1))
            node = chain.attach
        return found[::-1]

    def path(self, node: int) -> list[int]:
        """Returns the tree's nodes from the root to `node`, both included; [] for −1."""
        return [k for start, stop in self.slices(node) for k in range(start, stop)]

    @cached_property
    def prompt(self) -> tuple[int, ...]:
        """Token ids of the first sequence's context: the prompt that a draft answers; () for a tree of no sequence."""
        if not self.answers:
            return ()
        leaf, context = self.answers[0]
        slices = self.slices(leaf)
        if slices and slices[0][1] - slices[0][0] >= context:
            return self.ids[slices[0][0] : slices[0][0] + context]
        return tuple(self.ids[node] for node in self.path(leaf)[:context])

    @cached_property
    def depth(self) -> NDArray[np.int64]:
        """Position id of each node: the number of tokens before it on the path from the root."""
        return ranges((chain.depth, chain.depth + chain.stop - chain.start) for chain in self.chains)

    @cached_property
    def subtree_end(self) -> NDArray[np.int64]:
        """For each node of the tree, one past its last descendant."""
        lengths = [chain.stop - chain.start for chain in self.chains]
        ends = np.repeat(np.array([chain.stop for chain in self.chains], np.int64), lengths)
        for chain in reversed(self.chains):  # children before their parents
            if chain.attach >= 0:
                above = ends[self.chains[self._chain_of(chain.attach)].start : chain.attach + 1]
                np.maximum(above, ends[chain.start], out=above)
        return ends

    @property
    def marks(self) -> array[int]:
        """The tree's layout as integers: the number of chains, four numbers per chain, then two per answer."""
        numbers = array("i", [len(self.chains)])
        for part in (*self.chains, *self.answers):
            numbers.extend(part)
        return numbers

    @property
    def content(self) -> bytes:
        """Bytes that identify the tree, its sequences, their scored tokens and its pictures."""
        return content_of(array("i", self.ids), self.marks, keys_of(self.pictures))

    @property
    def flat_tokens(self) -> int:
        """Number of tokens in all sequences of the tree; a shared prefix counts once per sequence."""
        return sum(self._depth_of(answer.leaf) + 1 for answer in self.answers)

    def _chain_of(self, node: int) -> int:
        return bisect_right(self.chains, node, key=lambda chain: chain.start) - 1

    def _depth_of(self, node: int) -> int:
        if node < 0:
            return -1
        chain = self.chains[self._chain_of(node)]
        return chain.depth + node - chain.start

    def __len__(self) -> int:
        return len(self.ids)


def merge_prompts(trees: Sequence[PrefixTree]) -> tuple[list[PrefixTree], list[list[int]]]:
    """Merges the trees that share a prompt and its pictures into one tree, in order of first appearance.

    Returns:
        The merged trees, and for each of them the indices of the given trees that it was made of. A merged tree holds
        the sequences of these trees in that order. A tree that shares its prompt with no other is returned unchanged.
    """
    members: dict[tuple[object, ...], list[int]] = {}
    for index, tree in enumerate(trees):
        members.setdefault((tree.prompt, *keys_of(tree.pictures)), []).append(index)
    merged = [
        PrefixTree.pack([sequence for index in group for sequence in trees[index].unpack()])
        if len(group) > 1
        else trees[group[0]]
        for group in members.values()
    ]
    return merged, list(members.values())


def ranges(slices: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Returns the integers in (start, stop) slices, one slice after the other, as one array."""
    return np.concatenate([np.empty(0, np.int64), *(np.arange(start, stop) for start, stop in slices)])


def content_of(ids: array[int], marks: array[int], pictures: Sequence[bytes] = ()) -> bytes:
    """Returns `PrefixTree.content`, bytes that identify a tree, from its `ids`, `marks` and the keys of its pictures.

    The bytes also hold two lengths, so that different trees cannot give equal bytes.
    """
    text = len(ids).to_bytes(8, "little") + ids.tobytes() + marks.tobytes()
    return text + b"".join([b"pictures", len(text).to_bytes(8, "little"), *pictures]) if pictures else text


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of elements at the start that two lists have in common, by bisection: slices are compared in C."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _merge(flat: list[list[int]]) -> tuple[list[int], list[Chain], list[int]]:
    """Merges flat token sequences at equal prefixes.

    Returns the tree's token ids in depth-first order, its chains, and the last node of each sequence (−1 if empty).

    In sorted order every subtree is a contiguous run of sequences, and each sequence shares its longest prefix with
    the one before it, so one walk over the sorted sequences is a depth-first walk of the tree. Sorting puts a prefix
    before its extensions and the branches of a node in order of token id.
    """
    order = sorted(range(len(flat)), key=lambda i: flat[i])
    ids: list[int] = []
    chains: list[Chain] = []
    leaves = [-1] * len(flat)
    path: list[tuple[int, int]] = []  # the current path: (first node, its depth) per chain
    before: list[int] = []
    for i in order:
        row = flat[i]
        shared = common_prefix(before, row)
        while path and path[-1][1] >= shared:
            path.pop()
        attach = path[-1][0] + shared - 1 - path[-1][1] if path else -1
        if shared < len(row):
            extends = attach == len(ids) - 1 and path
            if extends:
                start, stop, parent, depth = chains[-1]
                chains[-1] = Chain(start, stop + len(row) - shared, parent, depth)
            else:
                path.append((len(ids), shared))
                chains.append(Chain(len(ids), len(ids) + len(row) - shared, attach, shared))
            ids.extend(row[shared:])
            leaves[i] = len(ids) - 1
        else:
            leaves[i] = attach
        before = row
    return ids, chains, leaves
