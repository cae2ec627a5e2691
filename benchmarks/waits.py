"""A stand-in for a GPU that counts how often the host waits for it.

Tensors of the meta device have shapes and no values; here they are those of the GPU. Every read of a value, every
operation whose result's shape depends on values, and every copy from the host that is not asynchronous makes the host
wait, and is counted with the line that asks for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from srpo.model import transfer

CARD = torch.device("meta")
READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SHAPES_FROM_VALUES = {"nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select"}
COPIES = {"_to_copy", "copy_"}
ELSEWHERE = ("/torch/", "benchmarks/waits.py")  # lines that ask on behalf of others


class Waits(TorchDispatchMode):
    """A mode that runs operators on the stand-in, and counts operators, waits and copies.

    Attributes:
        waits: (operator, line that asked) → number of waits.
        copies: number of copies from the host that are asynchronous.
        launches: number of operators on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies = self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        there = any(_there(leaf) for leaf in tree_leaves((args, kwargs)))
        if there and name in READS:
            return self._read(name, args[0])
        if there and name in SHAPES_FROM_VALUES | ({"index", "index_put_"} if _masked(args) else set()):
            self.wait(name)
            raise NotImplementedError(f"{name}: a shape that depends on values")
        if name in COPIES:
            source = args[1] if name == "copy_" else args[0]
            to = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            if _there(source) and to != CARD:
                self.wait(name)
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            if to == CARD and not _there(source):
                if kwargs.get("non_blocking"):
                    self.copies += 1
                else:
                    self.wait(name)
        out = func(*args, **kwargs)
        self.launches += any(_there(leaf) for leaf in tree_leaves(out))
        return out

    def _read(self, name: str, tensor: Tensor) -> Any:
        self.wait(name)
        return {torch.bool: True}.get(tensor.dtype, 1e-6 if tensor.dtype.is_floating_point else 0)

    def wait(self, name: str) -> None:
        """Counts a wait, under the line outside of torch that asks for it."""
        frame = sys._getframe(1)
        while frame.f_back and any(part in frame.f_code.co_filename for part in ELSEWHERE):
            frame = frame.f_back
        self.waits[name, f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"] += 1


def _there(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.device == CARD


def _masked(args: Any) -> bool:
    """Whether an indexing operator has a boolean mask among its indices."""
    return len(args) > 1 and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1]))


class _Made(TorchFunctionMode):
    """A mode that counts a wait for each tensor that is made of Python numbers on the stand-in."""

    def __init__(self, counted: Waits) -> None:
        super().__init__()
        self._counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = torch.device(kwargs.get("device") or "cpu") == CARD
        if there and func in (torch.tensor, torch.as_tensor, torch.asarray) and not isinstance(args[0], Tensor):
            self._counted.wait(func.__name__)
        return func(*args, **kwargs)


@contextmanager
def counted_waits(*, page_locked: bool = True) -> Iterator[Waits]:
    """Counts the waits of a block; with `page_locked`, memory of the host that srpo copies is page-locked."""
    kinds = (*transfer.ASYNCHRONOUS, *([CARD.type] if page_locked else []))
    with (
        mock.patch.object(transfer, "ASYNCHRONOUS", kinds),
        mock.patch.object(transfer, "page_locked", lambda values: values),
        Waits() as counted,
        _Made(counted),
    ):
        yield counted


class PerStep(TrainerCallback):
    """A callback that records waits, copies and operators of each optimiser step, its batch and log included."""

    def __init__(self, counted: Waits) -> None:
        self.counted = counted
        self.steps: list[tuple[Counter[tuple[str, str]], int, int]] = []
        self._before = (Counter[tuple[str, str]](), 0, 0)

    def _now(self) -> tuple[Counter[tuple[str, str]], int, int]:
        return Counter(self.counted.waits), self.counted.copies, self.counted.launches

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._before = self._now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        waits, copies, launches = self._now()
        before, copied, launched = self._before
        self.steps.append((waits - before, copies - copied, launches - launched))
        self._before = (waits, copies, launches)


def steps_on_the_stand_in(trainer: Any, *, page_locked: bool = True) -> list[tuple[Counter[tuple[str, str]], int, int]]:
    """Trains on the stand-in, and returns waits, asynchronous copies and operators of each optimiser step.

    Args:
        trainer: an `SRPOTrainer` of a run without saves; its optimiser must work on the meta device (adamw_torch).
        page_locked: as in `counted_waits`.
    """
    trainer.model.to(CARD)
    if trainer.reference.model is not None:
        trainer.reference.model.to(CARD)
    trainer.guard.first = None  # its checks of the first step need values
    device = {"new": CARD}
    with (
        mock.patch.object(type(trainer.args), "device", **device),
        mock.patch.object(type(trainer.accelerator), "device", **device),
        counted_waits(page_locked=page_locked) as counted,
    ):
        steps = PerStep(counted)
        trainer.add_callback(steps)
        trainer.train()
    return steps.steps
