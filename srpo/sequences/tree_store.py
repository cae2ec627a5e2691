"""Stores many prefix trees in four arrays (4 bytes a token, a tuple needs 36), and tokenised pairs in a file."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from srpo.sequences.tree import Answer, Chain, PrefixTree, content_of

STORED_FROM = 1_000  # number of pairs; fewer are tokenised faster than read from a file
COLUMNS = {"ids": "i", "id_ends": "q", "marks": "i", "mark_ends": "q"}  # array types: 4 bytes, or 8 for ends beyond 2³¹


class TreeStore(Sequence[PrefixTree]):
    """A sequence of prefix trees, each rebuilt on access.

    Attributes:
        ids: token ids of all trees, one after the other.
        id_ends: the end of each tree's ids.
        marks: for each tree its number of chains, four numbers per chain, then two per answer.
        mark_ends: the end of each tree's marks.

    Example:
        >>> tree = PrefixTree.pack([([1, 2], [3]), ([1, 2], [4])])
        >>> store = TreeStore.of([tree, tree])
        >>> len(store), store[1] == tree, store.packed_tokens, store.flat_tokens
        (2, True, 8, 12)
    """

    def __init__(self) -> None:
        self.ids, self.id_ends, self.marks, self.mark_ends = (array(code) for code in COLUMNS.values())

    @classmethod
    def of(cls, trees: Iterable[PrefixTree]) -> TreeStore:
        """Returns a new store with a copy of each tree; `store[i]` is the i-th of them."""
        store = cls()
        for tree in trees:
            store.add(tree.ids, tree.marks)
        return store

    def add(self, ids: Iterable[int], marks: Iterable[int]) -> None:
        """Appends the tree of one tokenised pair: its token ids, and its layout as `PrefixTree.marks`."""
        self.ids.extend(ids)
        self.marks.extend(marks)
        self.id_ends.append(len(self.ids))
        self.mark_ends.append(len(self.marks))

    @property
    def packed_tokens(self) -> int:
        """Number of tokens in all trees, shared prefixes counted once per tree."""
        return len(self.ids)

    @property
    def flat_tokens(self) -> int:
        """Number of tokens in all sequences of all trees, shared prefixes counted once per sequence."""
        return sum(tree.flat_tokens for tree in self)

    def content(self, index: int, pictures: Sequence[bytes] = ()) -> bytes:
        """Returns `PrefixTree.content` of the tree at `index`, bytes that identify it, without building the tree.

        `pictures` are the keys of its pictures.
        """
        return content_of(*self._parts(index), pictures)

    def size(self, index: int) -> int:
        """Returns the number of tokens in the tree at `index`; shared prefixes count once."""
        return self.id_ends[index] - (self.id_ends[index - 1] if index else 0)

    def digest(self) -> str:
        """Returns a sha256, in hex, over the contents of all trees, in order."""
        found = hashlib.sha256()
        for name in COLUMNS:
            column: array[int] = getattr(self, name)
            found.update(f"{name} {len(column)}\n".encode() + column.tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.id_ends)

    @overload
    def __getitem__(self, index: int) -> PrefixTree: ...
    @overload
    def __getitem__(self, index: slice) -> list[PrefixTree]: ...
    def __getitem__(self, index: int | slice) -> PrefixTree | list[PrefixTree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return tree_of(*self._parts(range(len(self))[index]))

    def _parts(self, at: int) -> tuple[array[int], array[int]]:
        ids = self.ids[self.id_ends[at - 1] if at else 0 : self.id_ends[at]]
        return ids, self.marks[self.mark_ends[at - 1] if at else 0 : self.mark_ends[at]]

    def __iter__(self) -> Iterator[PrefixTree]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreeStore):
            return isinstance(other, list) and list(self) == other
        return all(getattr(self, name) == getattr(other, name) for name in COLUMNS)

    __hash__ = None  # type: ignore[assignment]


def tree_of(ids: array[int], marks: array[int]) -> PrefixTree:
    """Rebuilds a tree from its `PrefixTree.ids` and `PrefixTree.marks`."""
    count, *numbers = marks.tolist()
    chains = tuple(Chain(*numbers[i : i + 4]) for i in range(0, 4 * count, 4))
    answers = tuple(Answer(*numbers[i : i + 2]) for i in range(4 * count, len(numbers), 2))
    return PrefixTree(tuple(ids), chains, answers)


# ---------------------------------------------------------------------- on disk


class RenderedPair(NamedTuple):
    """One tokenised pair: its lengths in tokens and its tree, or the reason why it cannot be used.

    Attributes:
        lengths: ten numbers of tokens before any cut: the draft's context, the chosen and the rejected answer, the six
            sequences, the longest of them; () if the pair could not be rendered.
        flat: tokens of its six sequences after any cut, unshared; 0 without a tree.
        cut: tokens cut from its prompt.
        ids, marks: its tree, as in `TreeStore`; empty without a tree.
        kind, reason: class and text of its reject; "" for a usable pair.
    """

    lengths: tuple[int, ...]
    flat: int
    cut: int
    ids: array[int]
    marks: array[int]
    kind: str = ""
    reason: str = ""


class PairStore:
    """Stores tokenised pairs under a digest of their contents, in an SQLite file; threads may share it.

    Storing only saves time: a full disk, a read-only home or a damaged file sets `failed` and stops nothing.

    Attributes:
        path: the file; None stores nothing.
        failed: why pairs are not stored; "" if they are.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.failed = path, ""
        self._file: sqlite3.Connection | None = None
        self._alone = threading.RLock()  # one thread reads pairs to render while another stores those rendered
        self._waiting: list[tuple[object, ...]] = []
        if path and path.exists():
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False)
            columns = "digest blob primary key, lengths blob, flat, cut, ids blob, marks blob, kind, reason"
            self._file.execute(f"create table if not exists pairs ({columns}) without rowid")
        except (sqlite3.Error, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failed, self._file = str(error), None
        self._waiting.clear()
        if self.path and isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            self.path.unlink(missing_ok=True)  # the file is damaged; the next command writes a new one

    def get(self, digest: bytes) -> RenderedPair | None:
        """Returns the tokenised pair stored under this digest of its contents, or None."""
        with self._alone:
            if self._file is None:
                return None
            try:
                row = self._file.execute("select * from pairs where digest = ?", [digest]).fetchone()
            except sqlite3.Error as error:
                self._fail(error)
                return None
        if row is None:
            return None
        _, lengths, flat, cut, ids, marks, kind, reason = row
        return RenderedPair(tuple(array("i", lengths)), flat, cut, array("i", ids), array("i", marks), kind, reason)

    def add(self, digest: bytes, pair: RenderedPair) -> None:
        """Stores a tokenised pair under its digest.

        A new file is written only from a thousand pairs on: reading fewer would save no time.
        """
        if self.path is None or self.failed:
            return
        numbers = (array("i", pair.lengths).tobytes(), pair.flat, pair.cut, pair.ids.tobytes(), pair.marks.tobytes())
        self._waiting.append((digest, *numbers, pair.kind, pair.reason))
        with self._alone:
            if self._file is None and len(self._waiting) == STORED_FROM:
                self._open(self.path)
            if self._file is not None:
                try:
                    self._file.executemany("insert or ignore into pairs values (?, ?, ?, ?, ?, ?, ?, ?)", self._waiting)
                    self._waiting.clear()
                except sqlite3.Error as error:
                    self._fail(error)

    def close(self) -> None:
        """Writes all added pairs to the disk and closes the file; an interrupted command calls it too."""
        with self._alone:
            if self._file is None:
                return
            try:
                self._file.commit()
                self._file.close()
                self._file = None
            except sqlite3.Error as error:
                self._fail(error)


def cache_folder() -> Path:
    """Returns the default folder of stored pairs: beside the cache of the library `datasets`."""
    home = (
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets") / "srpo"
