"""Writes `rejected.jsonl`: the rows that were left out, word for word, so that a user can correct them.

A row may be rejected long after it was read, for example as too long. So the source is read a second time, instead of
keeping every row in memory.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from srpo.data.files import is_loaded, rows_of, undecoded
from srpo.data.opened import kind_of, opened
from srpo.data.read import Reject, Source
from srpo.data.source import AnySource
from srpo.data.values import Unusable

REJECTED_FILE = "rejected.jsonl"


def rejected_lines(source: AnySource, rejects: Iterable[Reject]) -> Iterator[str]:
    """Yields a line of JSON per reject, in the source's order: `file`, `line`, `reason`, and `raw`, the row's own text.

    For a row without lines of its own (Parquet, an array, rows in memory) `raw` is the row as JSON and `line` its
    number. Text that is not UTF-8 is in `raw_base64` instead. Rows that can be read only once leave `raw` null. The
    bytes of pictures are left out.

    Example:
        >>> rows = [{"prompt": "2+2=", "chosen": "4", "rejected": 5}]
        >>> [line] = rejected_lines(rows, [Reject("row 1", "'rejected' is a number")])
        >>> json.loads(line)["raw"]
        '{"prompt": "2+2=", "chosen": "4", "rejected": 5}'
    """
    source = Source.of(source)
    reasons: dict[int, list[str]] = {}
    for where, reason in rejects:
        reasons.setdefault(_number(where, source.name), []).append(reason)
    found: dict[int, Any] = {}
    if reasons:
        found = dict(_spans(source, reasons) if _has_lines(source) else _rows(source, reasons))
    for number in sorted(reasons):
        for reason in reasons[number]:
            row = {"file": source.name, "line": number, "reason": reason, **_raw(found.get(number))}
            yield json.dumps(row)


def _number(where: str, name: str) -> int:
    """The number of the line or row in a place such as `file:17:42` or `name, row 3`; 0 for a place without a number.

    Args:
        where: the place.
        name: name of the file or data set, whose own digits are skipped.
    """
    found = re.search(r"\d+", where.removeprefix(name))
    return int(found[0]) if found else 0


def _has_lines(source: Source) -> bool:
    if not isinstance(source.origin, str | Path) or is_loaded(source.origin):
        return False
    return kind_of(Path(source.origin)) in (".jsonl", ".csv", ".tsv")


def _raw(raw: object) -> dict[str, Any]:
    if raw is None:
        return {"raw": None}
    if not isinstance(raw, bytes):
        return {"raw": _BASE64.sub(r"\1…", json.dumps(raw, ensure_ascii=False, default=_described))}
    try:
        return {"raw": _BASE64.sub(r"\1…", raw.decode("utf-8"))}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


# A data: URL, or the key "base64" of an image part, whose quotes CSV doubles; JSON may write / as \/.
_BASE64 = re.compile(
    r"""((?i:data:(?:image/[\w.+-]+)?(?:;[\w=.-]+)*;base64,)|["\\]+base64["\\]+\s*:\s*["\\]+)(?:\\?/|[A-Za-z0-9+=]){64,}"""
)


def _described(value: object) -> str:
    """Text for a value that JSON cannot hold: the number of bytes for bytes, such as a picture's, else `str`."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes | bytearray) else str(value)


def _spans(source: Source, wanted: Mapping[int, Any]) -> Iterator[tuple[int, bytes]]:
    """Yields (number of its first line, its bytes) for each row of a text file whose first line is a key of `wanted`.

    A row of CSV may span several lines.
    """
    place = (str(source.origin), source.split, source.config, source.whole)
    begins = (_number(where, source.name) for where, _ in rows_of(*place))
    ends = {begin: end for begin, end in pairwise([*begins, 0]) if begin in wanted}
    taken: dict[int, list[bytes]] = {begin: [] for begin in ends}
    now = 0
    with opened(Path(str(source.origin))) as lines:
        for number, line in enumerate(lines, 1):
            now = number if number in ends else 0 if number == ends.get(now) else now
            if now:
                taken[now].append(line)
    for begin, pieces in taken.items():
        yield begin, b"".join(pieces).strip(b"\r\n")


def _rows(source: Source, wanted: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """Yields (number, row) for each row of the source whose number is a key of `wanted`.

    Yields nothing for an iterator, whose rows can be read only once.
    """
    if isinstance(source.origin, str | Path):
        found = rows_of(source.origin, source.split, source.config, source.whole)
        rows = ((_number(where, source.name), row) for where, row in found)
    elif iter(source.origin) is source.origin:  # an iterator, already used up
        return
    else:
        rows = ((i, row) for i, row in enumerate(undecoded(source.origin), 1))
    for number, row in rows:
        if number in wanted and not isinstance(row, Unusable):
            yield number, row
