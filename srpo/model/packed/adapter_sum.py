"""LoRA's product added to the output of its base layer by the product itself.

peft adds the product in three passes over the output of a layer: the product, its scaling and the sum. Here one call
multiplies, scales and adds, and its backward pass scales the small factor instead of the gradient. Policy and reference
are both computed in this way, so that equal weights give equal log-probs. Under autocast peft's own way stays.

Axes: N rows (all tokens of a batch), I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from srpo.model.packed.tiles import planned_card
from srpo.model.unwrap import adapted


class _AddedProduct(torch.autograd.Function):
    """Autograd function: result + scaling · x Aᵀ Bᵀ, written to the memory of `result` unless that is a view."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        x_NI, result_NO = x.flatten(0, -2), result.flatten(0, -2)
        small_NR = x_NI @ a_RI.T
        ctx.save_for_backward(x, small_NR, a_RI, b_OR)
        ctx.scaling = scaling
        if result._is_view():  # autograd would copy the gradient of the whole output for a change of a view
            return torch.addmm(result_NO, small_NR, b_OR.T, alpha=scaling).view(result.shape)
        ctx.mark_dirty(result)
        result_NO.addmm_(small_NR, b_OR.T, alpha=scaling)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, small_NR, a_RI, b_OR = ctx.saved_tensors
        grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
        dsmall_NR = (grad_NO @ b_OR).mul_(ctx.scaling)
        dx = (dsmall_NR @ a_RI).view(x.shape) if ctx.needs_input_grad[1] else None
        da_RI = dsmall_NR.T @ x_NI if ctx.needs_input_grad[2] else None
        db_OR = (grad_NO.T @ small_NR).mul_(ctx.scaling) if ctx.needs_input_grad[3] else None
        return grad if ctx.needs_input_grad[0] else None, dx, da_RI, db_OR, None


class AddedByProduct:
    """A variant of LoRA in peft's sense, which peft calls with the output of the base layer."""

    @staticmethod
    def forward(module: Any, *, active_adapter: str, x: Tensor, result: Tensor, **_variants: object) -> Tensor:
        """Returns the output of the base layer plus the scaled product of the adapter, as peft's own layer does.

        Args:
            module: the LoRA layer.
            active_adapter: name of its adapter.
            x: inputs [..., I], in the dtype of the adapter.
            result: output [..., O] of the base layer, which may be overwritten.
        """
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        dropout, scaling = module.lora_dropout[active_adapter], module.scaling[active_adapter]
        if not _serves(a, b, dropout, x):
            return result + b(a(dropout(x))) * scaling
        added: Tensor = _AddedProduct.apply(result.to(x.dtype), x, a.weight, b.weight, scaling)
        return added


def _serves(a: nn.Linear, b: nn.Linear, dropout: nn.Module, x: Tensor) -> bool:
    """True if this module may compute an adapter's product, instead of peft.

    It may if neither weight is split or quantised, both have the dtype of `x`, and no dropout or autocast is active.
    """
    draws = not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1.0) > 0 and dropout.training
    mixed = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    # DeepSpeed gathers a split weight when its own module is called; a DTensor has a type of its own, as have the
    # tensors without values of a plan.
    plain = all(type(each.weight) is nn.Parameter or planned_card() is not None for each in (a, b))
    whole = plain and not any(hasattr(each.weight, "ds_id") for each in (a, b))
    typed = a.weight.dtype == b.weight.dtype == x.dtype
    return whole and typed and not draws and not mixed


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def adding_by_product(model: nn.Module) -> Iterator[None]:
    """Inside this `with` block, plain LoRA layers of a model add their product in one call.

    Layers of other kinds are left alone, and so are all layers of a model with a compiled module: its graph would be
    traced again for this change of the layers.
    """
    ours: list[tuple[dict[str, Any], str]] = []
    peft_model = next((m for m in model.modules() if adapted(m) is not None), None)
    if peft_model is not None and not any(map(_is_compiled, model.modules())):
        from peft.tuners.lora.layer import Linear

        for layer in model.modules():
            if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
                plain = [name for name in layer.lora_A if not layer.lora_bias[name]]
                ours += [(layer.lora_variant, name) for name in plain if name not in layer.lora_variant]
    for variants, name in ours:
        variants[name] = AddedByProduct
    try:
        yield
    finally:
        for variants, name in ours:
            variants.pop(name, None)
