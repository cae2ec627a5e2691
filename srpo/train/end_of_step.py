"""The one read of a training step: metrics, checks and norm of the gradients come from the device together.

A read makes the host wait for the GPU, which is then idle until the host has queued more work. So everything that a
step computes stays on the device until the gradients are ready, and is read once, before the optimiser steps.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from srpo.model.packed.deferred import Deferred
from srpo.model.packed.head import other_logits
from srpo.model.packed.sums import wide
from srpo.train.durable.nonfinite import Guard
from srpo.train.metrics import Measured
from srpo.train.temperature import Temperature


def read_step(
    norm: Tensor | float | None,
    model: nn.Module,
    accelerator: Accelerator,
    guard: Guard,
    deferred: Deferred,
    measured: Measured,
    temperature: Temperature,
    *,
    step: int,
) -> float | None:
    """Reads everything that a step has computed from the device, and checks it before the optimiser uses its gradients.

    Args:
        norm: norm of all gradients; None if unknown.
        guard: checks of this step for nan and infinity.
        deferred: checks of the output head that this step has put off.
        measured: metrics of the step's micro-batches, gathered from all processes.
        temperature: is given these metrics, to set the next β.
        step: the optimiser step, from 1.

    Returns:
        The norm as a number.

    Raises:
        NonFiniteError: a log-prob, a loss or a gradient is not finite, in this process or another one.
        BackendError: a check that was deferred failed.
        SRPOError: a check of the first step failed.
    """
    flags, checks = guard.flags(accelerator.device), deferred.results(accelerator.device)
    bad = torch.stack([wide(flags).sum(), wide(checks).sum()])
    if accelerator.num_processes > 1:
        bad = accelerator.reduce(bad, "sum")
    others = [flags, checks, bad]
    if isinstance(norm, Tensor):
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP splits it
        others.append(whole.detach())
    found, (marks, failed, (bad_anywhere, failed_anywhere), *sizes) = measured.read(*others)
    size = sizes[0][0] if sizes else None if norm is None else float(norm)
    problem = deferred.first_problem([mark > 0 for mark in failed])
    guard.settle_step([mark > 0 for mark in marks], bad_anywhere > 0, step=step)
    if failed_anywhere > 0:  # all processes stop together
        raise problem or other_logits()
    if accelerator.scaler is None:
        guard.expect_finite_gradients(model, size, step=step)
    else:
        guard.forget()
    if guard.first is not None and step == 1:
        guard.first.expect(model, size)
    guard.first = None  # a second call of `train` starts from trained weights
    temperature.add(found)
    return size


def read_evaluation(deferred: Deferred, accelerator: Accelerator) -> None:
    """Reads the checks of the output head that an evaluation has put off; every process must call this.

    Raises:
        BackendError: a check failed, in this process or another one.
    """
    checks = deferred.results(accelerator.device)
    failed = wide(checks).sum()
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, "sum")
    problem = deferred.first_problem(checks.tolist())
    if failed.item() > 0:  # all processes stop together
        raise problem or other_logits()
