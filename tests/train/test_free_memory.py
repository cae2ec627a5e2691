"""Freed memory goes back to the system, once it is worth it."""

from __future__ import annotations

import ctypes

import pytest

from srpo.train import free_memory
from srpo.train.free_memory import FreeMemory, resident
from tests.train.plain import trainer


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_between_blocks_in_use_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "GROWTH", 1.01)
    memory = FreeMemory()
    memory.free()
    before = resident()
    blocks = [bytearray(100_000) for _ in range(2000)]
    kept = blocks[::100]
    del blocks
    assert resident() > before + 150e6  # control: without the callback the process keeps it
    memory.free()
    assert resident() < before + 50e6
    assert sum(map(len, kept)) > 0


def test_a_trainer_has_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = trainer(tmp_path_factory.mktemp("run"))
    assert [each for each in made.callback_handler.callbacks if isinstance(each, FreeMemory)]
