"""Files, folders and names → rows; `formats.py` decides their meaning.

    JSONL           one object per line; any other line becomes an `Unusable`
    .json           an array of objects, or JSONL
    .csv            a header and one row per record
    .parquet        row groups, one after the other
    folder or name  the rows that `datasets.load_dataset` finds, or a folder that `save_to_disk` wrote

A name with one of these endings is always read as that file.

All but `.json` arrays are read piece by piece, so memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from srpo.data.values import Unusable
from srpo.errors import DataError, InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BOM = b"\xef\xbb\xbf"
BATCH = 1000  # rows of a Parquet file at a time
# Columns of a CSV file whose cells are always JSON, and columns whose cells are JSON if they look like messages.
JSON_CELLS = ("completions", "ranks", "scores", "conversations", "preference", "tools", "chat_template_kwargs")
MESSAGE_CELLS = ("prompt", "chosen", "rejected")
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})

Rows = Iterator[tuple[str, Any]]


def rows_of(origin: str | Path, split: str, config: str | None) -> Rows:
    """(place, row or `Unusable`) of each row, in order.

    Raises:
        InputError: no file, folder or data set of that name can be read.
        DataError: the file is not of the kind that its name promises.
    """
    if not str(origin).strip() or "\0" in str(origin):
        raise InputError("no name of a file", where=repr(str(origin)))
    if is_loaded(origin):
        return loaded_rows(str(origin), split, config)
    path = Path(origin)
    return READERS.get(path.suffix.lower(), jsonl_rows)(path)


def is_loaded(origin: str | Path) -> bool:
    """Whether `datasets` loads the origin: a folder, or a name without a file and without a file's ending."""
    if Path(origin).suffix.lower() in (".jsonl", *READERS):
        return False
    # Path.exists raises on a name that is too long for a file.
    return os.path.isdir(origin) or (isinstance(origin, str) and not os.path.exists(origin))


def _unreadable(error: OSError, path: Path) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        kind = {".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}.get(path.suffix.lower(), "JSONL")
        raise InputError("no such file", where=str(path), expected=f"a {kind} file") from None
    raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


# ---------------------------------------------------------------------- JSON


def jsonl_rows(path: str | Path) -> Rows:
    """(`file:line`, value or `Unusable`) of each line that is not blank.

    A byte-order mark, CRLF and blank lines are accepted; every other line must be one JSON value in UTF-8.

    Raises:
        InputError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if number == 1:
                    raw = raw.removeprefix(BOM)
                if raw.strip():
                    yield (
                        f"{path}:{number}",
                        _parse(raw.rstrip(b"\r\n")),
                    )  # else the error of a torn line points past its end
    except OSError as error:
        _unreadable(error, path)


def json_rows(path: Path) -> Rows:
    """The elements of an array with their first lines; a file without an array is read as JSONL.

    Raises:
        InputError: the file is missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1024).removeprefix(BOM).lstrip().startswith(b"["):
                yield from jsonl_rows(path)
                return
            file.seek(0)
            content = file.read().removeprefix(BOM)
    except OSError as error:
        _unreadable(error, path)
    try:
        listed = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield f"{path}:{line}", Unusable(f"not UTF-8: byte {content[error.start]:#04x}; nothing is read of an array")
        return
    yield from _elements(listed, path)


def _elements(listed: str, path: Path) -> Rows:
    """Reads element by element, so that each has its line, and a broken one costs no other."""
    at, line, counted = _past_space(listed, listed.index("[") + 1), 1, 0
    between = None if listed[at : at + 1] != "]" else _BETWEEN.match(listed, at)
    while between is None or between[1] == ",":
        line, counted = line + listed.count("\n", counted, at), at
        where = f"{path}:{line}"
        try:
            row, at = _decoded(listed, at)
        except (ValueError, RecursionError) as error:
            problem = (
                error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or a number too long"
            )
            yield where, Unusable(f"not JSON: {problem}; the rest of the array cannot be read")
            return
        yield where, row
        between = _BETWEEN.match(listed, at)
        if between is None:
            yield where, Unusable("not JSON: no , or ] after this; the rest of the array cannot be read")
            return
        at = between.end()
    if between.end() < len(listed):
        yield f"{path}:{line}", Unusable("not JSON: the array ends before the file does")


def _past_space(listed: str, at: int) -> int:
    while listed[at : at + 1].isspace():
        at += 1
    return at


def _decoded(listed: str, at: int) -> tuple[Any, int]:
    try:
        row, end = _STRICT.raw_decode(listed, at)
        if "\\ud" in listed[at:end].lower():
            json.dumps(row, ensure_ascii=False).encode()
        return row, end
    except UnicodeEncodeError as error:
        return _half(error), end
    except Unusable as problem:  # the element is whole, so the next one can be found
        return problem, json.JSONDecoder().raw_decode(listed, at)[1]


