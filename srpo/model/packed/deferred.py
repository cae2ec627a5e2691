"""Checks of numbers on a GPU whose results are read together at the end of a step.

Reading one number makes the host wait until the GPU has computed everything before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from srpo.errors import BackendError


class Deferred:
    """Collects checks whose results stay on the GPU until the end of a step, when all are read at once."""

    def __init__(self) -> None:
        self._failed: list[Tensor] = []
        self._problems: list[BackendError] = []

    def add(self, failed: Tensor, problem: BackendError) -> None:
        """Adds a check: `failed` is a boolean on any device, `problem` the error to raise where it is True."""
        self._failed.append(failed.reshape(1))
        self._problems.append(problem)

    def results(self, device: torch.device) -> Tensor:
        """Returns the results of all checks as one boolean tensor [number of checks] on `device`; True means failed."""
        return torch.cat([torch.zeros(0, dtype=torch.bool, device=device), *(each.to(device) for each in self._failed)])

    def first_problem(self, failed: list[bool]) -> BackendError | None:
        """Returns the error of the first failed check, or None, and forgets all checks.

        Args:
            failed: the numbers of the tensor that `results` returned, read from the device.
        """
        problems, self._failed, self._problems = self._problems, [], []
        return next((problem for bad, problem in zip(failed, problems, strict=True) if bad), None)


_deferred: Deferred | None = None


@contextmanager
def deferring(into: Deferred) -> Iterator[None]:
    """Inside this `with` block, model code adds its checks to `into` instead of reading their results at once."""
    global _deferred
    before, _deferred = _deferred, into
    try:
        yield
    finally:
        _deferred = before


def deferred() -> Deferred | None:
    """Returns the `Deferred` of the innermost `deferring` block, or None outside of such a block."""
    return _deferred
