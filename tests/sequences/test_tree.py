"""The prefix tree: nothing is lost or invented, and the two integers per token say who sees whom."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srpo.sequences.tree import Answer, Chain, PrefixTree, TokenPair, merge_prompts

Sequences = list[tuple[list[int], list[int]]]

# Short rows of few letters, so that most examples share, coincide or extend one another; three, for a third branch is
# not like a second.
rows = st.lists(st.integers(0, 2), max_size=4)
sequences = st.lists(st.tuples(rows, rows), max_size=7)
AWKWARD: list[Sequences] = [
    [],
    [([], [])],
    [([], [1]), ([], [1])],
    [([1, 0], [1]), ([1, 0], [1, 1]), ([1], [0, 1])],  # one answer begins the other; another split of the same row
    [([0], [1]), ([1], [0]), ([], [0, 1]), ([], [])],
    [([0], [1])] * 6,
    [([0], [1]), ([0], [2]), ([0], [3, 4]), ([0], [3, 5]), ([0], [3, 6])],
]


def pair(x: list[int], w: list[int], l: list[int], ask: list[int]) -> Sequences:
    """The six sequences of a template that shows the draft as a turn."""
    return [(x, w), (x, l)] + [(x + draft + ask, answer) for draft in (w, l) for answer in (w, l)]


def flat(sequences: Sequences) -> list[tuple[int, ...]]:
    return [(*context, *answer) for context, answer in sequences]


def prefixes(sequences: Sequences) -> set[tuple[int, ...]]:
    """The second implementation: a trie as the set of its paths."""
    return {row[:i] for row in flat(sequences) for i in range(1, len(row) + 1)}


def seen(tree: PrefixTree, q: int) -> list[int]:
    """What the module's rule lets a node see."""
    return [k for k in range(len(tree)) if k <= q < tree.subtree_end[k]]


def check(tree: PrefixTree, sequences: Sequences) -> None:
    """The tree is the trie of the sequences, and every number in it says so."""
    spelled = {tuple(tree.ids[k] for k in seen(tree, q)): q for q in range(len(tree))}
    assert set(spelled) == prefixes(sequences)
    assert len(spelled) == len(tree)
    for prefix, q in spelled.items():
        ancestors = [spelled[prefix[:i]] for i in range(1, len(prefix) + 1)]
        assert seen(tree, q) == ancestors == tree.path(q)
        assert tree.depth[q] == len(prefix) - 1
    for row, answer in zip(flat(sequences), tree.answers, strict=True):
        assert answer.leaf == spelled.get(row, -1)
    assert tree.flat_tokens == sum(map(len, flat(sequences)))


@settings(deadline=None)
@given(sequences)
def test_unpack_gives_back_what_was_packed(sequences: Sequences) -> None:
    assert PrefixTree.pack(sequences).unpack() == sequences


@settings(deadline=None)
@given(rows, rows, rows, rows)
@example([], [1], [1], [])
@example([0], [1], [1, 1], [])
def test_unpack_gives_back_six(x: list[int], w: list[int], l: list[int], ask: list[int]) -> None:
    six = pair(x, w, l, ask)
    tree = PrefixTree.pack(six)
    assert tree.unpack() == six
    assert all(isinstance(each, TokenPair) for each in tree.unpack())
    check(tree, six)


@settings(deadline=None)
@given(sequences)
def test_the_tree_is_the_trie(sequences: Sequences) -> None:
    check(PrefixTree.pack(sequences), sequences)


@pytest.mark.parametrize("sequences", AWKWARD)
def test_awkward_sequences(sequences: Sequences) -> None:
    tree = PrefixTree.pack(sequences)
    assert tree.unpack() == sequences
    check(tree, sequences)


@settings(deadline=None)
@given(sequences)
def test_chains_are_maximal(sequences: Sequences) -> None:
    tree = PrefixTree.pack(sequences)
    parents = {q: (seen(tree, q)[-2:-1] or [-1])[0] for q in range(len(tree))}
    assert [node for chain in tree.chains for node in range(chain.start, chain.stop)] == list(range(len(tree)))
    for chain in tree.chains:
        assert chain.attach == parents[chain.start] != chain.start - 1 or chain.start == 0
        assert all(parents[node] == node - 1 for node in range(chain.start + 1, chain.stop))
        assert chain.depth == tree.depth[chain.start]
    every = prefixes(sequences)
    inner = {path[:-1] for path in every}
    assert len(tree.chains) == len(every - inner) <= len({row for row in flat(sequences) if row})


@settings(deadline=None)
@given(sequences)
def test_slices_are_the_path_in_runs(sequences: Sequences) -> None:
    tree = PrefixTree.pack(sequences)
    assert tree.slices(-1) == tree.path(-1) == []
    for q in range(len(tree)):
        slices = tree.slices(q)
        assert [k for start, stop in slices for k in range(start, stop)] == seen(tree, q)
        assert all(stop < start for (_, stop), (start, _) in pairwise(slices))
        assert len(slices) <= len(tree.chains)


