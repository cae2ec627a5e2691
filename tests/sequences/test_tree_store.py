"""Trees kept compactly and on disk: the same trees come back, and what changes them is not taken for them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.sequences.render import Renderer, RevisionTemplate
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import KEPT_FROM, TreeStore, cache_folder
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from srpo.train.dataset import TreeDataset

ids = st.lists(st.integers(0, 3), max_size=6)
trees = st.lists(st.tuples(ids, ids), min_size=1, max_size=6).map(PrefixTree.pack)
ROWS = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": "999"} for a in range(40) for b in range(30)]


@given(st.lists(trees, max_size=5), st.lists(trees, max_size=5))
def test_trees_come_back(some: list[PrefixTree], more: list[PrefixTree]) -> None:
    store = TreeStore.of(some)
    store.extend(TreeStore.of(more))
    assert list(store) == [*some, *more]
    assert store == TreeStore.of([*some, *more])
    assert [store[i] for i in range(-len(store), 0)] == [*some, *more]
    assert store[1:3] == [*some, *more][1:3]
    assert store.packed_tokens == sum(map(len, [*some, *more]))
    with pytest.raises(IndexError):
        store[len(store)]


def test_on_disk(tmp_path: Path) -> None:
    store = TreeStore.of([PrefixTree.pack([([1, 2], [3]), ([1, 2], [4])]), PrefixTree.pack([([70_000], [9])])])
    file = tmp_path / "deep" / "trees.trees"
    store.save(file, "α note")
    assert TreeStore.load(file) == (store, "α note")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    whole = file.read_bytes()
    for torn in (b"", whole[:4], whole[: len(whole) // 2], whole[:-1], b"x" * 100):
        file.write_bytes(torn)
        assert TreeStore.load(file) is None
    assert TreeStore.load(tmp_path / "nowhere") is None


def build(cache: Path, **changed: Any) -> TreeDataset:
    settings = {"source": ROWS, "renderer": Renderer(carry_tokenizer(), TEMPLATE), "max_length": None, **changed}
    return TreeDataset.build(settings.pop("source"), settings.pop("renderer"), cache=cache, num_proc=1, **settings)


def test_a_second_run_does_not_tokenise_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = build(tmp_path)
    with caplog.at_level(logging.INFO, "srpo"):
        again = build(tmp_path)
    assert (first.tokenised, again.tokenised) == (len(ROWS), 0)
    assert "tokenised before" in caplog.text
    assert again.trees == first.trees
    assert (again.where, again.rejects, again.cut) == (first.where, first.rejects, first.cut)
    # Control: what is kept is read, not made again.
    [kept] = tmp_path.iterdir()
    other = TreeStore.of([PrefixTree.pack([([1], [2])])] * len(ROWS))
    other.save(kept, "[[], []]")
    assert build(tmp_path).trees == other
    kept.write_bytes(kept.read_bytes()[:-7])
    assert build(tmp_path).trees == first.trees


def other_tokenizer() -> Any:
    tokenizer = carry_tokenizer()
    tokenizer.add_tokens(["12"])
    return tokenizer


@pytest.mark.parametrize(
    "changed",
    [
        {"renderer": Renderer(carry_tokenizer(), RevisionTemplate("other", "text", "{{ prompt }}", "{{ draft }}?"))},
        {"renderer": Renderer(other_tokenizer(), TEMPLATE)},
        {"max_length": 100},
        {"truncate": "prompt"},
        {"drafts_only": True},
        {"source": [{**ROWS[0], "rejected": "998"}, *ROWS[1:]]},
        {"source": ROWS[::-1]},
    ],
    ids=["template", "tokenizer", "max_length", "truncate", "drafts_only", "an answer", "the order"],
)
def test_what_changes_the_trees_is_tokenised_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    build(tmp_path)
    anew = build(tmp_path, **changed)
    assert anew.tokenised == len(ROWS)
    assert build(tmp_path, **changed).trees == anew.trees


def test_rejects_and_cuts_are_kept_too(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=" * (i % 7), "chosen": "0" * (1 + 20 * (i % 7 == 0)), "rejected": "03"} for i in range(1, 1500)
    ]
    settings = {"source": rows, "max_length": 14, "truncate": "prompt", "bad_rows": "skip"}
    first, again = build(tmp_path, **settings), build(tmp_path, **settings)
    assert again.tokenised == 0
    assert first.cut
    assert first.rejects
    assert (again.where, again.rejects, again.cut) == (first.where, first.rejects, first.cut)
    assert again.trees == first.trees


def test_few_rows_are_not_kept_and_a_folder_that_takes_nothing_does_not_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, source=ROWS[: KEPT_FROM - 1])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    assert len(build(tmp_path / "file" / "cache")) == len(ROWS)
    assert "not kept" in caplog.text


def test_several_processes_make_the_same(tmp_path: Path) -> None:
    rows = ROWS * 2
    renderer = Renderer(carry_tokenizer(), TEMPLATE)
    alone, together = (
        TreeDataset.build(rows, renderer, max_length=10, bad_rows="skip", truncate="prompt", num_proc=count)
        for count in (1, 2)
    )
    assert together.trees == alone.trees
    assert (together.where, together.rejects, together.cut) == (alone.where, alone.rejects, alone.cut)


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "home" / "datasets" / "srpo"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    assert cache_folder() == tmp_path / "data" / "srpo"
