"""The head's elementwise passes on CUDA: one kernel forward and one backward over 16-bit logits.

torch alone passes over a tile of logits some ten times, in float32. These operators read each logit once in the forward
pass, and read it and write its slope once in the backward pass; sums and exponentials are taken in float32 registers.
As operators of torch they have a form for tensors without values, so that plans and counts of a step contain them.

Axes: R scored positions of a tile, T answer tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

KINDS = ("cuda",)  # types of devices that the kernels run on
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def serves(kind: str, dtype: torch.dtype, *, planned: bool) -> bool:
    """Whether the kernels run on a type of device; torch for CUDA comes with Triton, which a plan takes for granted."""
    return kind in KINDS and dtype in DTYPES and (planned or importlib.util.find_spec("triton") is not None)


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
