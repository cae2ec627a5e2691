"""Stores log-probs on disk under a digest of the scored row: append-only, one record of fixed size a row.

    folder/
      about.json      the identity that all rows share, for people to read
      *.logps         segments: a header, then records of digest, log-probs and checksum

A segment has one writer and is never opened for writing again, so two processes cannot tear each other's records. A
crash can tear only the last record of a segment, and readers skip torn records. A missing row costs one computation; a
row that is found is exactly the row that was written.
"""

from __future__ import annotations

import os
import socket
import struct
import uuid
import zlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

MAGIC = b"srpologp1"  # includes the version of the format; segments of other versions are skipped
DIGEST = 16  # bytes; a collision among 10^9 rows has odds of 10^-21
SUFFIX = ".logps"


class LogpStore:
    """Stores rows of `width` log-probs, on disk and in memory, under 16-byte digests.

    Args:
        folder: folder of the files, one or more per process; made when the first row is added.
        identity: hash of all that the rows have in common, such as the model; files with another identity are skipped.
        width: number of log-probs in a row.
        about: the identity in words, written to about.json.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> LogpStore(folder, b"weights", 2).add([b"a" * 16], [[-1.5, -2.5]])
        >>> again = LogpStore(folder, b"weights", 2)
        >>> again.get(b"a" * 16), again.get(b"b" * 16), LogpStore(folder, b"others", 2).get(b"a" * 16)
        ([-1.5, -2.5], None, None)
    """

    def __init__(self, folder: Path, identity: bytes, width: int, about: str = "") -> None:
        self.folder, self.width, self.about = folder, width, about
        self._head = MAGIC + struct.pack("<H", width) + zlib.crc32(identity).to_bytes(4, "little") + identity
        self._record = struct.Struct(f"<{DIGEST}s{width}dI")
        self._at: dict[bytes, int] = {}
        self._logps: array[float] = array("d")
        self._read: dict[str, int] = {}  # segment → bytes read so far; -1 for a segment to skip
        self._out: int | None = None
        self.refresh()

    def get(self, digest: bytes) -> list[float] | None:
        """Returns the log-probs stored under a digest; None if there are none."""
        at = self._at.get(digest)
        return None if at is None else self._logps[self.width * at : self.width * (at + 1)].tolist()

    def __contains__(self, digest: object) -> bool:
        return digest in self._at

    def __len__(self) -> int:
        return len(self._at)

    def add(self, digests: Iterable[bytes], rows: Iterable[Sequence[float]]) -> None:
        """Adds a row of log-probs for each digest, in memory and on disk; a digest that is known keeps its row.

        Raises:
            OSError: the rows cannot be written; they stay in memory, and the store writes nothing more.
        """
        records = [
            self._pack(digest, row) for digest, row in zip(digests, rows, strict=True) if self._take(digest, row)
        ]
        if not records:
            return
        if self._out is None:
            self._out = self._open()
        if self._out >= 0:
            data = b"".join(records)
            try:
                whole = os.write(self._out, data) == len(data)  # one call, so a crash tears at most the end
            except OSError:
                self.close()
                raise
            if not whole:  # the disk is full; records after half a record could not be read
                self.close()
                raise OSError(28, os.strerror(28))

    def refresh(self) -> None:
        """Reads the rows that other processes have written to the folder since the last read."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX))
        except OSError:
            return
        for name in names:
            self._read_segment(name)

    def close(self) -> None:
        """Closes the file that this process writes; rows added later stay in memory only."""
        if self._out is not None and self._out >= 0:
            os.close(self._out)
        self._out = -1

    def _take(self, digest: bytes, row: Iterable[float]) -> bool:
        """Adds a row to memory, not to the disk, and returns True; if the digest has a row already, returns False."""
        if digest in self._at:
            return False
        self._at[digest] = len(self._at)
        self._logps.extend(row)
        return True

    def _pack(self, digest: bytes, row: Sequence[float]) -> bytes:
        body = self._record.pack(digest, *row, 0)[:-4]
        return body + zlib.crc32(body).to_bytes(4, "little")

    def _open(self) -> int:
        """Creates a segment file that only this process writes; returns its file descriptor."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.about and not (note := self.folder / "about.json").exists():
                note.write_text(self.about, "utf-8")  # only people read it, so a torn file does no harm
            name = f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:12]}{SUFFIX}"
            out = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            os.write(out, self._head)
        except OSError:
            self._out = -1
            raise
        self._read[name] = -1  # the rows of its own segment are in memory already
        return out

    def _read_segment(self, name: str) -> None:
        done = self._read.get(name, 0)
        if done < 0:
            return
        try:
            with (self.folder / name).open("rb") as segment:
                if not done:
                    head = segment.read(len(self._head))
                    if head != self._head:  # a header still being written may be whole at the next read
                        self._read[name] = -1 if len(head) == len(self._head) else 0
                        return
                    done = len(head)
                segment.seek(done)
                data = segment.read()
        except OSError:
            return
        size = self._record.size
        whole = len(data) - len(data) % size
        for at in range(0, whole, size):
            digest, *row, check = self._record.unpack_from(data, at)
            if zlib.crc32(memoryview(data)[at : at + size - 4]) == check:
                self._take(digest, row)
        self._read[name] = done + whole
