"""Faults 15 and 16: a full disk, a folder that another process holds, a run that is finished."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from srpo.disk import LOCK_FILE, expect_room, held
from srpo.errors import LockedError, OutputError
from srpo.train.durable import archive
from srpo.train.durable.checkpoint import checkpoints, newest, read
from tests.faults.dying import (
    Disk,
    during_save,
    ended,
    forked,
    make_trainer,
    started,
    train,
    whole_and_begun,
)

STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, the weights that a whole run ends with, and a run stopped after its first save."""
    return whole_and_begun(tmp_path_factory.mktemp("place"), STEPS)


# ---------------------------------------------------------------------- a full disk


def full_at(place: Path, run: Path, at: int | None) -> Any:
    """A run for whose second save the disk is full at the nth write."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place / "begun", run)
    disk = Disk(at, then="fail")

    def work() -> list[str]:
        with disk.watched():
            disk.pause()
            watch = during_save(disk, STEPS)
            make_trainer(place / "base", run, max_steps=STEPS, callbacks=[watch]).train(resume_from_checkpoint=True)
        return disk.names

    return forked(work)


def expect_intact_then_whole(place: Path, run: Path) -> None:
    found = newest(run)
    assert found is not None
    assert found[1].step in (2, STEPS)
    again = forked(lambda: train(place / "base", run, max_steps=STEPS, resume=True))
    assert (again.code, again.error) == (0, "")
    assert again.value == (place / "straight").read_text()


def sweep(place: Path, run: Path, every: int) -> int:
    names = full_at(place, run, None).value
    writes = [i for i, name in enumerate(names, 1) if name.split()[0] in ("open", "before", "os.mkdir", "os.rename")]
    for at in writes[::every]:
        end = full_at(place, run, at)
        assert end.code == 74, (names[at - 1], end)
        assert "No space left on device" in end.error
        assert not (run / ".staging").exists()
        expect_intact_then_whole(place, run)
    return len(writes)


def test_disk_full_at_some_writes(place: Path, tmp_path: Path) -> None:
    sweep(place, tmp_path / "run", every=24)


@pytest.mark.faults
def test_disk_full_at_every_write(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = sweep(place, tmp_path / "run", every=1)
    with capsys.disabled():
        print(f"\nfull at each of {count} writes: 74, and then the same weights")


@contextmanager
def small_disk(folder: Path) -> Iterator[Any]:
    """A file system of our own in memory, in a process of its own; `grow` makes room there."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None):
        raise PermissionError
    for option, flags in ((b"size=1m", 0),):
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, option):
            raise PermissionError

    def resize(pages: int) -> None:
        assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 32, f"size={4 * pages}k".encode()) == 0

    yield resize


@pytest.mark.faults
def test_a_real_disk_full_at_every_page(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The preflight is taken out: this is about what happens when it was wrong."""

    def work(spare: int) -> str:
        import srpo.train.durable.trainer as durable

        with small_disk(tmp_path / f"disk{spare}") as resize:
            run = tmp_path / f"disk{spare}" / "run"
            shutil.copytree(place / "begun", run)
            used = sum(-(-path.stat().st_size // 4096) for path in run.rglob("*") if path.is_file()) + 4
            resize(used + spare)
            durable.expect_room = lambda *args: None
            try:
                make_trainer(place / "base", run, max_steps=STEPS).train(resume_from_checkpoint=True)
                result = "saved"
            except OutputError as error:
                result = str(error)
            found = newest(run)
            assert found is not None
            resize(4096)
            assert train(place / "base", run, max_steps=STEPS, resume=True) == (place / "straight").read_text()
            return result

    said = []
    for spare in range(0, 400):
        end = forked(lambda spare=spare: work(spare))  # type: ignore[misc]
        if "PermissionError" in end.error:
            pytest.skip("no file system of one's own may be mounted here")
        assert end.code == 0, (spare, end.error)
        said.append(end.value)
        if end.value == "saved":
            break
    assert said[-1] == "saved"
    assert len(said) > 20
    with capsys.disabled():
        print(f"\nfull at each of {len(said) - 1} pages: 74, and then the same weights")


def test_too_little_room_is_found_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a checkpoint needs 1000000000\.0 GB, [\d.]+ [GMk]B free in ") as caught:
        expect_room(tmp_path, 10**18, "a checkpoint")
    assert caught.value.exit_code == 74

    def work() -> None:
        usage = shutil.disk_usage(tmp_path)
        shutil.disk_usage = lambda path: usage._replace(free=10)  # type: ignore[assignment]
        train(place / "base", tmp_path, max_steps=STEPS)

    end = forked(work)
    assert end.code == 74
    assert "the run needs 0.3 MB, 10 bytes free in" in end.error, end.error
    assert checkpoints(tmp_path) == []


# ---------------------------------------------------------------------- who holds the folder


def test_a_folder_is_locked_by_one_process(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wait, go = os.pipe()
    ready, say = os.pipe()

    def hold() -> None:
        with held(tmp_path):
            os.write(say, b"x")
            os.read(wait, 1)

    pid, answer = started(hold)
    os.read(ready, 1)
    with pytest.raises(LockedError, match=f"held by process {pid} on ") as caught, held(tmp_path):
        pass
    assert caught.value.exit_code == 73
    end = forked(lambda: train(place / "base", tmp_path, max_steps=STEPS))
    assert end.code == 73
    assert f"process {pid}" in end.error
    os.kill(pid, signal.SIGKILL)
    ended(pid, answer)
    assert str(pid) in (tmp_path / LOCK_FILE).read_text()
    with held(tmp_path), held(tmp_path):  # a dead process keeps no lock; one process may lock twice
        assert f"was locked by process {pid} on" in caplog.text
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert (tmp_path / LOCK_FILE).read_text() == ""
    os.close(go)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As the workers of a data loader would, which outlive a killed parent for a while."""

    def hold() -> int:
        with held(tmp_path):
            child = subprocess.Popen(["sleep", "60"], close_fds=False)
            os.kill(os.getppid(), 0)
            return child.pid

    end = forked(hold)
    with held(tmp_path):
        pass
    os.kill(end.value, signal.SIGKILL)


# ---------------------------------------------------------------------- a finished run


def test_a_finished_run_stays_unchanged(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != LOCK_FILE and path.is_file()}
    end = forked(lambda: train(place / "base", run, max_steps=STEPS, resume=True), say=tmp_path / "said")
    assert (end.code, end.error) == (0, "")
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != LOCK_FILE and path.is_file()}
    assert after == before


