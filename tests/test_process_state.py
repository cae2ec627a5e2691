"""State of the process that a test leaves behind is restored before the next test."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Frozen, pytest_runtest_logstart
from tests.process_state import process_as_it_was

STATE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "folder": (os.getcwd, lambda: os.chdir("..")),
    "path": (lambda: [*sys.path], lambda: sys.path.append("elsewhere")),
    "variable": (lambda: os.environ.get("SRPO_NEW"), lambda: os.environ.update(SRPO_NEW="1")),
    "changed variable": (lambda: os.environ.get("HF_HUB_OFFLINE"), lambda: os.environ.update(HF_HUB_OFFLINE="0")),
    "removed variable": (lambda: os.environ.get("OMP_NUM_THREADS"), lambda: os.environ.pop("OMP_NUM_THREADS")),
    "signal": (lambda: signal.getsignal(signal.SIGTERM), lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)),
    "random": (random.getstate, random.random),
    "torch": (lambda: torch.get_rng_state().tolist(), lambda: torch.manual_seed(12345)),
    "dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "gradients": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "algorithms": (torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(True)),
    "level": (lambda: logging.getLogger("srpo").level, lambda: logging.getLogger("srpo").setLevel(logging.CRITICAL)),
    "handler": (
        lambda: [*logging.getLogger().handlers],
        lambda: logging.getLogger().addHandler(logging.NullHandler()),
    ),
}


@pytest.mark.parametrize("name", STATE)
def test_state_is_restored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, change = STATE[name]
    monkeypatch.chdir(tmp_path)
    before = read()
    with process_as_it_was():
        change()
        assert read() != before
    assert read() == before


@pytest.mark.parametrize(("file", "freezes"), [("tests/test_b.py", True), ("tests/test_a.py", False)])
def test_objects_of_earlier_files_leave_garbage_collection(
    file: str, freezes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Frozen, "file", "tests/test_a.py")
    before = gc.get_freeze_count()
    pytest_runtest_logstart(f"{file}::test", (file, 1, "test"))
    assert (gc.get_freeze_count() > before) == freezes
