"""Checks the first steps of a training: stops one that would train nothing, or train on wrong numbers.

before the first step    weights in 16 bits under an optimiser, dropout of every kind, no full batch
first micro-batches      log-ratios that differ from zero although the reference is the policy itself
first optimiser step     gradients that are exactly zero
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from srpo.errors import ConfigError, SRPOError
from srpo.maths.objective import SixLogps
from srpo.model.packed.backends import TOLERANCE
from srpo.sequences.tree import PrefixTree

log = logging.getLogger("srpo")
HALF = (torch.float16, torch.bfloat16)
_NOISE = ("drop", "jitter")  # parts of the names of model attributes that switch random noise on


# ---------------------------------------------------------------------- before the first step


def train_in_float32(policy: nn.Module) -> None:
    """Converts weights that will be trained from 16 bits to float32, in place; without an adapter, all weights.

    In 16 bits an optimiser does not train: updates are smaller than the rounding of a weight in bfloat16, and AdamW's
    ε is zero in float16.

    Raises:
        ConfigError: 16-bit weights that are trained beside an adapter, as with `modules_to_save`.
    """
    half = {name: p.dtype for name, p in policy.named_parameters() if p.requires_grad and p.dtype in HALF}
    if not half:
        return
    kind = str(next(iter(half.values()))).removeprefix("torch.")
    if not hasattr(policy, "peft_config"):
        policy.float()
        log.warning(
            "srpo: all weights are trained in float32 (loaded as %s): an optimiser's updates round away in 16 bits; "
            "bf16 computes in bfloat16 and keeps float32 weights",
            kind,
        )
        return
    for p in _adapter_weights(policy):
        if p.requires_grad and p.dtype in HALF:
            p.data = p.data.float()
    if left := [name for name, p in policy.named_parameters() if p.requires_grad and p.dtype in HALF]:
        what = f"{left[0]} and {len(left) - 1} more would be trained in {kind}, where updates round away"
        fix = "load the model in float32 (dtype), or train an adapter alone"
        raise ConfigError(what if len(left) > 1 else what.replace(" and 0 more", ""), where="dtype", fix=fix)


def _adapter_weights(policy: nn.Module) -> Iterator[nn.Parameter]:
    if hasattr(policy, "peft_config"):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in policy.modules():
            if isinstance(module, BaseTunerLayer):
                yield from module.parameters()


def disable_noise(policy: nn.Module) -> Callable[[], Any]:
    """Sets every dropout and jitter of a model to zero, in its modules and in its configuration.

    Returns:
        A context manager: inside its `with` block the configuration has its own values again, so that it can be saved.
    """
    config: Any = getattr(policy, "config", None)
    configs = [config, config.get_text_config()] if config is not None else []
    before = [(each, name, getattr(each, name)) for each in configs for name in _noisy(each)]
    for each, name, _ in before:
        setattr(each, name, 0.0)
    for module in policy.modules():
        for name in (*_noisy(module), *(("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else ())):
            setattr(module, name, 0.0)

    @contextmanager
    def original() -> Iterator[None]:
        for each, name, value in before:
            setattr(each, name, value)
        yield
        for each, name, _ in before:
            setattr(each, name, 0.0)

    return original


def _noisy(thing: object) -> list[str]:
    """Returns the names of those attributes of a module or configuration that set a dropout or jitter above 0."""
    named = ((name, value) for name, value in vars(thing).items() if any(part in name for part in _NOISE))
    return [name for name, value in named if isinstance(value, float) and value > 0]


def expect_batch(pairs: int, batch: int, processes: int) -> None:
    """Checks that the pairs fill at least one batch under `dataloader_drop_last`, which drops a smaller batch.

    Args:
        pairs: number of training pairs.
        batch: pairs in a batch of one process.
        processes: number of processes.

    Raises:
        ConfigError: the pairs do not fill one batch of every process.
    """
    if pairs < batch * processes:
        what = f"drops all {pairs} pairs: a batch takes {batch * processes}"
        raise ConfigError(what, where="dataloader_drop_last", fix="leave it out, or lower per_device_train_batch_size")


# ---------------------------------------------------------------------- first step


class FirstStep:
    """Checks the first step of a new run: log-ratios to an equal reference must be zero, and some gradient must not be.

    Args:
        own_reference: True if the reference is the policy before training, so that the log-ratios must be zero.
        cached: True if the reference's log-probs may come from a cache, whose batches differ and so round differently.
        mean: True if log-probs are means over tokens.
        half: True if models compute in 16 bits, where rounding explains larger log-ratios.
        anywhere: function that returns whether its argument is true in any process.
    """

    def __init__(
        self, *, own_reference: bool, cached: bool, mean: bool, half: bool, anywhere: Callable[[bool], bool]
    ) -> None:
        self._checks_ratios, self._mean, self._anywhere = own_reference, mean, anywhere
        self._unit = TOLERANCE[torch.bfloat16 if half else torch.float32] * (4 if cached else 1)
        self._worst, self._allowed = 0.0, math.inf

    def add(self, trees: Sequence[PrefixTree], policy: SixLogps, reference: SixLogps) -> None:
        """Compares the log-probs of policy and reference on a micro-batch, and keeps the worst difference of all."""
        if not self._checks_ratios:
            return
        read = 2 if len(trees[0].answers) == 2 else 6
        off = max((p.detach() - r).abs().max().item() for p, r in zip(policy[:read], reference[:read], strict=True))
        tokens = max(len(answer) for tree in trees for _, answer in tree.unpack())
        allowed = self._unit * (tokens**-0.5 if self._mean else tokens**0.5)
        if off / allowed > self._worst / self._allowed:
            self._worst, self._allowed = off, allowed

    def expect(self, model: nn.Module, norm: float | None) -> None:
        """Checks the worst log-ratio of all added micro-batches, and the norm of the gradients.

        Raises:
            SRPOError: a log-ratio is not zero, or every gradient is.
        """
        if self._anywhere(self._worst > self._allowed):
            what = (
                f"the first log-ratios are not zero but up to {self._worst:.2g} nats (allowed {self._allowed:.1g}), "
                "although policy and reference have the same weights"
            )
            fix = "look for dropout or noise that disable_dropout does not reach, or a layer that differs in eval mode"
            raise SRPOError(what, where="step 1", fix=fix)
        if norm == 0:
            raise _no_gradient(model)


def _no_gradient(model: nn.Module) -> SRPOError:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    zero = [name for name, p in trained if p.grad is not None]
    absent = [name for name, p in trained if p.grad is None]
    counts = [
        f"{len(names)} {words} ({names[0]}, …)" for names, words in ((zero, "zero"), (absent, "missing")) if names
    ]
    what = f"the gradient of every trainable weight is exactly zero: {', '.join(counts)}"
    adapters = [p for name, p in trained if "lora_" in name]
    if adapters and not any(bool(p.detach().any()) for p in adapters):
        fix = "both factors of the adapter are zero, and their product passes no gradient: start from a new adapter"
    else:
        fix = (
            "likely causes: quantised layers that lose their gradient after a forward in eval mode, trainable weights "
            "that the forward does not use, or a frozen layer that detaches its output"
        )
    return SRPOError(what, where="step 1", fix=fix)
