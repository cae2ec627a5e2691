"""The head's elementwise passes on CUDA: one kernel forward and one backward over 16-bit logits.

torch alone passes over a tile of logits some ten times, in float32. These operators read each logit once in the forward
pass, and read it and write its slope once in the backward pass; sums and exponentials are taken in float32 registers.
As operators of torch they have a form for tensors without values, so that plans and counts of a step contain them.

Axes: R scored positions of a tile, T answer tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

KINDS = ("cuda",)  # types of devices that the kernels run on
log = logging.getLogger("srpo")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """True if the kernels compute on a device; at the first call for it they run once on small logits.

    Triton compiles at run time, which needs a C compiler and a GPU that it knows. Where the kernels do not run, or
    their results differ from torch's, a warning says so and torch computes.
    """
    if device.type not in KINDS or dtype not in DTYPES or importlib.util.find_spec("triton") is None:
        return False
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return _runs(torch.device(device.type, index or 0))


@functools.cache
def _runs(device: torch.device) -> bool:
    logits_RV = torch.linspace(-3, 3, 10, device=device).view(2, 5)
    norm_R = logits_RV.logsumexp(1)
    first_R1, token_T = torch.tensor([0, 1, 2], device=device), torch.tensor([4, 0], device=device)
    grad_R = torch.ones_like(norm_R)
    wanted_RV = torch.nn.functional.one_hot(token_T, 5) - logits_RV.softmax(1)
    try:
        off = (norms(logits_RV, 1.0, 0.0) - norm_R).abs().max()
        found_RV = slopes(logits_RV, norm_R, grad_R, first_R1, token_T, grad_R, 1.0, 0.0)
        off = max(off.item(), (found_RV - wanted_RV).abs().max().item())
        problem = "" if off < 1e-4 else f"their results differ from torch's by {off:.1e}"
    except Exception as error:  # whatever Triton, a compiler or a driver raises
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        log.warning("srpo: the output head runs without its fused kernels: %s", problem)
    return not problem


@torch.library.custom_op("srpo::head_norms", mutates_args=())
def norms(logits_RV: Tensor, scale: float, cap: float) -> Tensor:
    """Log-sum-exp of each row, [R] float32, after z ↦ scale · z and, unless `cap` is 0, cap · tanh(z / cap)."""
    from srpo.model.packed import fused_kernels

    return fused_kernels.norms(logits_RV, scale, cap)


@torch.library.custom_op("srpo::head_slopes", mutates_args=())
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
    """Gradient of the logits, [R, V] in their dtype.

    Args:
        logits_RV: logits before the transform, as in `norms`.
        norm_R: the rows' log-sum-exp.
        grad_R: sum of the gradients of each row's answer tokens.
        first_R1: index of each row's first answer token, and one past the last token of the last row.
        token_T, grad_T: ids and gradients of all answer tokens, in the order of the rows.
    """
    from srpo.model.packed import fused_kernels

    return fused_kernels.slopes(logits_RV, norm_R, grad_R, first_R1, token_T, grad_T, scale, cap)


@norms.register_fake
def _norms_shape(logits_RV: Tensor, scale: float, cap: float) -> Tensor:
    return logits_RV.new_empty(len(logits_RV), dtype=torch.float32)


@slopes.register_fake
def _slopes_shape(
    logits_RV: Tensor,
    norm_R: Tensor,
    grad_R: Tensor,
    first_R1: Tensor,
    token_T: Tensor,
    grad_T: Tensor,
    scale: float,
    cap: float,
) -> Tensor:
    return torch.empty_like(logits_RV)


@torch.library.custom_op("srpo::head_product", mutates_args=())
def product32(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices in float32, of 16-bit ones without rounding their products."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@product32.register_fake
def _product_shape(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(len(left), right.shape[1], dtype=torch.float32)
