"""The files for clusters: the Slurm script runs with stand-ins for Slurm's commands, and both ask for known flags."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from srpo.cli.launch import kinds
from srpo.errors import Interrupted
from srpo.train.arguments import known_settings
from tests.recipes.test_recipes import RECIPES

SLURM, SKYPILOT = RECIPES / "clusters" / "slurm.sbatch", RECIPES / "clusters" / "skypilot.yaml"


def flags(command: str) -> dict[str, str]:
    """Flags of the `srpo train` command in a text, each with the word after it."""
    (line,) = [line for line in command.splitlines() if "srpo train" in line]
    words = shlex.split(line.partition("srpo train")[2].partition("||")[0])
    return {word[2:]: words[i + 1] if i + 1 < len(words) else "" for i, word in enumerate(words) if word[:2] == "--"}


@pytest.mark.parametrize("text", [SLURM.read_text("utf-8"), SKYPILOT.read_text("utf-8")], ids=["slurm", "skypilot"])
def test_the_command_has_known_flags(text: str) -> None:
    found = flags(text)
    assert {*found} <= {*known_settings(), "config"}
    assert found["launch"] in kinds()
    assert "resume" in found


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (78, False)])
def test_the_slurm_script_is_repeated_after_75_alone(code: int, requeued: bool, tmp_path: Path) -> None:
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/asked; exit {code}',
        "scontrol": f"echo $@ > {tmp_path}/again",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", SLURM, "my settings.yaml"], env=environment, check=False)
    assert done.returncode == code
    assert "--config my settings.yaml --resume" in (tmp_path / "asked").read_text()
    assert (tmp_path / "again").exists() is requeued
    assert not requeued or (tmp_path / "again").read_text() == "requeue 17\n"


def test_the_slurm_script_asks_for_a_signal_that_stops_a_run() -> None:
    from srpo.signals import SIGNALS

    asked = [line.partition("--signal=")[2] for line in SLURM.read_text("utf-8").splitlines() if "--signal=" in line]
    assert [f"SIG{each.partition('@')[0]}" in SIGNALS for each in asked] == [True]


def test_skypilot_repeats_an_interrupted_run() -> None:
    task = yaml.safe_load(SKYPILOT.read_text("utf-8"))
    assert {*task} == {"name", "workdir", "resources", "file_mounts", "setup", "run"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [Interrupted.exit_code]
