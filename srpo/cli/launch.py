"""`srpo train --launch KIND --processes N`: starts the processes of a run on one machine and waits for them.

`torchrun` and `accelerate launch` end with exit code 1 whatever a process ended with, and a SIGUSR1 kills the launcher
and leaves its processes behind. This launcher forwards signals, lets every process write its checkpoint, and ends with
the exit code of the run. For several machines use `accelerate launch` with the same files.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, Interrupted, did_you_mean
from srpo.settings_file import read_settings
from srpo.signals import SIGNALS

FILES = Path(__file__).parent / "launch_files"
POLL = 0.1  # seconds
GRACE = 30.0  # seconds that the others have to end after one of them failed, before they are killed


def launched() -> bool:
    """True if a launcher such as torchrun started this process: the environment variable RANK is set."""
    return "RANK" in os.environ


def kinds() -> list[str]:
    """Returns the names that `--launch` accepts: those of the accelerate settings files that come with srpo."""
    return sorted(each.stem for each in FILES.glob("*.yaml"))


def variables_of(kind: str) -> dict[str, str]:
    """Returns the environment variables that `accelerate launch` would set for one of srpo's accelerate settings files.

    Args:
        kind: name of the file, see `kinds`.

    Raises:
        ConfigError: no launch file has that name.
    """
    if kind not in kinds():
        fix = did_you_mean(kind, kinds())
        raise ConfigError(f"{kind!r}", where="launch", expected="one of " + ", ".join(kinds()), fix=fix)
    settings = read_settings(str(FILES / f"{kind}.yaml"))
    found = {}
    if fsdp := settings.get("fsdp_config"):
        found["ACCELERATE_USE_FSDP"] = "true"
        found |= {name.upper(): _text(value) for name, value in fsdp.items()}
    if zero := settings.get("deepspeed_config"):
        found["ACCELERATE_USE_DEEPSPEED"] = "true"
        found |= {f"ACCELERATE_DEEPSPEED_{name.upper()}": _text(value) for name, value in zero.items()}
    return found


def launch(kind: str, processes: int | None, command: Sequence[str]) -> int:
    """Runs one `srpo` command in several processes on this machine, and returns the exit code of the run.

    Args:
        kind: name of one of srpo's accelerate settings files, see `kinds`.
        processes: number of processes; None for one per GPU, or for one process on a machine without GPUs.
        command: words of the command after `srpo`.

    Raises:
        ConfigError: an unknown kind, several processes of `single`, or DeepSpeed is not installed.
    """
    variables = variables_of(kind)
    _expect_startable(kind, processes, variables)
    if kind == "single":
        return _run([{**os.environ, "RANK": "0", "CUDA_VISIBLE_DEVICES": _first_gpu()}], command)
    count = processes or _gpus() or 1
    common = {**os.environ, **variables, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GROUP_RANK": "0"}
    common.setdefault("OMP_NUM_THREADS", "1")
    return _run([{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)], command)


def _expect_startable(kind: str, processes: int | None, variables: Mapping[str, str]) -> None:
    if kind == "single" and processes not in (None, 1):
        raise ConfigError(f"{processes} with `--launch single`", where="processes", expected="1", fix="leave it out")
    if "ACCELERATE_USE_DEEPSPEED" in variables and find_spec("deepspeed") is None:
        fix = "`pip install deepspeed`, or take fsdp2, which splits weights as well"
        raise ConfigError(f"{kind} needs DeepSpeed, which is not installed", where="launch", fix=fix)


def _first_gpu() -> str:
    """The first GPU in CUDA_VISIBLE_DEVICES, as text; "0" if that variable is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _run(environments: Sequence[Mapping[str, str]], command: Sequence[str]) -> int:
    """Runs `srpo` once in each environment, at the same time; returns the exit code of the run."""
    running: list[subprocess.Popen[bytes]] = []
    with _forwarding(running):
        for each in environments:
            # In a session of their own, so that a Ctrl-C reaches them once, through the launcher.
            words = [sys.executable, "-m", "srpo", *command]
            running.append(subprocess.Popen(words, env=dict(each), start_new_session=True))
        return _ended(running)


def _ended(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all processes; if one fails, ends the others, which would wait forever. Returns the run's exit code."""
    failed_at: float | None = None
    while any(each.poll() is None for each in running):
        codes = [each.poll() for each in running]
        if failed_at is None and any(code not in (None, 0, Interrupted.exit_code) for code in codes):
            failed_at = time.monotonic()
            _send(running, signal.SIGTERM)
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            _send(running, signal.SIGKILL)
        time.sleep(POLL)
    return exit_code([each.returncode for each in running])


def _send(running: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for each in running:
        if each.poll() is None:
            each.send_signal(number)


def exit_code(codes: Sequence[int]) -> int:
    """Returns the exit code of a run: its processes' first failure, else 75 if any was interrupted, else 0.

    A negative code is the number of the signal that killed the process; it counts only if no process failed by itself.
    """
    failures = [code for code in codes if code not in (0, Interrupted.exit_code)]
    own = [code for code in failures if code > 0]  # a negative code is that of a process killed by a signal
    if failures:
        return own[0] if own else 128 - failures[0]
    return Interrupted.exit_code if Interrupted.exit_code in codes else 0


@contextmanager
def _forwarding(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside this `with` block, sends signals that ask the run to stop to every process; the launcher goes on."""

    def forward(number: int, frame: object) -> None:
        _send(running, number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before: dict[int, Any] = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
