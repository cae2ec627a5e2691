"""Faults 8, 11 and 12 with two processes under gloo: killed at any write of the first, or in the second.

The processes are forks with the environment that `torchrun` gives; one point goes through torchrun itself. The short
version is one write of the first; everything else carries the marker `faults`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srpo.train.durable.checkpoint import newest
from tests.faults.dying import Disk, End, during_save, make_base, make_trainer, steps_logged, together, train

STEPS = 5
SAVES = {"first": 1, "later": 2, "rotating": 3}
SETTINGS: dict[str, Any] = {"max_steps": STEPS, "save_steps": 1, "ddp_backend": "gloo"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    ends = together(lambda rank: train(folder / "base", folder / "whole", **SETTINGS))
    assert [end.code for end in ends] == [0, 0], ends
    (folder / "straight").write_text(ends[0].value)
    assert steps_logged(folder / "whole") == list(range(1, STEPS + 1))
    shutil.rmtree(folder / "whole")
    return folder


def killed(place: Path, run: Path, save: str, at: int | None, rank: int = 0) -> list[End]:
    shutil.rmtree(run, ignore_errors=True)
    disk = Disk(at)

    def work(mine: int) -> Any:
        if mine != rank:
            return train(place / "base", run, **SETTINGS)
        with disk.watched():
            disk.pause()
            train(place / "base", run, callbacks=[during_save(disk, SAVES[save])], **SETTINGS)
        return disk.names

    return together(work, dies=None if at is None else rank)


def expect_whole(place: Path, run: Path) -> None:
    ends = together(lambda rank: train(place / "base", run, resume=True, **SETTINGS))
    assert [(end.code, end.error) for end in ends] == [(0, ""), (0, "")]
    assert ends[0].value == (place / "straight").read_text()
    assert steps_logged(run) == list(range(1, STEPS + 1))


def test_the_first_killed_at_a_write(place: Path, tmp_path: Path) -> None:
    assert killed(place, tmp_path / "run", "later", 20)[0].code == -signal.SIGKILL
    expect_whole(place, tmp_path / "run")


@pytest.mark.faults
@pytest.mark.parametrize("save", SAVES)
def test_the_first_killed_at_every_write(
    save: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = killed(place, tmp_path / "run", save, None)[0].value
    for at in range(1, len(names) + 1):
        assert killed(place, tmp_path / "run", save, at)[0].code == -signal.SIGKILL, names[at - 1]
        expect_whole(place, tmp_path / "run")
    with capsys.disabled():
        print(f"\ntwo processes, {save} save: {len(names)} of {len(names)} points end bit-identical")


@pytest.mark.faults
def test_the_second_killed(place: Path, tmp_path: Path) -> None:
    names = killed(place, tmp_path / "run", "later", None, rank=1)[1].value
    assert any("rng_state_1" in name for name in names)
    for at in range(1, len(names) + 1):
        assert killed(place, tmp_path / "run", "later", at, rank=1)[1].code == -signal.SIGKILL, names[at - 1]
        expect_whole(place, tmp_path / "run")


@pytest.mark.faults
def test_a_nan_in_one_process_stops_both(place: Path, tmp_path: Path) -> None:
    from tests.faults.test_nonfinite import Poison

    def work(rank: int) -> None:
        trainer = make_trainer(place / "base", tmp_path / "run", **SETTINGS)
        if rank == 1:
            Poison(trainer, "w_given_l", 3, float("nan"))
        trainer.train()

    ends = together(work)
    assert [end.code for end in ends] == [70, 70], ends
    assert "another process" in ends[0].error
    assert (tmp_path / "run" / "process-1-nonfinite.json").is_file()
    found = newest(tmp_path / "run")
    assert found is not None
    assert found[1].step == 1


@pytest.mark.faults
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(place: Path, tmp_path: Path) -> None:
    from tests.faults.test_signals import hit

    def work(rank: int) -> None:
        hits = [hit("substep_end", 2, signal.SIGTERM)] if rank == 1 else []
        train(place / "base", tmp_path / "run", callbacks=hits, **SETTINGS)

    ends = together(work)
    assert [end.code for end in ends] == [75, 75], ends
    expect_whole(place, tmp_path / "run")


@pytest.mark.faults
def test_through_torchrun(place: Path, tmp_path: Path) -> None:
    """The first killed at its rename, in a command; the same command with --resume goes on."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "{i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(8)), "utf-8")
    words = ["train", "--model_name_or_path", place / "base", "--dataset_name", pairs, "--use_cpu", "true"]
    words += ["--report_to", "none", "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--seed", "3"]
    words += [
        "--ddp_backend",
        "gloo",
        "--per_device_train_batch_size",
        "1",
        "--disable_dropout",
        "false",
        "--output_dir",
    ]

    def command(run: Path, *more: str, at: str = "") -> subprocess.CompletedProcess[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        launch += ["-m", "tests.faults.die", at or "-", *map(str, words), str(run), *more]
        return subprocess.run(launch, capture_output=True, text=True)

    assert command(tmp_path / "whole").returncode == 0
    killed = command(tmp_path / "run", at="os.rename checkpoint-2")
    assert killed.returncode != 0
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    again = command(tmp_path / "run", "--resume")
    assert again.returncode == 0, again.stderr
    whole, run = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == run.read_bytes()
