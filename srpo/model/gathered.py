"""Log-probs computed inside the forward pass of an output head whose weight FSDP 2 splits over processes.

FSDP gathers such a weight for the head's own forward pass, and again when the backward pass reaches the head's output.
So tiles of logits are computed inside the head, and their log-probs leave the model with its logits: `attach` attaches
them to the head's output, `take` takes them from the model's logits. A gradient of the log-probs thus travels
back through the model's logits, where FSDP waits for it.

Axes: P scored positions, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


class Attached:
    """Holds the log-probs [T] of one forward pass between the head and the model's logits, and later their gradients.

    The autograd graph passes only tensors in the shape of the logits; this object passes the rest beside it.

    Attributes:
        logp_T: the log-probs; None until the head has computed them.
        grad_T: their gradients; None until the backward pass has reached the model's logits.
    """

    def __init__(self) -> None:
        self.logp_T: Tensor | None = None
        self.grad_T: Tensor | None = None


def split_by_fsdp(model: nn.Module) -> bool:
    """True if FSDP 2 splits weights of the model over processes."""
    return any(map(_is_unit, model.modules()))


def is_linear(head: nn.Module) -> bool:
    """True if the output head is a plain `nn.Linear`, or one that FSDP 2 has given a class of its own."""
    return type(head) is nn.Linear or (_is_unit(head) and type(head).__bases__[1:] == (nn.Linear,))


def _is_unit(module: nn.Module) -> bool:
    """True if FSDP 2 gathers the weights of this module as one unit, for its forward and its backward pass."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def attach(out_1V: Tensor, logp_T: Tensor, attached: Attached) -> Tensor:
    """Attaches log-probs [T] to the head's output [1, V] in the autograd graph; returns that output with equal values.

    Gradients of the result go to the log-probs alone, not to `out_1V`.

    Args:
        attached: keeps the log-probs until `take` is called with the same object.
    """
    return cast("Tensor", _Attach.apply(out_1V.detach(), logp_T, attached))


def take(logits_1V: Tensor, attached: Attached) -> Tensor:
    """Returns the log-probs [T] that `attach` attached to the head's output, given the model's logits [1, V].

    Their gradient passes through the model's logits back to the head, where FSDP 2 gathers the weight for it; the
    logits themselves get a gradient of zero.
    """
    return cast("Tensor", _Take.apply(logits_1V, attached))


class _Context(Protocol):
    """A protocol for the `ctx` of autograd functions, which carries state from forward to backward."""

    attached: Attached
    like: dict[str, Any]


class _Attach(torch.autograd.Function):
    """The autograd function that `attach` applies."""

    @staticmethod
    def forward(ctx: _Context, out_1V: Tensor, logp_T: Tensor, attached: Attached) -> Tensor:
        ctx.attached, attached.logp_T = attached, logp_T.detach()
        return out_1V.clone()

    @staticmethod
    def backward(ctx: _Context, _: Tensor) -> tuple[None, Tensor | None, None]:
        grad_T, ctx.attached.grad_T = ctx.attached.grad_T, None
        return None, grad_T, None


class _Take(torch.autograd.Function):
    """The autograd function that `take` applies."""

    @staticmethod
    def forward(ctx: _Context, logits_1V: Tensor, attached: Attached) -> Tensor:
        assert attached.logp_T is not None, "the head has run"
        ctx.attached = attached
        ctx.like = {"size": logits_1V.shape, "dtype": logits_1V.dtype, "device": logits_1V.device}
        return attached.logp_T

    @staticmethod
    def backward(ctx: _Context, grad_T: Tensor) -> tuple[Tensor, None]:
        ctx.attached.grad_T = grad_T
        return torch.zeros(**ctx.like), None
