"""Opens data files: finds their kind, unpacks their bytes, and raises errors for files that cannot be read."""

from __future__ import annotations

import codecs
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from srpo.errors import DataError, InputError

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
# Ending of a compressed file → its first bytes.
PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ"}
# First bytes → the name of a kind of file that holds no rows of text.
FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x80\x04\x95": "a pickle",
    b"\x80\x05\x95": "a pickle",
}
HEAD = 512  # bytes looked at to tell what a file is; a tar archive says so at byte 257
FILE_FAILS = (OSError, EOFError, lzma.LZMAError)

Rows = Iterator[tuple[str, Any]]


def kind_of(path: Path) -> str:
    """Returns the kind of a data file, one of `ENDINGS`: from its name, else from its first bytes, else `.jsonl`."""
    if (ending := ending_of(path)) in ENDINGS:
        return ending
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        head = b""
    return ".parquet" if head[:4] == b"PAR1" else ".arrow" if head == b"ARROW1" else ".jsonl"


def ending_of(path: Path) -> str:
    """Returns the lower-case ending of a file's name, without `.gz` and the like: `.jsonl` for `a.jsonl.gz`."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def opened(path: Path) -> BinaryIO:
    """Opens a text file as bytes: unpacked if it is compressed, converted to UTF-8 if it is UTF-16.

    Raises:
        OSError: the file cannot be read.
        DataError: it is an archive or another kind of file that is not text, or it is UTF-16 in part only.
    """
    file: BinaryIO = path.open("rb")
    head = file.read(HEAD)
    file.seek(0)
    packed = next((name for name, magic in PACKED.items() if head.startswith(magic)), None)
    if packed == ".xz":
        with file:
            content = io.BytesIO(lzma.decompress(file.read()))
        file, head = content, content.getvalue()[:HEAD]
    elif packed:
        import pyarrow

        stream = pyarrow.CompressedInputStream(file, {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[packed])
        buffered = io.BufferedReader(stream)
        file, head = cast(BinaryIO, buffered), buffered.peek(HEAD)[:HEAD]
    if foreign := _foreign(head):
        file.close()
        fix = "unpack it, or export its rows" if "archive" in foreign else "export its rows"
        raise DataError(f"this is {foreign}", where=str(path), expected="one of " + ", ".join(ENDINGS), fix=fix)
    if (encoding := _utf16(head)) is None:
        return file
    with file:
        try:
            return io.BytesIO(file.read().decode(encoding).encode())
        except UnicodeError as error:
            raise DataError(f"not UTF-16: {error}", where=str(path)) from None


def _foreign(head: bytes) -> str | None:
    """Name of a file format that srpo cannot read as text rows, such as "a PDF document", by a file's first bytes.

    None if the bytes may begin a file of text.
    """
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(b"ORC") and any(byte < 32 and byte not in b"\t\r\n" for byte in head[3:16]):
        return "an ORC file"  # and not a text that begins with ORCID
    return next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)


def _utf16(head: bytes) -> str | None:
    """The UTF-16 encoding of a file that begins with these bytes, such as "utf-16-le"; None for UTF-8.

    A file without a byte-order mark is UTF-16 if every second byte of its first characters is zero, which never occurs
    in UTF-8 text.
    """
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    first = head[:8]
    if len(first) < 8 or first.count(0) != 4:
        return None
    return "utf-16-le" if not any(first[1::2]) else "utf-16-be" if not any(first[::2]) else None


def unreadable(error: Exception, path: Path) -> NoReturn:
    """Raises the error for a data file that could not be read because of `error`.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the file is compressed and damaged.
    """
    if isinstance(error, FileNotFoundError):
        kinds = {".json": "JSON", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet", ".arrow": "Arrow"}
        raise InputError(
            "no such file", where=str(path), expected=f"a {kinds.get(ending_of(path), 'JSONL')} file"
        ) from None
    if isinstance(error, EOFError | lzma.LZMAError) or getattr(error, "errno", None) is None:
        raise DataError(f"not a whole compressed file: {first_line(error)}", where=str(path)) from None
    raise InputError(f"cannot be read: {getattr(error, 'strerror', '') or error}", where=str(path)) from None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or the name of its class if the text is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
