"""Log-probs computed inside the forward pass of an output head whose weight FSDP 2 splits over processes.

FSDP gathers such a weight for the head's own forward pass, and again when the backward pass reaches the head's output.
So tiles of logits are computed inside the head, and their log-probs leave the model hidden behind its logits: `board`
attaches them to the head's output, `leave` takes them from the model's logits. A gradient of the log-probs thus travels
back through the model's logits, where FSDP waits for it.

Axes: P scored positions, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn


class Cargo:
    """The log-probs [T] of one forward pass on their way out of the model, and their gradients on the way back.

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
    """True if FSDP 2 gathers the weights of this module."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def board(out_1V: Tensor, logp_T: Tensor, cargo: Cargo) -> Tensor:
    """Returns the head's output `out_1V` with the log-probs attached; no gradient reaches `out_1V` itself."""
    return cast("Tensor", _Board.apply(out_1V.detach(), logp_T, cargo))


def leave(logits_1V: Tensor, cargo: Cargo) -> Tensor:
    """Returns the log-probs [T] that `board` attached to the head's output, from the logits that the model made of it.

    Differentiable with respect to the log-probs alone.
    """
    return cast("Tensor", _Leave.apply(logits_1V, cargo))


class _Context(Protocol):
    """A protocol for the `ctx` of autograd functions, which carries state from forward to backward."""

    cargo: Cargo
    like: dict[str, Any]


class _Board(torch.autograd.Function):
    """Autograd function of `board`."""

    @staticmethod
    def forward(ctx: _Context, out_1V: Tensor, logp_T: Tensor, cargo: Cargo) -> Tensor:
        ctx.cargo, cargo.logp_T = cargo, logp_T.detach()
        return out_1V.clone()

    @staticmethod
    def backward(ctx: _Context, _: Tensor) -> tuple[None, Tensor | None, None]:
        grad_T, ctx.cargo.grad_T = ctx.cargo.grad_T, None
        return None, grad_T, None


class _Leave(torch.autograd.Function):
    """Autograd function of `leave`."""

    @staticmethod
    def forward(ctx: _Context, logits_1V: Tensor, cargo: Cargo) -> Tensor:
        assert cargo.logp_T is not None, "the head has run"
        ctx.cargo = cargo
        ctx.like = {"size": logits_1V.shape, "dtype": logits_1V.dtype, "device": logits_1V.device}
        return cargo.logp_T

    @staticmethod
    def backward(ctx: _Context, grad_T: Tensor) -> tuple[Tensor, None]:
        ctx.cargo.grad_T = grad_T
        return torch.zeros(**ctx.like), None
