"""Trees in memory and pairs on disk: the same trees come back, and changed rows are tokenised again."""

from __future__ import annotations

import json
import logging
import sqlite3
from array import array
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.check.inspection import Inspection, inspect
from srpo.sequences import parallel
from srpo.sequences.render import Renderer, RevisionTemplate
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import STORED_FROM, PairStore, RenderedPair, TreeStore, cache_folder
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from srpo.train.dataset import TreeDataset

ids = st.lists(st.integers(0, 3), max_size=6)
trees = st.lists(st.tuples(ids, ids), min_size=1, max_size=6).map(PrefixTree.pack)
ROWS = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": "999"} for a in range(40) for b in range(30)]
FEW = ROWS[::10]  # enough under the fixture `small_store`
small = pytest.mark.usefixtures("small_store")


@given(st.lists(trees, max_size=5))
def test_the_same_trees_come_back(some: list[PrefixTree]) -> None:
    store = TreeStore.of(some)
    assert list(store) == some
    assert store == TreeStore.of(some)
    assert [store[i] for i in range(-len(store), 0)] == some
    assert store[1:3] == some[1:3]
    assert store.packed_tokens == sum(map(len, some))
    with pytest.raises(IndexError):
        store[len(store)]


def build(cache: Path, **changed: Any) -> TreeDataset:
    settings = {"source": FEW, "renderer": Renderer(carry_tokenizer(), TEMPLATE), "max_length": None, **changed}
    return TreeDataset.build(settings.pop("source"), settings.pop("renderer"), cache=cache, num_proc=1, **settings)


def look(cache: Path, rows: Any) -> Inspection:
    return inspect(rows, Renderer(carry_tokenizer(), TEMPLATE), max_length=50, cache=cache, num_proc=1)


@small
def test_a_second_run_tokenises_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = build(tmp_path)
    with caplog.at_level(logging.INFO, "srpo"):
        again = build(tmp_path)
    assert (first.tokenised, again.tokenised) == (len(FEW), 0)
    assert "tokenised before" in caplog.text
    assert again.trees == first.trees
    assert (again.where, again.rejects, again.cut) == (first.where, first.rejects, first.cut)
    # Control: stored trees are read, not made again.
    [stored] = tmp_path.iterdir()
    other = PrefixTree.pack([([1], [2])] * 6)
    with sqlite3.connect(stored) as file:
        file.execute("update pairs set ids = ?, marks = ?", [bytes(TreeStore.of([other]).ids), bytes(other.marks)])
    assert build(tmp_path).trees == TreeStore.of([other] * len(FEW))


@small
def test_check_and_training_tokenise_each_pair_once(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in FEW), "utf-8")
    # Check first, then train with another limit; the other way round; rows in memory.
    assert (look(tmp_path / "a", file).tokenised, build(tmp_path / "a", source=file).tokenised) == (len(FEW), 0)
    assert (build(tmp_path / "b", source=file).tokenised, look(tmp_path / "b", file).tokenised) == (len(FEW), 0)
    assert (look(tmp_path / "c", FEW).tokenised, build(tmp_path / "c").tokenised) == (len(FEW), 0)
    assert build(tmp_path / "a", source=file).trees == build(tmp_path / "none", source=file).trees
    assert look(tmp_path / "a", file).flat_tokens == look(tmp_path / "none", file).flat_tokens
    # Control: with caches of their own each would tokenise.
    assert build(tmp_path / "d").tokenised == len(FEW)


