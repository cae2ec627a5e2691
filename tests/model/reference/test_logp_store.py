"""Rows on disk: what was written is read, what is torn is not, and nobody tears another's."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from srpo.model.reference.logp_store import DIGEST, MAGIC, LogpStore

IDENTITY = b"weights and all"


def rows(count: int, width: int = 6, seed: int = 0) -> dict[bytes, list[float]]:
    source = random.Random(seed)
    return {source.randbytes(DIGEST): [-100 * source.random() for _ in range(width)] for _ in range(count)}


def store(folder: Path, width: int = 6, identity: bytes = IDENTITY) -> LogpStore:
    return LogpStore(folder, identity, width, "about\n")


def written(folder: Path, content: dict[bytes, list[float]], width: int = 6) -> Path:
    """The one segment that holds these rows."""
    before = set(folder.glob("*.logps"))
    store(folder, width).add(content, content.values())
    (segment,) = set(folder.glob("*.logps")) - before
    return segment


def held(folder: Path, content: dict[bytes, list[float]], width: int = 6) -> list[bool]:
    """Which rows are there; every one that is must be exactly what was written."""
    again = store(folder, width)
    found = [again.get(digest) for digest in content]
    assert all(row is None or row == want for row, want in zip(found, content.values(), strict=True))
    assert sum(row is not None for row in found) == len(again)
    return [row is not None for row in found]


@pytest.mark.parametrize("width", [2, 6])
def test_added_rows_are_read_bit_for_bit(width: int, tmp_path: Path) -> None:
    content = rows(50, width)
    segment = written(tmp_path, content, width)
    assert held(tmp_path, content, width) == [True] * 50
    head = len(MAGIC) + 2 + 4 + len(IDENTITY)
    assert segment.stat().st_size == head + 50 * (DIGEST + 8 * width + 4)  # 68 bytes for six
    assert (tmp_path / "about.json").read_text() == "about\n"
    # Control: a row of another model, or of another width, is not found.
    assert len(store(tmp_path, width, b"other weights")) == len(store(tmp_path, 8 - width)) == 0


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    content = rows(3)
    segment = written(tmp_path, content)
    size = segment.stat().st_size
    again = store(tmp_path)
    again.add(content, [[0.0] * 6] * 3)
    assert [again.get(digest) for digest in content] == list(content.values())
    assert segment.stat().st_size == size
    assert len(list(tmp_path.glob("*.logps"))) == 1


def test_a_segment_torn_anywhere_gives_its_whole_records(tmp_path: Path) -> None:
    content = rows(3)
    segment = written(tmp_path, content)
    whole = segment.read_bytes()
    record = DIGEST + 48 + 4
    head = len(whole) - 3 * record
    for length in range(len(whole)):
        segment.write_bytes(whole[:length])
        count = max(0, length - head) // record
        assert held(tmp_path, content) == [i < count for i in range(3)]


def test_a_flipped_bit_costs_its_row_alone(tmp_path: Path) -> None:
    content = rows(3)
    segment = written(tmp_path, content)
    whole = segment.read_bytes()
    record = DIGEST + 48 + 4
    head = len(whole) - 3 * record
    for at in range(len(whole)):
        segment.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        hit = (at - head) // record
        assert held(tmp_path, content) == ([False] * 3 if at < head else [i != hit for i in range(3)])


def test_garbage_beside_the_segments_is_left_alone(tmp_path: Path) -> None:
    content = rows(2)
    written(tmp_path, content)
    (tmp_path / "a.logps").write_bytes(b"")
    (tmp_path / "b.logps").write_bytes(os.urandom(500))
    (tmp_path / "c.logps").mkdir()
    (tmp_path / "d.txt").write_text("notes")
    assert held(tmp_path, content) == [True] * 2


def test_processes_that_write_at_once_keep_each_other_s_rows(tmp_path: Path) -> None:
    parts = [rows(200, seed=seed) for seed in range(3)]
    shared = rows(20, seed=9)
    children = []
    for part in parts:
        child = os.fork()
        if child == 0:
            mine = store(tmp_path)
            for digest, row in {**part, **shared}.items():
                mine.add([digest], [row])
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    assert all(held(tmp_path, {**parts[0], **parts[1], **parts[2], **shared}))
    assert len(list(tmp_path.glob("*.logps"))) == 3


def test_refresh_finds_rows_of_other_processes(tmp_path: Path) -> None:
    mine, other = store(tmp_path), store(tmp_path)
    first, second, third = (rows(2, seed=seed) for seed in range(3))
    mine.add(first, first.values())
    other.add(second, second.values())
    assert len(mine) == len(other) == 2
    for each in (mine, other):
        each.refresh()
        assert len(each) == 4
    other.add(third, third.values())
    mine.refresh()
    assert [mine.get(digest) for digest in third] == list(third.values())


def test_a_record_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    content = rows(2)
    segment = written(tmp_path, content)
    whole = segment.read_bytes()
    for early in (3, len(whole) - 100, len(whole) - 1):
        segment.write_bytes(whole[:early])
        reader = store(tmp_path)
        segment.write_bytes(whole)
        reader.refresh()
        assert [reader.get(digest) for digest in content] == list(content.values())


def test_a_folder_that_cannot_be_written_still_serves(tmp_path: Path) -> None:
    content = rows(2)
    (tmp_path / "file").write_text("in the way")
    full = store(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="Not a directory"):
        full.add(content, content.values())
    assert [full.get(digest) for digest in content] == list(content.values())
    more = rows(2, seed=1)
    full.add(more, more.values())  # said once
    assert len(full) == 4


def test_a_disk_that_fills_up_leaves_whole_records(tmp_path: Path) -> None:
    # The limit on a file's size stands in for the disk: the write that reaches it is cut short.
    content = rows(40)
    child = os.fork()
    if child == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        mine = store(tmp_path)
        failed = 0
        for _ in range(2):
            try:
                mine.add(content, content.values())
                mine.add(rows(40, seed=2), rows(40, seed=2).values())
            except OSError as error:
                failed += error.errno == 28
        os._exit(0 if failed == 1 and len(mine) >= 40 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert sum(held(tmp_path, content)) == (1000 - len(MAGIC) - 2 - 4 - len(IDENTITY)) // 68


def test_reading_needs_no_permission_to_write(tmp_path: Path) -> None:
    content = rows(2)
    segment = written(tmp_path, content)
    segment.chmod(stat.S_IRUSR)
    assert held(tmp_path, content) == [True] * 2
