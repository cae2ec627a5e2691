"""The state of every random number generator that a training step may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Returns the states of the random generators of Python, NumPy and torch (CPU, and CUDA where it is in use)."""
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generators(states: Mapping[str, Any]) -> None:
    """Restores the states of random generators that `generators` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restores all random generators at the end of a `with` block, so that draws in the block change none after it."""
    states = generators()
    try:
        yield
    finally:
        set_generators(states)
