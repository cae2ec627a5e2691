"""What was found of each pair of a source, kept on disk: a second look at the same rows tokenises nothing.

Rows are told by their contents, so that of a file with one row changed one row is tokenised anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from pathlib import Path
from typing import NamedTuple

from srpo.data.read import Pair

VERSION = 1  # of what is kept; another one is not read
DIGEST = 16  # bytes
LENGTHS = 10  # numbers: of `Fitted.lengths`
NUMBERS = LENGTHS + 3


class Measured(NamedTuple):
    """One pair in numbers.

    Attributes:
        lengths: those of `Fitted`; () where it could not be rendered.
        flat: tokens of its six sequences, unshared; 0 where it has none.
        packed: the same, merged.
        cut: tokens cut from its prompt.
        reason: why it cannot be used; "" if it can.
    """

    lengths: tuple[int, ...]
    flat: int
    packed: int
    cut: int
    reason: str


class Kept:
    """Measured pairs by their contents.

    Attributes:
        file: where they are kept; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._numbers: array[int] = array("i")
        self._reasons: dict[str, str] = {}
        self._at: dict[bytes, int] = {}
        if file:
            self._load(file)

    def get(self, digest: bytes) -> Measured | None:
        """What was found of the pair; None if it is not there."""
        at = self._at.get(digest)
        if at is None:
            return None
        first, *numbers = self._numbers[NUMBERS * at : NUMBERS * (at + 1)]
        lengths = (first, *numbers[: LENGTHS - 1]) if first >= 0 else ()
        flat, packed, cut = numbers[LENGTHS - 1 :]
        return Measured(lengths, flat, packed, cut, self._reasons.get(str(at), ""))

    def add(self, digest: bytes, found: Measured) -> None:
        """Takes a pair up; one that is there already stays."""
        at = self._at.setdefault(digest, len(self._at))
        if NUMBERS * at == len(self._numbers):
            self._numbers.extend(found.lengths or [-1] * LENGTHS)
            self._numbers.extend((found.flat, found.packed, found.cut))
            if found.reason:
                self._reasons[str(at)] = found.reason

    def __len__(self) -> int:
        return len(self._at)

    def save(self) -> None:
        """Writes the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        head = {"byteorder": sys.byteorder, "rows": len(self), "reasons": self._reasons}
        try:
            with unfinished.open("wb") as out:
                out.write(json.dumps(head).encode() + b"\n")
                out.write(b"".join(self._at))
                out.write(self._numbers.tobytes())
            unfinished.replace(self.file)
        finally:
            unfinished.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        """Reads what `save` wrote; a file that is missing, torn or of another machine holds nothing."""
        try:
            with file.open("rb") as read:
                head = json.loads(read.readline())
                rows, reasons = int(head["rows"]), dict(head["reasons"])
                digests, numbers = read.read(DIGEST * rows), read.read()
        except (OSError, ValueError, KeyError, TypeError):
            return
        if head["byteorder"] != sys.byteorder or len(numbers) != rows * NUMBERS * self._numbers.itemsize:
            return
        self._numbers.frombytes(numbers)
        self._reasons = reasons
        self._at = {digests[i : i + DIGEST]: i // DIGEST for i in range(0, len(digests), DIGEST)}


def digest_of(pair: Pair) -> bytes:
    """What tells a pair from others: all that is rendered of it."""
    said = (pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.chat_template_kwargs)
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=DIGEST).digest()
