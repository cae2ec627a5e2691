"""The state of a process that a test may change, and its restoration: the next test must not depend on it."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Levels that every test begins with, whatever a fixture of its module or a command in this process has set.
LEVELS = {None: logging.WARNING, "srpo": logging.NOTSET, "httpx": logging.NOTSET}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restores folder, environment, handlers of signals, `sys.path`, random states, switches of torch, and logging.

    Levels of loggers are set to `LEVELS` before and after the block.
    """
    folder, path, draws = os.getcwd(), [*sys.path], random.getstate()
    environment, of_torch = os.environ.copy(), _torch()
    handlers = [signal.getsignal(number) for number in SIGNALS]
    root = logging.getLogger()
    of_log = root.handlers[:]
    _set_levels()
    yield
    os.chdir(folder)
    sys.path[:] = path
    random.setstate(draws)
    _restore_environment(environment)
    _restore_torch(of_torch)
    for number, handler in zip(SIGNALS, handlers, strict=True):
        signal.signal(number, handler)
    _set_levels()
    for handler in root.handlers[:]:
        # pytest's own handlers come and go with the phases of a test.
        if handler not in of_log and not type(handler).__module__.startswith("_pytest."):
            root.removeHandler(handler)


def _set_levels() -> None:
    for name, level in LEVELS.items():
        if (logger := logging.getLogger(name)).level != level:  # setting it looks at every logger of the process
            logger.setLevel(level)


def _restore_environment(before: dict[str, str]) -> None:
    for name in {*os.environ, *before} - {"PYTEST_CURRENT_TEST"}:  # pytest's own
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


def _torch() -> tuple[Any, ...]:
    """Switches of torch for the whole process, and its random state; empty before the import of torch."""
    if (torch := sys.modules.get("torch")) is None:
        return ()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    return (*switches, deterministic, torch.get_rng_state())


def _restore_torch(before: tuple[Any, ...]) -> None:
    if not before:
        return
    torch = sys.modules["torch"]
    dtype, threads, grad, (deterministic, warn_only), draws = before
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_rng_state(draws)
