"""What each guard is for: with it removed the fault does its harm, so the tests that it survives can fail.

Controls of faults 7, 9, 11 to 13, 15 and 16; those of the others stand beside their tests. Each takes one guard out in
a fork, where it stays out for nobody else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from srpo import disk
from srpo.disk import LOCK_FILE, held
from srpo.errors import CheckpointError
from srpo.train import config, metrics
from srpo.train.config import SRPOConfig
from srpo.train.durable import checkpoint, trainer
from srpo.train.durable.trainer import DurableTrainer
from tests.faults.dying import (
    Disk,
    End,
    during_save,
    forked,
    make_trainer,
    steps_logged,
    train,
    whole_and_begun,
)
from tests.faults.test_damage import flip

STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a whole run, and the same one stopped after its first save and one step more."""
    folder = whole_and_begun(tmp_path_factory.mktemp("place"), STEPS)
    lines = (folder / "whole" / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "begun" / "metrics.jsonl").write_text("".join(lines[:3]), "utf-8")
    return folder


def resumed(place: Path, run: Path, remove: Callable[[], Any], **changes: Any) -> End:
    """Goes on with the run that was stopped, or with what is in the folder, without a guard."""

    def work() -> str:
        remove()
        return train(place / "base", run, resume=True, **{"max_steps": STEPS, **changes})

    if not run.exists():
        shutil.copytree(place / "begun", run)
    return forked(work)


def straight(place: Path) -> str:
    return (place / "straight").read_text()


def test_control_with_all_guards_the_weights_are_equal(place: Path, tmp_path: Path) -> None:
    end = resumed(place, tmp_path / "run", lambda: None)
    assert (end.code, end.value) == (0, straight(place))
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 4]


def test_7_without_the_identity_a_changed_beta_goes_unnoticed(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        trainer.accepted = lambda *args, **kwargs: []

    end = resumed(place, tmp_path / "run", remove, beta=0.2)
    assert (end.code, end.error) == (0, "")
    assert end.value != straight(place)


def test_9_without_the_check_a_negative_beta_trains(place: Path, tmp_path: Path) -> None:
    def work() -> str:
        SRPOConfig._check = lambda self: None  # type: ignore[method-assign]
        config.expect_valid = lambda settings: None  # type: ignore[assignment]
        return train(place / "base", tmp_path / "run", max_steps=STEPS, beta=-1.0)

    assert forked(work).code == 0


def second_save(place: Path, run: Path, at: int | None, remove: Callable[[], Any]) -> End:
    """The second save of a run that keeps one checkpoint, killed at a write; None kills it not and tells the writes."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(place / "begun", run)
    disk = Disk(at)

    def work() -> list[str]:
        remove()
        with disk.watched():
            disk.pause()
            few = {"max_steps": STEPS, "save_total_limit": 1, "callbacks": [during_save(disk, STEPS)]}
            make_trainer(place / "base", run, **few).train(resume_from_checkpoint=True)
        return disk.names

    return forked(work)


def test_11_deleting_the_old_checkpoint_first_loses_both(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        finish = checkpoint.finish

        def too_early(run: Path, *args: Any, **kwargs: Any) -> None:
            shutil.rmtree(run / "checkpoint-2")
            finish(run, *args, **kwargs)

        checkpoint.finish = too_early

    run = tmp_path / "run"
    for guard, step in ((lambda: None, 2), (remove, None)):
        at = second_save(place, run, None, guard).value.index("open manifest.json") + 1
        assert second_save(place, run, at, guard).code == -9
        found = checkpoint.newest(run)
        assert (found and found[1].step) == step


def test_11_a_checkpoint_renamed_before_its_manifest_is_invalid(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        def unsealed(run: Path, name: str, manifest: checkpoint.Manifest, **kwargs: Any) -> None:
            checkpoint.commit(run / checkpoint.STAGING / name, run / name)
            checkpoint.rotate(run, 1)
            checkpoint.seal(run / name, manifest)

        checkpoint.finish = unsealed

    run = tmp_path / "run"
    at = second_save(place, run, None, remove).value.index("open manifest.json") + 1
    assert second_save(place, run, at, remove).code == -9
    with pytest.raises(CheckpointError, match=r"checkpoint-4: it has no manifest\.json"):
        checkpoint.newest(run)


def test_12_without_the_cut_metrics_repeat_a_step(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        metrics.MetricsFile.on_train_begin = lambda *args, **kwargs: None  # type: ignore[method-assign]

    assert resumed(place, tmp_path / "run", remove).code == 0
    assert steps_logged(tmp_path / "run") == [1, 2, 3, 3, 4]


def test_13_without_hashes_a_flipped_bit_is_trained_on(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "begun", run)
    flip(run / "checkpoint-2" / "model.safetensors", 0.9)
    with pytest.raises(CheckpointError, match=r"sha256 of model\.safetensors differs from its manifest"):
        checkpoint.newest(run)

    def remove() -> None:
        checkpoint.read = lambda folder, **kwargs: checkpoint._manifest(folder / checkpoint.MANIFEST)

    end = resumed(place, run, remove)
    assert (end.code, end.error) == (0, "")
    assert end.value != straight(place)


def test_15_without_the_space_check_a_run_starts_on_a_full_disk(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        usage = shutil.disk_usage(tmp_path)
        shutil.disk_usage = lambda path: usage._replace(free=10)  # type: ignore[assignment]
        trainer.expect_room = lambda *args: None

    assert resumed(place, tmp_path / "run", remove).code == 0


def test_15_without_the_context_a_full_disk_leaves_half_a_save(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        checkpoint.DiskErrors.__exit__ = lambda *args: None  # type: ignore[method-assign]
        disk = Disk(at=1, then="fail")  # of what is done behind the steps: the manifest
        disk.watched().__enter__()
        disk.pause()

    end = resumed(place, tmp_path / "run", remove)
    assert end.code == 1
    assert "No space left on device" in end.error
    assert (tmp_path / "run" / checkpoint.STAGING).exists()


def test_16_without_the_lock_two_processes_train_in_one_folder(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        trainer.held = lambda folder: nullcontext()

    shutil.copytree(place / "begun", tmp_path / "run")
    with held(tmp_path / "run"):  # the kernel's lock is not inherited, what this process knows of it is
        assert resumed(place, tmp_path / "run", disk._held.clear).code == 73
        assert resumed(place, tmp_path / "run", remove).code == 0


def test_16_without_recognition_a_finished_run_is_saved_again(place: Path, tmp_path: Path) -> None:
    def remove() -> None:
        DurableTrainer._final = lambda self: None  # type: ignore[method-assign]

    def written(run: Path) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.name != LOCK_FILE}

    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    before = written(run)
    assert resumed(place, run, lambda: None).code == 0
    assert written(run) == before
    assert resumed(place, run, remove).code == 0
    assert written(run)["model.safetensors"] != before["model.safetensors"]
