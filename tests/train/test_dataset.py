"""Rows of any kind → the same trees; rows too long are refused with their six lengths, or counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from srpo.errors import DataError, InputError, LengthError
from srpo.sequences.render import Renderer
from srpo.train.dataset import TreeDataset, collate
from tests.conftest import EOS, make_byte_tokenizer
from tests.train.plain import ASK, ROWS, ids_of

CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_byte_tokenizer())


def build(rows: Any, renderer: Renderer, **options: Any) -> TreeDataset:
    return TreeDataset.build(rows, renderer, **{"max_length": None, **options})


def lengths(row: dict[str, str]) -> list[int]:
    """Tokens of the six sequences, in order, counted by hand."""
    x, w, l = (len(row[key].encode()) for key in ("prompt", "chosen", "rejected"))
    ask = len(ASK)
    return [x + w + 1, x + l + 1, *(x + draft + ask + answer + 1 for draft in (w, l) for answer in (w, l))]


def test_a_row_becomes_its_six_sequences(renderer: Renderer) -> None:
    data = build(ROWS[:1], renderer)
    x, w, l = (ROWS[0][key] for key in ("prompt", "chosen", "rejected"))
    pieces = [(x, w), (x, l), (x + w + ASK, w), (x + w + ASK, l), (x + l + ASK, w), (x + l + ASK, l)]
    assert data.trees[0].unpack() == [(ids_of(context), [*ids_of(answer), EOS]) for context, answer in pieces]
    assert data.sharing == sum(lengths(ROWS[0])) / len(data.trees[0])
    assert data.sharing > 1


def test_every_kind_of_rows_gives_the_same_trees(renderer: Renderer, tmp_path: Path) -> None:
    import datasets

    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    kinds = [ROWS, datasets.Dataset.from_list(ROWS), str(file), file, iter(ROWS), tuple(ROWS)]
    first, *others = (build(rows, renderer).trees for rows in kinds)
    assert len(first) == len(ROWS)
    assert all(trees == first for trees in others)
    # Control: another row is another tree.
    assert build([{**ROWS[0], "chosen": "Four!"}, *ROWS[1:]], renderer).trees != first


def test_messages_with_their_prompt_given_or_shared_give_the_same_trees() -> None:
    import datasets

    chat = Renderer(make_byte_tokenizer(chat_template=CHAT))
    prompt = [{"role": "user", "content": "hello"}]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("hi there", "what"))
    explicit = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    implicit = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    repeated = {"prompt": prompt, "chosen": prompt + chosen, "rejected": prompt + rejected}
    kinds = [[explicit], [implicit], [repeated], datasets.Dataset.from_list([explicit])]
    first, *others = (build(rows, chat).trees for rows in kinds)
    assert all(trees == first for trees in others)


def test_drafts_only_packs_two_sequences(renderer: Renderer) -> None:
    full, drafts = build(ROWS, renderer), build(ROWS, renderer, drafts_only=True)
    assert [tree.unpack() for tree in drafts.trees] == [tree.unpack()[:2] for tree in full.trees]


def test_an_overlong_row_is_named_with_its_six_lengths(renderer: Renderer) -> None:
    six = lengths(ROWS[0])
    with pytest.raises(LengthError) as caught:
        build(ROWS, renderer, max_length=max(six) - 1)
    said = f"row 1: {max(six)} tokens, over the limit of {max(six) - 1} (as drafts {six[:2]}, as revisions {six[2:]})"
    assert said in str(caught.value)
    assert f"1 of {len(ROWS)} rows are too long" in str(caught.value)
    assert "bad_rows=skip" in str(caught.value)
    # An answer that fits alone but not after a draft is overlong, too; at its exact length a row is not.
    assert max(six[:2]) < max(six) - 1
    assert len(build(ROWS, renderer, max_length=max(six))) == len(ROWS)


def test_ten_overlong_rows_are_named_and_the_rest_counted(renderer: Renderer) -> None:
    rows = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(13)]
    with pytest.raises(LengthError, match=r"(?s)13 of 13 .*row 10: .*… and 3 more") as caught:
        build(rows, renderer, max_length=10)
    assert "row 11" not in str(caught.value)


def test_skip_leaves_out_and_counts(renderer: Renderer, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, {"prompt": "p", "chosen": "a"}, {"prompt": "p", "chosen": "same", "rejected": "same"}]
    limit = max(lengths(ROWS[0])) - 1
    with caplog.at_level(logging.WARNING, "srpo"):
        data = build(rows, renderer, max_length=limit, bad_rows="skip")
    assert data.where == [f"row {i}" for i in range(2, len(ROWS) + 1)]
    assert [where for where, _ in data.rejects] == [f"row {len(ROWS) + 1}", f"row {len(ROWS) + 2}", "row 1"]
    assert f"3 of {len(rows)} rows left out" in caplog.text
    assert data.trees == build(ROWS[1:], renderer).trees
    # Control: nothing is left out unasked.
    with pytest.raises(DataError, match="cannot be used"):
        build(rows, renderer)


def test_skipping_everything_is_an_error(renderer: Renderer) -> None:
    with pytest.raises(LengthError, match="7 of 7 rows are too long"):
        build(ROWS, renderer, max_length=5, bad_rows="skip")
    with pytest.raises(DataError, match="1 of 1 rows cannot be used"):
        build([{"prompt": "p"}], renderer, bad_rows="skip")


def test_a_file_that_is_not_there(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        build(str(tmp_path / "nowhere.jsonl"), renderer)


def test_a_batch_names_its_rows(renderer: Renderer) -> None:
    data = build(ROWS, renderer)
    batch = collate([data[2], data[0]])
    assert batch["row"].tolist() == [2, 0]
    assert batch["where"] == ["row 3", "row 1"]
    assert batch["trees"] == [data.trees[2], data.trees[0]]
