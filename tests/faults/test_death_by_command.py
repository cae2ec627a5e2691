"""Fault 11 as a user meets it: the command killed at its writes, and the same command with --resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.dying import make_base, steps_logged

pytestmark = pytest.mark.faults
POINTS = ["2", "15", "22", "30", "37", "44", "51", "58", "65", "os.rename checkpoint-3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    rows = "".join(f'{{"prompt": "{i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(8))
    (folder / "pairs.jsonl").write_text(rows, "utf-8")
    done = command(folder, folder / "whole")
    assert done.returncode == 0, done.stderr
    return folder


def command(place: Path, run: Path, *more: str, at: str = "-") -> subprocess.CompletedProcess[str]:
    words = [
        "train",
        "--model_name_or_path",
        place / "base",
        "--dataset_name",
        place / "pairs.jsonl",
        "--use_cpu",
        "true",
    ]
    words += ["--report_to", "none", "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--seed", "3"]
    words += ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--save_total_limit", "2"]
    words += ["--disable_dropout", "false", "--logging_steps", "1", "--output_dir", run, *more]
    launch = [sys.executable, "-m", "tests.faults.die", at, *map(str, words)]
    return subprocess.run(launch, capture_output=True, text=True)


@pytest.mark.parametrize("at", POINTS)
def test_killed_at_a_write(at: str, place: Path, tmp_path: Path) -> None:
    killed = command(place, tmp_path / "run", at=at)
    assert killed.returncode == -9, killed.stderr
    again = command(place, tmp_path / "run", "--resume")
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    whole, run = (folder / "model.safetensors" for folder in (place / "whole", tmp_path / "run"))
    assert whole.read_bytes() == run.read_bytes()
    assert steps_logged(tmp_path / "run") == [1, 2, 3]


def test_resuming_a_complete_run(place: Path) -> None:
    done = command(place, place / "whole", "--resume")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{place / 'whole'}: already complete (3 of 3)")
