"""`srpo train --launch`: the exit code of the run, signals to every process, the variables that accelerate reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from srpo.cli.launch import FILES, exit_code, kinds, launch, variables_of
from srpo.errors import ConfigError
from tests.faults.dying import make_base, weights_hash


def test_the_files_are_those_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    assert kinds() == ["ddp", "fsdp2", "single", "zero2", "zero3"]
    for kind in kinds():
        file = FILES / f"{kind}.yaml"
        settings = yaml.safe_load(file.read_text())
        ClusterConfig.from_yaml_file(yaml_file=str(file))
        for name, value in settings.get("fsdp_config", {}).items():
            assert variables_of(kind)[name.upper()] == str(value).lower() if isinstance(value, bool) else str(value)
    assert variables_of("ddp") == {}
    assert variables_of("fsdp2")["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_accelerate_launch_sets_the_same_variables(kind: str) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    words = ["--num_processes", "2", "--config_file", str(FILES / f"{kind}.yaml"), "script.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    _, theirs = prepare_deepspeed_cmd_env(args)
    ours = variables_of(kind)
    assert ours["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == kind[-1]
    assert {name: theirs[name] for name in ours} == ours


def test_one_process_of_the_launcher_is_no_distributed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}

    def ran(environments: Sequence[Mapping[str, str]], command: Sequence[str]) -> int:
        (found["environment"],), found["command"] = environments, command
        return 0

    monkeypatch.setattr("srpo.cli.launch._run", ran)
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert launch("single", None, ["train"]) == 0
    assert found["command"] == ["train"]
    assert found["environment"]["RANK"] == "0"  # the process itself must not launch again
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == "5"
    assert not {"LOCAL_RANK", "WORLD_SIZE"} & {*found["environment"]}
    with pytest.raises(ConfigError, match="processes: 2 with `--launch single`"):
        launch("single", 2, ["train"])


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srpo.cli.launch.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="zero3 needs DeepSpeed") as found:
        launch("zero3", 2, ["train"])
    assert "pip install deepspeed" in (found.value.fix or "")


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one of ddp, fsdp2, single, zero2, zero3") as found:
        variables_of("fsdp")
    assert "fsdp2" in (found.value.fix or "")


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("train", ["--processes", "2"], "processes: given without launch"),
        ("rounds", ["--launch", "ddp"], "launch: `srpo rounds` runs in one process"),
        ("precompute", ["--launch", "ddp"], "launch: `srpo precompute` runs in one process"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(verb: str, words: list[str], said: str) -> None:
    from srpo.cli.training_flags import parse_training
    from srpo.judge.settings import JudgeSettings
    from srpo.rounds.plan import RoundsArguments

    more = (RoundsArguments, JudgeSettings) if verb == "rounds" else ()
    named = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "run"]
    with pytest.raises(ConfigError, match=said):
        parse_training(verb, "", [*named, *words], *more)


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([75, 75], 75), ([0, 75], 75), ([78, -15], 78), ([-15, 70], 70), ([75, 74], 74), ([0, -9], 137)],
)
def test_exit_codes_of_processes(codes: list[int], code: int) -> None:
    assert exit_code(codes) == code


@pytest.mark.faults
def test_a_signal_stops_all_processes_and_the_run_goes_on(tmp_path: Path) -> None:
    """SIGUSR1 to the launcher: a checkpoint and 75; with --resume the weights of a run that was not stopped."""
    base, pairs = make_base(tmp_path / "base"), tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"prompt": "{i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(400)), "utf-8")

    def command(run: Path, *more: str) -> subprocess.Popen[str]:
        words = ["train", "--launch", "ddp", "--processes", "2", "--model_name_or_path", str(base)]
        words += ["--dataset_name", str(pairs), "--use_cpu", "true", "--report_to", "none", "--max_steps", "60"]
        words += ["--ddp_backend", "gloo", "--per_device_train_batch_size", "1", "--output_dir", str(run)]
        words += ["--save_strategy", "no", "--logging_steps", "1"]
        return subprocess.Popen([sys.executable, "-m", "srpo", *words, *more], stderr=subprocess.PIPE, text=True)

    whole = command(tmp_path / "whole")
    assert whole.communicate()[1] is not None
    assert whole.returncode == 0
    stopped = command(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while stopped.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    os.kill(stopped.pid, signal.SIGUSR1)
    said = stopped.communicate()[1]
    assert stopped.returncode == 75, said
    again = command(tmp_path / "run", "--resume")
    assert again.communicate()[1] is not None
    assert again.returncode == 0
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@pytest.mark.faults
def test_a_mistake_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    words = ["train", "--launch", "ddp", "--processes", "2", "--model_name_or_path", str(tmp_path / "none")]
    words += [
        "--dataset_name",
        str(tmp_path / "none.jsonl"),
        "--output_dir",
        str(tmp_path / "run"),
        "--use_cpu",
        "true",
    ]
    ended = subprocess.run([sys.executable, "-m", "srpo", *words], capture_output=True, text=True)
    assert ended.returncode == 66, ended.stderr