def _parse(raw: bytes) -> Any:
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # in any column, since all columns are written again
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}", f":{error.start + 1}")
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(" starting")  # the column is in front of the message
        return Unusable(f"not JSON: {problem}", f":{error.colno}")
    except RecursionError:
        return Unusable("not usable: nested too deeply")
    except UnicodeEncodeError as error:
        return _half(error)
    except ValueError:  # the only one left: Python refuses to convert an integer this long
        return Unusable("not usable: a number of thousands of digits")
    except Unusable as problem:
        return problem


def _half(error: UnicodeEncodeError) -> Unusable:
    return Unusable(f"holds half of a surrogate pair, {error.object[error.start]!r}")


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) < len(items):
        [(twice, _)] = Counter(key for key, _ in items).most_common(1)
        raise Unusable(f"key {twice!r} occurs twice")
    return row


def _no_constant(word: str) -> Any:
    raise Unusable(f"not JSON: {word} is not a JSON number")


_BETWEEN = re.compile(r"\s*([,\]])\s*")
_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


# ---------------------------------------------------------------------- tables


def csv_rows(path: Path) -> Rows:
    """A row per record, every cell text; `from_cells` converts cells of JSON.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the header names a column twice.
    """
    try:
        # Bytes that are not UTF-8 become lone surrogates, which each row's checks reject. A strict decoder would stop
        # at the buffer's start, many rows away.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            records = csv.reader(file, strict=True)
            header: list[str] | None = None
            while True:
                where = f"{path}:{records.line_num + 1}"
                try:
                    record = next(records)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, Unusable(f"not CSV: {error}; the rest of the file cannot be read")
                    return
                if header is None:
                    header = record
                    if twice := [name for name, count in Counter(header).items() if count > 1]:
                        raise DataError(f"the header names {twice[0]!r} twice", where=where)
                elif record:
                    yield where, _record(header, record)
    except OSError as error:
        _unreadable(error, path)


def _record(header: list[str], record: list[str]) -> Any:
    if len(record) != len(header):
        return Unusable(f"{len(record)} cells; want {len(header)}, as in the header")
    for name, cell in zip(header, record, strict=True):
        if not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell):
            return Unusable(f"not UTF-8: a byte in column {name!r}")
    return dict(zip(header, record, strict=True))


def from_cells(row: object) -> dict[str, Any]:
    """A CSV row with its cells of JSON converted; an empty cell of JSON is null.

    Raises:
        Unusable: a cell is not JSON where it must be.
    """
    if isinstance(row, Unusable):
        raise row
    assert isinstance(row, Mapping)
    row = dict(row)
    for key in JSON_CELLS:
        if key in row and not row[key].strip():
            row[key] = None
        elif key in row:
            parsed = _parse(row[key].encode())
            if isinstance(parsed, Unusable):
                raise Unusable(f"{key!r}: {parsed}")
            row[key] = parsed
    for key in MESSAGE_CELLS:
        if row.get(key, "").lstrip()[:1] in ("[", "{") and _messages(parsed := _parse(row[key].encode())):
            row[key] = parsed
    return row


def _messages(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(
        isinstance(each, dict) and any(keys <= each.keys() for keys in MESSAGE_KEYS) for each in listed
    )


def parquet_rows(path: Path) -> Rows:
    """A row per row, `file:n` counting from 1.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the file is not Parquet, or damaged.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for i in range(len(batch)):
                    number += 1
                    yield f"{path}:{number}", _arrow_row(batch, i)
    except FileNotFoundError as error:
        _unreadable(error, path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{path}:{number + 1}" if number else str(path)
        raise DataError(f"not a whole Parquet file: {_first_line(error)}", where=where) from None


def _arrow_row(batch: RecordBatch, i: int) -> Any:
    try:
        [row] = batch.slice(i, 1).to_pylist()
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8: byte {error.object[error.start]:#04x}")
    except (ValueError, OverflowError) as error:  # a date beyond Python's years
        return Unusable(f"a value Python cannot hold: {error}")
    return row


def loaded_rows(name: str, split: str, config: str | None) -> Rows:
    """(`name, row n`, row) from `datasets`: a folder of files, a folder it saved, or a data set by name.

    Raises:
        InputError: the data set cannot be loaded.
    """
    import datasets

    folder = Path(name)
    try:
        if folder.is_dir() and any((folder / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            found = datasets.load_dataset(name, config, split=split)
        for number, row in enumerate(found, 1):
            yield f"{name}, row {number}", row
    except KeyError:
        raise InputError(f"no split {split!r}", where=name, expected="one of " + ", ".join(found)) from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        expected = "a JSONL, JSON, CSV or Parquet file, or a folder or name that `datasets` can load"
        here = "" if os.path.isdir(name) else "; no such file or folder here, and `datasets` cannot load the name"
        raise InputError(f"no such data{here}: {_first_line(error)}", where=name, expected=expected) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


READERS = {".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
