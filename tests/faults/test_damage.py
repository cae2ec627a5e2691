"""Fault 13: of a damaged checkpoint nothing is loaded; the newest whole one is, and it is said which and why."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from srpo.errors import CheckpointError
from srpo.train.durable.checkpoint import Invalid, Manifest, newest, read
from tests.faults.dying import forked, make_base, train


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    end = forked(lambda: train(folder / "base", folder / "run", max_steps=5))
    assert end.code == 0, end.error
    (folder / "straight").write_text(end.value)
    for name in ("model.safetensors", "manifest.json"):  # not the finished run, but one that was killed
        (folder / "run" / name).unlink()
    return folder


def copied(place: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place / "run", target)
    return target


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    """With the file of the same name in the checkpoint before."""
    other = path.parent.with_name("checkpoint-4") / path.name
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    if mine == theirs:
        path.write_bytes(theirs + b" ")


def link(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "short by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "first bit flipped": lambda path: flip(path, 0),
    "middle bit flipped": lambda path: flip(path, 0.5),
    "last bit flipped": lambda path: flip(path, 1),
    "swapped": swap,
    "a link": link,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


def test_control_without_damage_the_newest_checkpoint_is_used(place: Path) -> None:
    found = newest(place / "run")
    assert found is not None
    assert (found[0].name, found[1].step, found[1].of) == ("checkpoint-5", 5, 5)


@pytest.mark.parametrize("how", DAMAGES)
def test_each_file_damaged(how: str, place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [path.name for path in (place / "run" / "checkpoint-5").iterdir()]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "manifest.json"} <= {*names}
    for name in names:
        run = copied(place, tmp_path / "run")
        DAMAGES[how](run / "checkpoint-5" / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "srpo"):
            found = newest(run)
        assert found is not None
        assert found[0].name == "checkpoint-4", (name, how)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("srpo: skipping checkpoint-5: ")
        assert name in line


def rewrite(run: Path, change: Callable[[dict[str, object]], object], *, sealed: bool) -> None:
    """Changes the manifest, with a seal that fits again or without."""
    file = run / "checkpoint-5" / "manifest.json"
    body = json.loads(file.read_text("utf-8"))
    change(body)
    if sealed:
        whole = Manifest(**{key: value for key, value in body.items() if key not in ("seal", "format")})
        file.write_bytes(whole.sealed())
    else:
        file.write_text(json.dumps(body), "utf-8")


@pytest.mark.parametrize(
    ("what", "change", "sealed"),
    [
        ("another step", lambda body: body.update(step=4), False),
        ("another identity", lambda body: body["identity"].update(beta=9.0), False),
        ("a file left out", lambda body: body["files"].pop("optimizer.pt"), True),
        ("a file too many", lambda body: body["files"].update({"x.bin": {"bytes": 1, "sha256": "0"}}), True),
        ("a step that is not its folder's", lambda body: body.update(step=4), True),
        ("a way out", lambda body: body["files"].update({"../x": {"bytes": 1, "sha256": "0"}}), True),
        ("an absolute path", lambda body: body["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0"}}), True),
        ("another format", lambda body: body.update(format=2), False),
        ("an unknown key", lambda body: body.update(more=1), False),
    ],
)
def test_a_manifest_with_false_entries(
    what: str, change: Callable[[dict[str, object]], object], sealed: bool, place: Path, tmp_path: Path
) -> None:
    run = copied(place, tmp_path / "run")
    rewrite(run, change, sealed=sealed)
    with pytest.raises(Invalid):
        read(run / "checkpoint-5", step=5)
    found = newest(run)
    assert found is not None
    assert found[0].name == "checkpoint-4", what


def test_control_a_manifest_rewritten_unchanged_is_valid(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path / "run")
    rewrite(run, lambda body: None, sealed=True)
    assert read(run / "checkpoint-5", step=5).step == 5


def test_files_outside_the_manifest_are_rejected(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path / "run")
    (run / "checkpoint-5" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(Invalid, match=r"pytorch_model\.bin is not in its manifest"):
        read(run / "checkpoint-5", step=5)


def test_swapped_checkpoints_are_rejected(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path / "run")
    (run / "checkpoint-5").rename(run / "x")
    (run / "checkpoint-4").rename(run / "checkpoint-5")
    (run / "x").rename(run / "checkpoint-4")
    with pytest.raises(CheckpointError, match=r"its manifest\.json is of step 4"):
        newest(run)


def test_no_checkpoint_is_valid(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path / "run")
    for step in (4, 5):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    end = forked(lambda: train(place / "base", run, max_steps=5, resume=True))
    assert end.code == 74
    assert (
        "no valid checkpoint: checkpoint-5: optimizer.pt is missing; checkpoint-4: optimizer.pt is missing" in end.error
    )


def test_a_run_resumes_from_the_previous_checkpoint_to_the_same_weights(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path / "run")
    flip(run / "checkpoint-5" / "optimizer.pt", 0.5)
    end = forked(lambda: train(place / "base", run, max_steps=5, resume=True))
    assert (end.code, end.error) == (0, "")
    assert end.value == (place / "straight").read_text()
    assert read(run / "checkpoint-5", step=5).step == 5
