"""Reads rows from files, folders and data set names; `formats.py` decides their meaning.

    JSONL             one object per line; any other line becomes an `Unusable`
    .json             an array of objects, or JSONL
    .csv, .tsv        a header and one row per record
    .parquet, .arrow  row groups or batches, one after the other
    folder or name    the rows that `datasets.load_dataset` finds, or a folder that `save_to_disk` wrote

A name with one of these endings is always read as that file. Text may be compressed (.gz, .zst, .bz2, .xz) or UTF-16,
and Parquet and Arrow are recognised without an ending: their first bytes decide.

All but `.json` arrays and UTF-16 are read piece by piece, so memory does not grow with the file.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srpo.data.json_values import STRICT, half_a_pair, parse_json
from srpo.data.opened import ENDINGS, FILE_FAILS, Rows, ending_of, first_line, kind_of, opened, unreadable
from srpo.data.tables import arrow_rows, csv_rows, parquet_rows
from srpo.data.values import Unusable
from srpo.errors import InputError

BOM = b"\xef\xbb\xbf"


def rows_of(origin: str | Path, split: str, config: str | None, whole: str = "train") -> Rows:
    """Yields (place, row or `Unusable`) for each row of a file, folder or named data set, in order.

    A place is text for messages, such as `file:line`. An `Unusable` holds the reason why that row cannot be read.

    Args:
        origin: path, or name of a data set.
        split, config: split and configuration of a folder or name that the library `datasets` loads.
        whole: the only value of `split` that is accepted for a file, since a file has no splits.

    Raises:
        InputError: no file, folder or data set of that name can be read, or no such split.
        DataError: the file is not of the kind that its name promises.
    """
    if not str(origin).strip() or "\0" in str(origin):
        raise InputError("no name of a file", where=repr(str(origin)))
    if is_loaded(origin):
        return loaded_rows(str(origin), split, config, whole)
    _expect_whole(str(origin), split, config, whole)
    path = Path(origin)
    return READERS[kind_of(path)](path)


def is_loaded(origin: str | Path) -> bool:
    """True if the library `datasets` has to load the origin: a folder, or a name without a file or a file's ending."""
    if ending_of(Path(origin)) in ENDINGS:
        return False
    # Path.exists raises on a name that is too long for a file.
    return os.path.isdir(origin) or (isinstance(origin, str) and not os.path.exists(origin))


def _expect_whole(name: str, split: str, config: str | None, whole: str) -> None:
    """Raises InputError for any split but `whole`, or any configuration, asked of a source that has neither."""
    if split != whole:
        fix = "name a file with these rows alone"
        raise InputError(f"no split {split!r}: these rows have no splits", where=name, expected=f"{whole!r}", fix=fix)
    if config is not None:
        raise InputError(f"no configuration {config!r}: these rows have none", where=name, fix="leave it out")


# ---------------------------------------------------------------------- JSON


def jsonl_rows(path: str | Path) -> Rows:
    """Yields (`file:line`, value or `Unusable`) for each line of a JSONL file that is not blank.

    A line that is not one JSON value in UTF-8 becomes an `Unusable` with the reason. A byte-order mark and CRLF are
    accepted.

    Raises:
        InputError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        with opened(path) as lines:
            for number, raw in enumerate(lines, 1):
                if number == 1:
                    raw = raw.removeprefix(BOM)
                if raw.strip():
                    yield (
                        f"{path}:{number}",
                        parse_json(raw.rstrip(b"\r\n")),
                    )  # with the line break, the error of a torn line would point past its end
    except FILE_FAILS as error:
        unreadable(error, path)


def json_rows(path: Path) -> Rows:
    """Yields (`file:line`, element or `Unusable`) for each element of a JSON array in a file.

    A file without an array is read as JSONL. After an element that is not JSON the array ends: an `Unusable` with the
    reason is the last.

    Raises:
        InputError: the file is missing or unreadable.
    """
    try:
        with opened(path) as file:
            head = file.read(1024)
            if not head.removeprefix(BOM).lstrip().startswith(b"["):
                yield from jsonl_rows(path)
                return
            content = (head + file.read()).removeprefix(BOM)
    except FILE_FAILS as error:
        unreadable(error, path)
    try:
        listed = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield f"{path}:{line}", Unusable(f"not UTF-8: byte {content[error.start]:#04x}; nothing is read of an array")
        return
    yield from _elements(listed, path)


def _elements(listed: str, path: Path) -> Rows:
    """Yields (`file:line`, element or `Unusable`) for the JSON array in the text `listed`, by elements' first lines."""
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
        row, end = STRICT.raw_decode(listed, at)
        if "\\ud" in listed[at:end].lower():
            json.dumps(row, ensure_ascii=False).encode()
        return row, end
    except UnicodeEncodeError as error:
        return half_a_pair(error), end
    except Unusable as problem:  # the element ends properly, so the next one can be found
        return problem, json.JSONDecoder().raw_decode(listed, at)[1]


_BETWEEN = re.compile(r"\s*([,\]])\s*")


# ---------------------------------------------------------------------- folders and names


def loaded_rows(name: str, split: str, config: str | None, whole: str) -> Rows:
    """Yields (`name, row n`, row) from the library `datasets`: from a folder, or from a data set by name.

    Args:
        split, config: split and configuration of the data set.
        whole: split name accepted, besides its own, for a saved data set without a dict of splits.

    Raises:
        InputError: the data set cannot be loaded, or has no such split.
    """
    import datasets

    folder = Path(name)
    try:
        if folder.is_dir() and any((folder / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
            else:
                _expect_whole(name, split, config, whole if found.split is None or split == whole else str(found.split))
        else:
            found = datasets.load_dataset(name, config, split=split)
        for number, row in enumerate(undecoded(found), 1):
            yield f"{name}, row {number}", row
    except KeyError:
        raise InputError(f"no split {split!r}", where=name, expected="one of " + ", ".join(found)) from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        expected = "a JSONL, JSON, CSV or Parquet file, or a folder or name that `datasets` can load"
        here = "" if os.path.isdir(name) else "; no such file or folder here, and `datasets` cannot load the name"
        raise InputError(f"no such data{here}: {first_line(error)}", where=name, expected=expected) from None


def undecoded(rows: Any) -> Any:
    """Returns a data set of the library `datasets` whose pictures arrive as bytes or paths instead of images.

    If the library decoded them, one damaged picture would end the iteration over all rows. Rows of any other kind, and
    a data set without pictures, are returned unchanged.
    """
    if "Image(" not in repr(features := getattr(rows, "features", None)) or not hasattr(rows, "cast"):
        return rows
    import datasets

    def plain(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, dict):
            return type(feature)({key: plain(each) for key, each in feature.items()})
        if isinstance(feature, list):
            return [plain(each) for each in feature]
        inner = getattr(feature, "feature", None)
        return feature if inner is None else type(feature)(plain(inner))

    if not isinstance(rows, datasets.Dataset):
        return rows.cast(plain(features))
    made = copy.deepcopy(rows)  # of the description; a cast would copy the pictures to a file beside the data
    made.info.features = plain(features)
    return made


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}