def test_a_finished_run_with_other_settings_is_another_run(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    end = forked(lambda: train(place / "base", run, max_steps=STEPS + 2, resume=True))
    assert end.code == 78
    assert "max_steps: 4 → 6" in end.error
    more = forked(lambda: train(place / "base", run, max_steps=STEPS + 2, resume=True, accept_change=["max_steps"]))
    assert (more.code, more.error) == (0, "")
    assert read(run, alone=False).step == STEPS + 2
    assert read(run, alone=False).accepted == [{"step": STEPS, "key": "max_steps", "old": STEPS, "new": STEPS + 2}]


def test_a_finished_run_is_complete_without_its_checkpoints(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    for file in run.glob("checkpoint-*/optimizer.pt"):
        file.unlink()
    end = forked(lambda: train(place / "base", run, max_steps=STEPS, resume=True))
    assert (end.code, end.error) == (0, "")
    # Further steps are another matter: there is nothing to take them from.
    more = forked(lambda: train(place / "base", run, max_steps=STEPS + 2, resume=True, accept_change=["max_steps"]))
    assert more.code == 74
    assert "no valid checkpoint" in more.error
    assert read(run, alone=False).step == STEPS
    for path in run.glob("checkpoint-*"):
        shutil.rmtree(path)
    more = forked(lambda: train(place / "base", run, max_steps=STEPS + 2, resume=True, accept_change=["max_steps"]))
    assert more.code == 74
    assert "a finished model without a checkpoint to resume from" in more.error


def test_starting_from_scratch_archives_an_earlier_run(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    (run / "nonfinite.json").write_text("{}")
    (run / "mine.txt").write_text("mine")
    end = forked(lambda: train(place / "base", run, max_steps=2, save_steps=1), say=tmp_path / "said")
    assert (end.code, end.error) == (0, "")
    assert [step for step, _ in checkpoints(run)] == [2, 1]
    assert not (run / "nonfinite.json").exists()
    assert (run / "mine.txt").read_text() == "mine"
    earlier = run / "earlier-1"
    assert [step for step, _ in checkpoints(earlier)] == [4, 2]
    assert (earlier / "nonfinite.json").exists()
    assert (earlier / "metrics.jsonl").read_bytes() == (place / "whole" / "metrics.jsonl").read_bytes()
    assert read(earlier, alone=False).finished
    # It is a run folder like any other.
    end = forked(lambda: train(place / "base", earlier, max_steps=STEPS, resume=True))
    assert (end.code, end.value) == (0, (place / "straight").read_text())


def test_overwriting_a_finished_model_is_logged(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"max_steps": 1, "save_strategy": "no"}
    train(place / "base", tmp_path, **changes)
    assert "starting from scratch" not in caplog.text
    before = (tmp_path / "model.safetensors").read_bytes()
    train(place / "base", tmp_path, learning_rate=0.1, **changes)
    assert f"moved the earlier run to {tmp_path / 'earlier-1'}: a model; metrics.jsonl" in caplog.text
    assert (tmp_path / "earlier-1" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_a_run_can_be_resumed_after_a_forgotten_resume_flag(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run that was begun by mistake is killed before its first save; then the flag is remembered."""
    run = tmp_path / "run"
    shutil.copytree(place / "begun", run)
    archive.archive_earlier_run(run)
    train(place / "base", run, max_steps=1, save_strategy="no", resume=True)
    aside = run / "earlier-1"
    assert f"{aside} has checkpoints of an earlier run; continue it with --output_dir {aside} --resume" in caplog.text
    end = forked(lambda: train(place / "base", aside, max_steps=STEPS, resume=True))
    assert (end.code, end.value) == (0, (place / "straight").read_text())