@small
def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    first = build(tmp_path)
    [stored] = tmp_path.iterdir()
    whole = stored.read_bytes()
    for damaged in (b"", b"x" * 100, whole[: len(whole) // 2]):
        stored.write_bytes(damaged)
        assert build(tmp_path).trees == build(tmp_path).trees == first.trees
        assert build(tmp_path).tokenised == 0


@small
def test_an_interrupted_command_stores_its_pairs(tmp_path: Path) -> None:
    rows = [{**row, "chosen": f"{n}{row['chosen']}"} for n in range(3) for row in FEW]

    def interrupted() -> Any:
        yield from rows
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, interrupted())
    assert 0 < build(tmp_path, source=rows).tokenised < len(rows)


def other_tokenizer() -> Any:
    tokenizer = carry_tokenizer()
    tokenizer.add_tokens(["12"])
    return tokenizer


@pytest.mark.parametrize(
    ("changed", "tokenised"),
    [
        ({"renderer": Renderer(carry_tokenizer(), RevisionTemplate("o", "text", "{{ prompt }}", "{{ draft }}"))}, None),
        ({"renderer": Renderer(other_tokenizer(), TEMPLATE)}, None),
        ({"truncate": "prompt"}, None),
        ({"max_length": 100}, 0),
        ({"drafts_only": True}, 0),
        ({"source": [{**FEW[0], "rejected": "998"}, *FEW[1:]]}, 1),
        ({"source": FEW[::-1]}, 0),
    ],
    ids=["template", "tokenizer", "truncate", "max_length", "drafts_only", "an answer", "the order"],
)
@small
def test_a_change_tokenises_only_the_pairs_it_changes(
    tmp_path: Path, changed: dict[str, Any], tokenised: int | None
) -> None:
    build(tmp_path)
    anew = build(tmp_path, **changed)
    assert anew.tokenised == (len(FEW) if tokenised is None else tokenised)
    assert build(tmp_path, **changed).trees == anew.trees == build(tmp_path / "none", **changed).trees


@small
def test_rejects_and_cuts_are_stored_too(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=" * (i % 7), "chosen": "0" * (1 + 20 * (i % 7 == 0)), "rejected": "03"} for i in range(1, 150)
    ]
    settings = {"source": rows, "max_length": 14, "truncate": "prompt", "bad_rows": "skip"}
    first, again = build(tmp_path, **settings), build(tmp_path, **settings)
    assert again.tokenised == 0
    assert first.cut
    assert first.rejects
    assert (again.where, again.rejects, again.cut) == (first.where, first.rejects, first.cut)
    assert again.trees == first.trees


def test_few_rows_are_not_stored_and_a_folder_without_permission_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, source=ROWS[: STORED_FROM - 1])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    assert len(build(tmp_path / "file" / "cache", source=ROWS)) == len(ROWS)
    assert "not stored" in caplog.text


@small
def test_several_processes_make_the_same(tmp_path: Path) -> None:
    rows = FEW * 2
    assert len(rows) > parallel.ALONE
    renderer = Renderer(carry_tokenizer(), TEMPLATE)
    alone, together = (
        TreeDataset.build(rows, renderer, max_length=10, bad_rows="skip", truncate="prompt", num_proc=count)
        for count in (1, 2)
    )
    assert together.trees == alone.trees
    assert (together.where, together.rejects, together.cut) == (alone.where, alone.rejects, alone.cut)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "home" / "datasets" / "srpo"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    assert cache_folder() == tmp_path / "data" / "srpo"


def test_a_thread_may_read_while_another_makes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader came between the opening of the file and the making of its table, and no pair was stored."""
    store = PairStore(tmp_path / "pairs")
    reader = Thread(target=store.get, args=[b"0"])

    class Slow(sqlite3.Connection):
        def execute(self, text: str, *values: Any) -> Any:
            if text.startswith("create"):
                reader.start()
                reader.join(0.1)
            return super().execute(text, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Slow, **options))
    pair = RenderedPair((), 0, 0, array("i"), array("i"))
    for n in range(STORED_FROM):
        store.add(n.to_bytes(2, "big"), pair)
    reader.join()
    store.close()
    assert store.failed == ""
    monkeypatch.undo()
    assert PairStore(store.path).get((7).to_bytes(2, "big")) == pair
