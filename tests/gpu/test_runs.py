"""On a GPU: a run killed at its writes and resumed ends with the weights of one never killed, where the card computes
the same twice, which `--full_determinism true` sees to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.dying import make_base, steps_logged

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_base(folder / "base")
    rows = [{"prompt": f"{i} and " * 9, "chosen": "yes " * 7, "rejected": "no " * (1 + i)} for i in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def command(place: Path, run: Path, *more: str, at: str = "-") -> subprocess.CompletedProcess[str]:
    words = ["train", "--model_name_or_path", place / "base", "--dataset_name", place / "pairs.jsonl"]
    words += ["--report_to", "none", "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--seed", "3"]
    words += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--save_total_limit", "2"]
    words += ["--disable_dropout", "false", "--logging_steps", "1", "--output_dir", run, *more]
    launch = [sys.executable, "-m", "tests.faults.die", at, *map(str, words)]
    return subprocess.run(launch, capture_output=True, text=True)


KINDS = {
    "full": [],
    "float32": ["--bf16", "false"],
    "fp16": ["--fp16", "true", "--bf16", "false"],
    "lora": ["--use_peft", "--lora_dropout", "0.1"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(kind: str, place: Path, tmp_path: Path) -> None:
    more = ["--full_determinism", "true", *KINDS[kind]]
    whole = command(place, tmp_path / "whole", *more)
    assert whole.returncode == 0, whole.stderr
    killed = command(place, tmp_path / "run", *more, at="os.rename checkpoint-2")
    assert killed.returncode == -9, killed.stderr
    again = command(place, tmp_path / "run", *more, "--resume")
    assert again.returncode == 0, again.stderr
    (file,) = (tmp_path / "whole").glob("*model.safetensors")
    assert file.read_bytes() == (tmp_path / "run" / file.name).read_bytes()
    assert steps_logged(tmp_path / "run") == [1, 2, 3]


def test_control_dropout_differs_on_the_gpu(place: Path, tmp_path: Path) -> None:
    # With another seed the weights are others, so equal weights above say something of the generators.
    files = []
    for seed in ("3", "4"):
        done = command(place, tmp_path / seed, "--full_determinism", "true", "--seed", seed)
        assert done.returncode == 0, done.stderr
        files.append((tmp_path / seed / "model.safetensors").read_bytes())
    assert files[0] != files[1]
