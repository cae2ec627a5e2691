"""The forest: its tensors say what the trees say, however chains are grouped and padded."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo.errors import DataError
from srpo.model.packed import forest as forest_module
from srpo.model.packed.forest import Forest, _starts
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import forest_of, random_six

rows = st.lists(st.integers(0, 2), min_size=1, max_size=4)
tree = st.lists(st.tuples(rows, rows), min_size=6, max_size=6).map(PrefixTree.pack)
trees = st.lists(tree, min_size=1, max_size=4)
GROUPINGS = {
    "as it is": {},
    "every chain alone": {"FREE_PADDING": -1, "PADDING_SHARE": 0},
    "no padding": {"FREE_PADDING": 0, "PADDING_SHARE": 0},
    "two calls": {"FREE_PADDING": 10**9},
}


def visible(trees: Sequence[PrefixTree], window: int | None) -> list[list[int]]:
    """For each packed token the packed tokens it sees, oldest first: the rule of sequences/tree.py, token by token."""
    seen, offset = [], 0
    for tree in trees:
        for q in range(len(tree)):
            path = [k for k in range(len(tree)) if k <= q < tree.subtree_end[k]]
            near = [k for k in path if window is None or tree.depth[q] - tree.depth[k] < window]
            seen.append([offset + k for k in near])
        offset += len(tree)
    return seen


def attended(forest: Forest, window: int | None) -> list[list[int]]:
    """The same as the groups' indices and masks have it."""
    seen, queries = [], []
    for group in forest.groups:
        mask_CQK = group.mask(window)[:, 0]
        for keys_K, queries_Q, mask_QK in zip(group.keys_CK, group.queries_CQ, mask_CQK, strict=True):
            queries += queries_Q.tolist()
            seen += [keys_K[mask_K].tolist() for mask_K in mask_QK]
    place = forest.place_S.tolist()
    assert [queries[at] for at in place] == list(range(len(place)))  # each token's output is its own
    assert all(seen), "a row that sees nothing would be nan"
    return [seen[at] for at in place]


def scored(forest: Forest) -> list[tuple[int, int, int]]:
    """(parent, token, owner) of each answer token."""
    parents = forest.parents_P[forest.row_T].tolist()
    return list(zip(parents, forest.token_T.tolist(), forest.owner_T.tolist(), strict=True))


def scored_in_words(forest: Forest, first: int = 0) -> list[tuple[int, tuple[int, ...], int]]:
    """(owner, tokens up to the parent, token) of each answer token; `first` is added to the owners."""
    row = forest.ids_1S[0].tolist()
    words = []
    for start, tree in zip(_starts(forest.packed), forest.packed, strict=True):
        words += [tuple(row[start + k] for k in tree.path(q)) for q in range(len(tree))]
    return [(first + owner, words[parent], token) for parent, token, owner in scored(forest)]


def scored_by_hand(trees: Sequence[PrefixTree]) -> list[tuple[int, int, int]]:
    found, offset, owner = [], 0, 0
    for tree in trees:
        node = {tuple(tree.ids[k] for k in tree.path(q)): q for q in range(len(tree))}
        for context, answer in tree.unpack():
            for i, token in enumerate(answer):
                found.append((offset + node[(*context, *answer[:i])], token, owner))
            owner += 1
        offset += len(tree)
    return found


