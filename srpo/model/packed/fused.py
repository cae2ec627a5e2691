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
    """True if the kernels of this file can be used on a device for logits of a dtype.

    The first call for a device runs them once on small logits: Triton compiles at run time, which needs a C compiler
    and a GPU that it knows. If they fail, or differ from torch's results, a warning says so and the result is False.
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
    """Returns the log-sum-exp of each row of logits, [R] float32.

    Each logit z is first replaced by scale · z and then, unless `cap` is 0, by cap · tanh(z / cap).
    """
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
    """Returns the gradient of a loss with respect to logits, [R, V] in their dtype: the backward pass of log-probs.

    Args:
        logits_RV: logits before the transform, as in `norms`.
        norm_R: the rows' log-sum-exp.
        grad_R: sum of the gradients of the log-probs of the answer tokens that each row scores.
        first_R1: R + 1 numbers: index of each row's first answer token, and one past the last token of the last row.
        token_T, grad_T: id of each answer token and gradient of its log-prob, in the order of the rows.
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
    """Returns the product of two matrices in float32; sums of 16-bit matrices are not rounded to 16 bits."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@product32.register_fake
def _product_shape(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(len(left), right.shape[1], dtype=torch.float32)
