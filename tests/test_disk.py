"""Append-only JSON lines: shared, torn and full files; whole-file writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from srpo.disk import JSONLines, write_file
from srpo.errors import InputError, OutputError


def test_appended_rows_are_read_back_in_order(tmp_path: Path) -> None:
    file = JSONLines(tmp_path / "new" / "rows.jsonl", durable=True)
    for number in range(3):
        file.append({"number": number, "text": "é\u2028\n"})
    assert [row["number"] for row in JSONLines(file.path).read()] == [0, 1, 2]
    assert file.path.read_bytes().count(b"\n") == 3


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert list(JSONLines(tmp_path / "rows.jsonl").read()) == []


@pytest.mark.parametrize("torn", [b'{"number": 0', b"\0\0\0", b"[1]", b"\xff{}", b"[" * 100_000])
def test_a_torn_last_line_is_skipped_and_not_continued(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"number": 1}\n' + torn)
    JSONLines(path).append({"number": 2})
    again = JSONLines(path)
    assert [row["number"] for row in again.read()] == [1, 2]
    assert again.skipped == 1


def test_control_a_plain_append_loses_the_row_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"number": 1')
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"number": 2}) + "\n")
    assert list(JSONLines(path).read()) == []


def test_two_writers_share_a_file(tmp_path: Path) -> None:
    one, other = (JSONLines(tmp_path / "rows.jsonl") for _ in range(2))
    for number in range(20):
        (one if number % 2 else other).append({"number": number})
    assert [row["number"] for row in one.read()] == list(range(20))


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    file = JSONLines(tmp_path, fix="name another file")
    with pytest.raises(OutputError, match="name another file"):
        file.append({})
    with pytest.raises(InputError, match="cannot be read"):
        list(file.read())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_file(path, b"old")

    def pieces() -> object:
        yield b"ne"
        raise OSError(28, os.strerror(28))

    with pytest.raises(OutputError, match="No space left"):
        write_file(path, pieces())  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    write_file(path, [b"n", b"ew"])
    assert path.read_bytes() == b"new"
