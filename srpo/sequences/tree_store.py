"""Many prefix trees in four arrays: 4 bytes a token, where a tuple of numbers takes 36."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from srpo.sequences.tree import Answer, Chain, PrefixTree, content_of

KEPT_FROM = 1_000  # pairs; fewer are tokenised in less time than it takes to find them kept
COLUMNS = {"ids": "i", "id_ends": "q", "marks": "i", "mark_ends": "q"}  # 4 bytes, and 8 where 4 may not do


class TreeStore(Sequence[PrefixTree]):
    """A sequence of prefix trees, each made anew when it is asked for.

    Attributes:
        ids: token ids of all trees, one after the other.
        id_ends: where each tree's ids end.
        marks: of each tree how many chains it has, their four numbers each, then two for each answer.
        mark_ends: where each tree's marks end.

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
        """These trees."""
        store = cls()
        for tree in trees:
            store.ids.extend(tree.ids)
            store.marks.extend(tree.marks)
            store.id_ends.append(len(store.ids))
            store.mark_ends.append(len(store.marks))
        return store

    def extend(self, other: TreeStore) -> None:
        """Takes up the trees of another store after its own."""
        ids, marks = len(self.ids), len(self.marks)
        self.ids.extend(other.ids)
        self.marks.extend(other.marks)
        self.id_ends.extend(ids + end for end in other.id_ends)
        self.mark_ends.extend(marks + end for end in other.mark_ends)

    @property
    def packed_tokens(self) -> int:
        """Tokens of all trees."""
        return len(self.ids)

    @property
    def flat_tokens(self) -> int:
        """Tokens that their sequences would take unshared."""
        return sum(tree.flat_tokens for tree in self)

    def content(self, index: int) -> bytes:
        """`PrefixTree.content` of one of them, without making the tree."""
        return content_of(*self._parts(index))

    def size(self, index: int) -> int:
        """Tokens of one of them."""
        return self.id_ends[index] - (self.id_ends[index - 1] if index else 0)

    def digest(self) -> str:
        """sha256 of the trees, in their order."""
        found = hashlib.sha256()
        for name in COLUMNS:
            column: array[int] = getattr(self, name)
            found.update(f"{name} {len(column)}\n".encode() + column.tobytes())
        return found.hexdigest()

    def save(self, file: Path, note: str = "") -> None:
        """Writes the trees and a note; the file appears whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = {name: getattr(self, name).tobytes() for name in COLUMNS}
        head = {"byteorder": sys.byteorder, "note": note, "bytes": {name: len(each) for name, each in columns.items()}}
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as out:
                out.write(json.dumps(head).encode() + b"\n")
                for each in columns.values():
                    out.write(each)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: Path) -> tuple[TreeStore, str] | None:
        """The trees and the note in a file; None when it is missing or torn."""
        store = cls()
        try:
            with file.open("rb") as read:
                head = json.loads(read.readline())
                for name in COLUMNS:
                    data = read.read(head["bytes"][name])
                    if len(data) != head["bytes"][name]:
                        return None
                    getattr(store, name).frombytes(data)
                if read.read(1) or head["byteorder"] != sys.byteorder:
                    return None
            note = str(head["note"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = len(store.id_ends) == len(store.mark_ends) and all(
            len(each) == (ends[-1] if ends else 0)
            for each, ends in ((store.ids, store.id_ends), (store.marks, store.mark_ends))
        )
        return (store, note) if whole else None

    def __len__(self) -> int:
        return len(self.id_ends)

    @overload
    def __getitem__(self, index: int) -> PrefixTree: ...
    @overload
    def __getitem__(self, index: slice) -> list[PrefixTree]: ...
    def __getitem__(self, index: int | slice) -> PrefixTree | list[PrefixTree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ids, marks = self._parts(range(len(self))[index])
        count, *numbers = marks.tolist()
        chains = tuple(Chain(*numbers[i : i + 4]) for i in range(0, 4 * count, 4))
        answers = tuple(Answer(*numbers[i : i + 2]) for i in range(4 * count, len(numbers), 2))
        return PrefixTree(tuple(ids), chains, answers)

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


def cache_folder() -> Path:
    """Where tokenised rows are kept by default: beside what `datasets` keeps."""
    home = (
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets") / "srpo"