@pytest.fixture(params=GROUPINGS)
def grouping(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in GROUPINGS[request.param].items():
        monkeypatch.setattr(forest_module, name, value)
    return str(request.param)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("shape", ["turn", "quote", "paper"])
def test_every_token_sees_its_path(shape: str, window: int | None, grouping: str) -> None:
    trees = forest_of(shape, pairs=4)
    forest = Forest.plant(trees)
    assert attended(forest, window) == visible(trees, window)
    assert scored(forest) == scored_by_hand(trees)


@settings(deadline=None)
@given(trees, st.sampled_from([None, 1, 2, 4]))
def test_random_forests_see_their_paths(trees: list[PrefixTree], window: int | None) -> None:
    forest = Forest.plant(trees)
    packed = forest.packed
    assert len(packed) == len({tuple(tree.unpack()[0].context) for tree in trees})
    assert forest.ids_1S.tolist() == [[token for tree in packed for token in tree.ids]]
    assert forest.positions_1S.tolist() == [[depth for tree in packed for depth in tree.depth]]
    assert attended(forest, window) == visible(packed, window)
    alone = [scored_in_words(Forest.plant([tree]), at * 6) for at, tree in enumerate(trees)]
    assert sorted(scored_in_words(forest)) == sorted(each for tree in alone for each in tree)
    assert len(set(forest.parents_P.tolist())) == len(forest.parents_P)


def test_other_groupings_give_the_same_visibility(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = forest_of(pairs=4)
    groups = {}
    for name, changed in GROUPINGS.items():
        for constant, value in changed.items():
            monkeypatch.setattr(forest_module, constant, value)
        groups[name] = Forest.plant(trees).groups
        monkeypatch.undo()
    chains = [chain for tree in trees for chain in tree.chains]
    assert all(sum(len(group.keys_CK) for group in each) == len(chains) for each in groups.values())
    assert len(groups["every chain alone"]) == len(chains)
    assert len(groups["no padding"]) == len({(chain.stop - chain.start, chain.depth) for chain in chains})
    assert len(groups["two calls"]) == 2  # roots, which the causal kernel serves, and the rest


def test_the_causal_kernel_is_used_for_roots_only() -> None:
    forest = Forest.plant(forest_of(pairs=4))
    assert [group.causal for group in forest.groups].count(True) >= 1
    for group in forest.groups:
        assert group.causal == bool((group.depth_CQ[:, 0] == 0).all()) == bool((group.depth_CQ[:, 0] == 0).any())
        if group.causal:
            rows = torch.arange(group.keys_CK.shape[1])
            assert group.queries_CQ.shape == group.keys_CK.shape
            for depth_Q, mask_QK in zip(group.depth_CQ, group.mask(None)[:, 0], strict=True):
                real = depth_Q == rows  # padded queries repeat the last and are never read
                assert torch.equal(mask_QK[real], (rows[:, None] >= rows)[real])


def test_masks_are_made_once_per_window_and_not_carried_to_another_device() -> None:
    forest = Forest.plant(forest_of())
    group = forest.groups[0]
    assert group.mask(3) is group.mask(3)
    assert group.mask(None) is not group.mask(3)
    assert forest.to("cpu") is forest
    assert forest.to("meta").groups[0].masks == {}


def test_a_forest_is_one_block_on_its_way_to_a_device_and_to_another_process() -> None:
    forest = Forest.plant(forest_of())
    there = forest.to("meta")
    assert {there.block.device.type, there.ids_1S.device.type, there.groups[-1].keys_CK.device.type} == {"meta"}
    again = pickle.loads(pickle.dumps(forest))
    names = ("ids_1S", "positions_1S", "ends_S", "place_S", "parents_P", "row_T", "token_T", "owner_T", "order_T")
    for name in names:
        tensor = getattr(forest, name)
        assert torch.equal(getattr(again, name), tensor), name
        assert tensor.untyped_storage().data_ptr() == forest.block.untyped_storage().data_ptr(), name
    for ours, theirs in zip(forest.groups, again.groups, strict=True):
        assert torch.equal(ours.queries_CQ, theirs.queries_CQ)
        assert torch.equal(ours.keys_CK, theirs.keys_CK)
        assert torch.equal(ours.depth_CQ, theirs.depth_CQ)
        assert ours.causal == theirs.causal
    assert torch.equal(forest.row_T[forest.order_T], torch.from_numpy(forest.layout.sorted_T))


def test_control_the_comparison_detects_one_wrong_key() -> None:
    trees = forest_of()
    forest = Forest.plant(trees)
    group = next(group for group in forest.groups if not group.causal)
    group.keys_CK[0, 2] += 1
    assert attended(forest, None) != visible(trees, None)


def test_control_the_comparison_detects_an_answer_scored_one_token_early() -> None:
    trees = forest_of()
    forest = Forest.plant(trees)
    forest.parents_P[3] -= 1
    assert scored(forest) != scored_by_hand(trees)


@pytest.mark.parametrize(
    ("sequences", "why"),
    [
        ([([], [1])], "an answer with nothing before it"),
        ([([1], [])], "an answer without tokens"),
        ([([1], [2]), ([1], [])], "an answer without tokens"),
        ([([], [])], "nothing before it"),
    ],
)
def test_answers_that_cannot_be_scored(sequences: list[tuple[list[int], list[int]]], why: str) -> None:
    with pytest.raises(DataError, match=why):
        Forest.plant([PrefixTree.pack(sequences)])


def test_trees_with_different_numbers_of_sequences_are_refused() -> None:
    six = random_six(0)
    for trees in (
        [],
        [PrefixTree.pack(six), PrefixTree.pack(six[:2])],
        [PrefixTree.pack(six[:2]), PrefixTree.pack(six)],
    ):
        with pytest.raises(DataError, match="no trees, or of unlike numbers of sequences"):
            Forest.plant(trees)
