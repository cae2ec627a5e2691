"""A command in a fork gives the exit code and the streams of a new process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.warm_command import srpo_in_a_fork

MISTAKE = ["--quiet", "convert", "--model_name_or_path", "/no/such/folder", "--output_dir", "out"]


@pytest.mark.parametrize("words", [["--version"], ["trian"], MISTAKE], ids=["output", "usage", "input"])
def test_a_fork_gives_the_results_of_a_new_process(words: list[str]) -> None:
    new = subprocess.run([sys.executable, "-m", "srpo", *words], capture_output=True, text=True)
    fork = srpo_in_a_fork(*words)
    assert (fork.returncode, fork.stdout, fork.stderr) == (new.returncode, new.stdout, new.stderr)


def test_the_environment_of_a_fork_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise RuntimeError("unexpected")

    monkeypatch.setattr("srpo.cli.main.run", fail)
    assert "Traceback" not in srpo_in_a_fork("env").stderr
    assert "Traceback" in srpo_in_a_fork("env", env={"SRPO_TRACEBACK": "1"}).stderr
