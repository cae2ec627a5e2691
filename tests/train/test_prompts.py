"""Orders of pairs that keep a prompt together: every pair once, batches full, groups whole where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.errors import ConfigError
from srpo.train.prepare_reference import _batches
from srpo.train.prompts import PromptSampler, batches_of, groups_of
from tests.train.plain import logged, settings, trainer

MANY = [
    {"prompt": f"Question {n}: ", "chosen": chosen, "rejected": rejected}
    for chosen, rejected in (("yes", "no"), ("yes", "perhaps"), ("perhaps", "no"))
    for n in range(5)
]


def test_batches_by_hand() -> None:
    assert batches_of([[0, 1], [2], [3, 4, 5], [6]], 4) == [[0, 1, 2, 6], [3, 4, 5]]
    assert batches_of([[0, 1, 2], [3, 4, 5]], 4) == [[0, 1, 2, 3], [4, 5]]  # nothing fits: the earliest is split
    assert batches_of([[0, 1, 2, 3, 4], [5]], 2) == [[0, 1], [2, 3], [4, 5]]  # more pairs than a batch
    assert batches_of([], 4) == []


@given(st.lists(st.integers(1, 7), max_size=30), st.integers(1, 9))
def test_every_pair_once_in_full_batches(sizes: list[int], size: int) -> None:
    groups, at = [], 0
    for n in sizes:
        groups.append(list(range(at, at + n)))
        at += n
    batches = batches_of(groups, size)
    assert sorted(index for batch in batches for index in batch) == list(range(at))
    assert all(len(batch) == size for batch in batches[:-1])


@given(st.lists(st.integers(1, 7), max_size=12), st.integers(7, 9))
def test_no_prompt_is_split_while_single_pairs_fill_the_room(sizes: list[int], size: int) -> None:
    groups, at = [], 0
    for n in [*sizes, *[1] * size * len(sizes)]:
        groups.append(list(range(at, at + n)))
        at += n
    batches = batches_of(groups, size)
    assert all(sum(bool(set(batch) & set(group)) for batch in batches) == 1 for group in groups)


def test_the_sampler_draws_each_epoch_anew_and_keeps_prompts_whole(tmp_path: Path) -> None:
    made = trainer(tmp_path, MANY)
    sampler = PromptSampler(made.pairs, 6, seed=3)
    assert sorted(map(sorted, sampler.groups)) == [[n, n + 5, n + 10] for n in range(5)]
    assert len(sampler) == len(MANY)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(len(MANY)))
        for at in range(0, len(MANY), 3):
            assert len({index % 5 for index in epochs[-1][at : at + 3]}) == 1
    assert epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert list(sampler) == epochs[0]
    assert list(PromptSampler(made.pairs, 6, seed=4)) != epochs[0]


def tokens_of_an_epoch(folder: Path, **args: Any) -> int:
    args = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 6, **args}
    made = trainer(folder, MANY, args={"include_num_input_tokens_seen": "all", **args})
    made.train()
    assert len(logged(made, "loss")) == 3
    return int(made.state.num_input_tokens_seen)


def test_training_by_prompt_computes_fewer_tokens(tmp_path: Path) -> None:
    apart, together = (tokens_of_an_epoch(tmp_path / str(on), group_by_prompt=on) for on in (False, True))
    made = trainer(tmp_path / "one", MANY)
    assert apart <= sum(made.pairs.size(i) for i in range(len(MANY)))
    assert together < 0.7 * apart


def test_missing_reference_rows_are_scored_prompt_by_prompt(tmp_path: Path) -> None:
    data = trainer(tmp_path, MANY).pairs
    batches = _batches(data, list(range(len(MANY))), 3)
    assert sorted(map(sorted, batches)) == [[n, n + 5, n + 10] for n in range(5)]
    assert groups_of(data, [7, 2, 0]) == [[7, 2], [0]]


def test_rows_in_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group_by_prompt decides"):
        settings(tmp_path, group_by_prompt=True, train_sampling_strategy="sequential")