@settings(deadline=None)
@given(sequences.flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))))
def test_the_order_of_sequences_does_not_matter(both: tuple[Sequences, Sequences]) -> None:
    one, other = map(PrefixTree.pack, both)
    assert (one.ids, one.chains) == (other.ids, other.chains)


def test_by_hand() -> None:
    #           ┌ 5 (l)                              Sorted by token id, so 4 before 5 before 9.
    #   1 ─ 2 ──┼ 4 (w) ─ 9 (ask) ─┬ 4
    #           │                  └ 5
    #           └ 5 ─ 9 ─┬ 4                          The draft 5 is a prefix of its revisions.
    #                    └ 5
    tree = PrefixTree.pack(pair([1, 2], [4], [5], [9]))
    assert tree.ids == (1, 2, 4, 9, 4, 5, 5, 9, 4, 5)
    assert tuple(tree.depth) == (0, 1, 2, 3, 4, 4, 2, 3, 4, 4)
    assert tuple(tree.subtree_end) == (10, 10, 6, 6, 5, 6, 10, 10, 9, 10)
    assert tree.chains == (Chain(0, 5, -1, 0), Chain(5, 6, 3, 4), Chain(6, 9, 1, 2), Chain(9, 10, 7, 4))
    assert tree.answers == tuple(Answer(*each) for each in ((2, 2), (6, 2), (4, 4), (5, 4), (8, 4), (9, 4)))
    assert (len(tree), tree.flat_tokens) == (10, 26)


def test_a_pair_costs_what_the_template_promises() -> None:
    x, w, l, ask = list(range(50)), list(range(60, 70)), list(range(80, 87)), [100, 101]
    six = pair(x, w, l, ask)
    # "turn" shares the draft with the trunk: x + 3w + 3l + 2i. Here w and l differ in their first tokens.
    assert len(PrefixTree.pack(six)) == 50 + 3 * 10 + 3 * 7 + 2 * 2
    assert PrefixTree.pack(six).flat_tokens == 6 * 50 + 5 * 10 + 5 * 7 + 4 * 2
    # Control: where the three contexts begin differently nothing but they themselves is shared.
    apart = [([n, *context], answer) for n, (context, answer) in zip((0, 0, 1, 1, 2, 2), six, strict=True)]
    assert len(PrefixTree.pack(apart)) == 3 * 51 + 4 * (10 + 7) + 2 * 2


def test_long_rows_that_differ_late() -> None:
    # The common prefix is found by bisection: try every place at which two rows may part.
    row = [7] * 40
    for at in range(40):
        other = [*row[:at], 8, *row[at + 1 :]]
        sequences: Sequences = [(row[:1], row[1:]), (other[:1], other[1:]), (row[:1], row[1 : at + 1])]
        tree = PrefixTree.pack(sequences)
        assert len(tree) == 40 + 40 - at
        check(tree, sequences)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chains": (Chain(0, 5, -1, 0), Chain(5, 6, 3, 4), Chain(6, 9, 0, 1), Chain(9, 10, 7, 4))},  # a parent too high
        {
            "chains": (Chain(0, 5, -1, 0), Chain(5, 6, 4, 5), Chain(6, 9, 1, 2), Chain(9, 10, 7, 4))
        },  # a sibling as parent
        {"ids": (1, 2, 4, 9, 4, 5, 5, 9, 5, 4)},
        {"answers": tuple(Answer(*each) for each in ((2, 2), (6, 2), (4, 4), (9, 4), (8, 4), (5, 4)))},
    ],
)
def test_control_a_damaged_tree_fails_the_check(wrong: dict[str, object]) -> None:
    six = pair([1, 2], [4], [5], [9])
    tree = PrefixTree.pack(six)
    check(tree, six)
    with pytest.raises(AssertionError):
        check(replace(tree, **wrong), six)  # type: ignore[arg-type]


@given(st.lists(st.lists(st.tuples(rows, rows), min_size=2, max_size=2), max_size=4))
def test_trees_of_one_prompt_are_merged(pairs: list[Sequences]) -> None:
    trees = [PrefixTree.pack(each) for each in pairs]
    merged, members = merge_prompts(trees)
    assert sorted(index for group in members for index in group) == list(range(len(trees)))
    assert [group[0] for group in members] == sorted(group[0] for group in members)
    prompts = [tuple(pairs[group[0]][0][0]) for group in members]
    assert prompts == list(dict.fromkeys(tuple(each[0][0]) for each in pairs))
    for tree, group in zip(merged, members, strict=True):
        assert tree.unpack() == [TokenPair(*each) for index in group for each in pairs[index]]
        assert {tuple(pairs[index][0][0]) for index in group} == {tree.prompt}
