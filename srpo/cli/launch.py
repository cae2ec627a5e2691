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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, Interrupted, did_you_mean
from srpo.settings_file import read_settings
from srpo.signals import SIGNALS

FILES = Path(__file__).parent / "launch_files"
POLL = 0.1  # seconds
GRACE = 30.0  # seconds that the others have to end after one of them failed, before they are killed


def launched() -> bool:
    """Whether this process was started by a launcher."""
    return "RANK" in os.environ


def kinds() -> list[str]:
    """Names of the shipped launch files."""
    return sorted(each.stem for each in FILES.glob("*.yaml"))


def variables_of(kind: str) -> dict[str, str]:
    """Returns the environment variables by which accelerate reads a launch file, as `accelerate launch` sets them.

    Raises:
        ConfigError: no file of that name is shipped.
    """
    if kind not in kinds():
        fix = did_you_mean(kind, kinds())
        raise ConfigError(f"{kind!r}", where="launch", expected="one of " + ", ".join(kinds()), fix=fix)
    settings = read_settings(str(FILES / f"{kind}.yaml"))
    found = {}
    if fsdp := settings.get("fsdp_config"):
        found["ACCELERATE_USE_FSDP"] = "true"
        found |= {name.upper(): _text(value) for name, value in fsdp.items()}
    return found


def launch(kind: str, processes: int | None, command: Sequence[str]) -> int:
    """Runs `srpo` with the words of `command` in several processes; returns the exit code of the run.

    Args:
        kind: name of a launch file, see `kinds`.
        processes: number of processes; None for one per GPU, or one without GPUs.

    Raises:
        ConfigError: an unknown kind.
    """
    variables = variables_of(kind)
    count = processes or _gpus() or 1
    common = {**os.environ, **variables, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GROUP_RANK": "0"}
    common.setdefault("OMP_NUM_THREADS", "1")
    running: list[subprocess.Popen[bytes]] = []
    with _forwarding(running):
        for rank in range(count):
            ranked = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = [sys.executable, "-m", "srpo", *command]
            # In a session of their own, so that a Ctrl-C reaches them once, through the launcher.
            running.append(subprocess.Popen(words, env=ranked, start_new_session=True))
        return _ended(running)


def _ended(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all processes; after one has failed, ends the others, which would wait for it."""
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
    """The exit code of a run from those of its processes: the first failure, else 75 if any was interrupted, else 0."""
    failures = [code for code in codes if code not in (0, Interrupted.exit_code)]
    own = [code for code in failures if code > 0]  # a negative code is that of a process killed by a signal
    if failures:
        return own[0] if own else 128 - failures[0]
    return Interrupted.exit_code if Interrupted.exit_code in codes else 0


@contextmanager
def _forwarding(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Inside the block, signals that ask the run to stop go to every process, and do not stop the launcher."""

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
