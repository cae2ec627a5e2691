"""Reads the rows of CSV, TSV, Parquet and Arrow files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.data.json_values import parse_json
from srpo.data.opened import FILE_FAILS, Rows, ending_of, first_line, opened, unreadable
from srpo.data.values import Unusable, python_or_json
from srpo.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

BATCH = 1000  # number of Parquet rows read at a time
# Columns of a CSV file whose cells are JSON.
JSON_CELLS = ("completions", "ranks", "scores", "conversations", "preference", "tools", "chat_template_kwargs")


def csv_rows(path: Path) -> Rows:
    """Yields (`file:line`, row or `Unusable`) for each record of a CSV or TSV file.

    All cells are text, also those with JSON; `from_cells` parses them later. The cells of a .csv file may be separated
    by semicolons, tabs or bars, if its header has no comma.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the header names a column twice.
    """
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that only their row is rejected. A strict decoder would
        # fail at the start of its buffer, many rows earlier.
        with io.TextIOWrapper(opened(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            separator = "\t" if ending_of(path) == ".tsv" else _separator(first)
            records = csv.reader(chain([first], file), strict=True, delimiter=separator)
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
    except FILE_FAILS as error:
        unreadable(error, path)


def _separator(header: str) -> str:
    """The character that separates the cells of a .csv file, found in its first line, the header.

    It is a comma, or in a header without commas the semicolon, tab or bar that occurs there.
    """
    return next((sign for sign in ",;\t|" if sign in header), ",")


def _record(header: list[str], record: list[str]) -> Any:
    if len(record) != len(header):
        return Unusable(f"{len(record)} cells; want {len(header)}, as in the header")
    for name, cell in zip(header, record, strict=True):
        if not cell.isascii() and any("\udc80" <= letter <= "\udcff" for letter in cell):
            return Unusable(f"not UTF-8: a byte in column {name!r}")
    return dict(zip(header, record, strict=True))


def from_cells(row: object) -> dict[str, Any]:
    """Returns a CSV row with the cells of the columns `JSON_CELLS`, such as scores, parsed as JSON or Python text.

    Empty cells of these columns become None.

    Raises:
        Unusable: a cell of such a column is neither JSON nor a Python literal.
    """
    if isinstance(row, Unusable):
        raise row
    assert isinstance(row, Mapping)
    row = dict(row)
    for key in JSON_CELLS:
        if key in row and not row[key].strip():
            row[key] = None
        elif key in row:
            parsed = parse_json(row[key].encode())
            if isinstance(parsed, Unusable) and (written := python_or_json(row[key])) is not None:
                parsed = written  # a list in Python's notation
            if isinstance(parsed, Unusable):
                raise Unusable(f"{key!r}: {parsed}")
            row[key] = parsed
    return row


def parquet_rows(path: Path) -> Rows:
    """Yields (`file:n`, row or `Unusable`) for each row of a Parquet file, n counted from 1.

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
        unreadable(error, path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{path}:{number + 1}" if number else str(path)
        raise DataError(f"not a whole Parquet file: {first_line(error)}", where=where) from None


def arrow_rows(path: Path) -> Rows:
    """Yields (`file:n`, row or `Unusable`) for each row of an Arrow file or stream, n counted from 1.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the file is not Arrow, or damaged.
    """
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:
                file.seek(0)
                batches = iter(pyarrow.ipc.open_stream(file))
            for batch in batches:
                for i in range(len(batch)):
                    number += 1
                    yield f"{path}:{number}", _arrow_row(batch, i)
    except FileNotFoundError as error:
        unreadable(error, path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{path}:{number + 1}" if number else str(path)
        raise DataError(f"not a whole Arrow file: {first_line(error)}", where=where) from None


def _arrow_row(batch: RecordBatch, i: int) -> Any:
    try:
        [row] = batch.slice(i, 1).to_pylist()
    except UnicodeDecodeError as error:
        return Unusable(f"not UTF-8: byte {error.object[error.start]:#04x}")
    except (ValueError, OverflowError) as error:  # such as a date outside the years that Python allows
        return Unusable(f"a value Python cannot hold: {error}")
    return row
