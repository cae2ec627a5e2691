"""Triton kernels of `fused.py`. Importing this file needs Triton."""

# mypy: ignore-errors
from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits in the registers of one program


@triton.jit
def _transformed(z, SCALE: tl.constexpr, CAP: tl.constexpr):
    z = z * SCALE
    if CAP != 0.0:
        z = CAP * (2.0 * tl.sigmoid(2.0 * z / CAP) - 1.0)  # cap · tanh(z / cap)
    return z


@triton.jit
def _norms(logits, stride, norm, words, SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """Kernel that writes the log-sum-exp of each row of logits to `norm`, in one pass over blocks of the row.

    One program computes one row; it updates the row's maximum and the sum of exponentials relative to it.
    """
    row = tl.program_id(0).to(tl.int64)
    most = -float("inf")
    total = 0.0
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(logits + row * stride + at, mask=at < words, other=0.0).to(tl.float32)
        z = tl.where(at < words, _transformed(z, SCALE, CAP), -float("inf"))
        new = tl.maximum(most, tl.max(z, 0))
        total = total * tl.exp(most - new) + tl.sum(tl.exp(z - new), 0)
        most = new
    tl.store(norm + row, most + tl.log(total))


@triton.jit
def _slopes(
    logits, stride, out, norm, grad, first, token, token_grad, words,
    SCALE: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Kernel that writes the gradient of the logits to `out`; one program computes one block of a row.

    It is −softmax · (gradient of the row), plus the gradient of each answer token at the token's own logit.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(logits + row * stride + at, mask=at < words, other=0.0).to(tl.float32)
    z = _transformed(z, SCALE, CAP)
    slope = -tl.exp(z - tl.load(norm + row)) * tl.load(grad + row)
    for i in range(tl.load(first + row), tl.load(first + row + 1)):
        slope += tl.where(at == tl.load(token + i), tl.load(token_grad + i), 0.0)
    if CAP != 0.0:
        slope = slope * (1.0 - (z / CAP) * (z / CAP))
    slope = slope * SCALE
    tl.store(out + row * words + at, slope.to(out.dtype.element_ty), mask=at < words)


def _on(device: torch.device):
    """Inside this `with` block, Triton launches kernels on `device`; it would take torch's current device otherwise."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def norms(logits_RV: Tensor, scale: float, cap: float) -> Tensor:
    """Runs the kernel of `fused.norms`; arguments and result are the same."""
    norm_R = logits_RV.new_empty(len(logits_RV), dtype=torch.float32)
    with _on(logits_RV.device):
        _norms[(len(logits_RV),)](
            logits_RV, logits_RV.stride(0), norm_R, logits_RV.shape[1], SCALE=scale, CAP=cap, BLOCK=BLOCK, num_warps=8
        )
    return norm_R


def slopes(
    logits_RV: Tensor,
    norm_R: Tensor,
    grad_R: Tensor,
    first_R1: Tensor,
    token_T: Tensor,
    grad_T: Tensor,
    scale: float,
    cap: float,
) -> Tensor:
    """Runs the kernel of `fused.slopes`; arguments and result are the same."""
    rows, words = logits_RV.shape
    out_RV = torch.empty_like(logits_RV, memory_format=torch.contiguous_format)
    arrays = (norm_R, grad_R, first_R1, token_T, grad_T)
    with _on(logits_RV.device):
        _slopes[rows, triton.cdiv(words, BLOCK)](
            logits_RV, logits_RV.stride(0), out_RV, *arrays, words, SCALE=scale, CAP=cap, BLOCK=BLOCK, num_warps=8
        )
    return out_RV
