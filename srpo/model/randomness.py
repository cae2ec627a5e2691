"""The state of every random number generator that a step may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Their states as they are."""
    found: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_generators(found: dict[str, Any]) -> None:
    """Puts them where they were."""
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["cpu"])
    if "cuda" in found:
        torch.cuda.set_rng_state_all(found["cuda"])


@contextmanager
def left_as_found() -> Iterator[None]:
    """What is drawn inside is not missing outside: training goes on alike whether it was evaluated or not."""
    found = generators()
    try:
        yield
    finally:
        set_generators(found)
