"""The language-model head on scored positions only: hidden states in, log-probs of answer tokens out.

The whole model runs, as its wrappers need; a hook passes only the scored positions to its head, so logits of all
positions never exist. Where the logits of the scored positions would still be large, the hook passes one position only
and the head is computed here, in tiles: each keeps its log-sum-exp and is computed again in the backward pass. That one
position also shows whether the model scales or caps its logits after the head: the tiles must reproduce the model's own
logits there, else the model's own head is used.

Axes: P scored positions, T answer tokens, V vocabulary, D hidden size, N rows, L row length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from srpo.errors import BackendError
from srpo.model.unwrap import core

log = logging.getLogger("srpo")

# Tiles compute the head's product once more, a third of its work; below some 250 positions of a 128k vocabulary
# (128 MiB of float32 logits) that costs more time than the memory is worth.
TILED_ABOVE = 2**25  # number of logits
TILE = {"cpu": 2**23}  # logits of a tile
TILE_ELSEWHERE = 2**26  # accelerators are faster on larger products
# Largest difference between a model's logits and the product of its head, in rounding errors of the largest logit; an
# overlooked scale or cap differs by far more.
NEAR = 8


class Scored(NamedTuple):
    """A named tuple of the positions that the head runs on and the answer tokens scored at them.

    Attributes:
        place_P: indices of the positions in the flattened batch.
        row_T: index into `place_P` of the position at which each answer token is scored.
        token_T: id of each answer token.
        length: L, tokens of a row of the batch.
    """

    place_P: Tensor
    row_T: Tensor
    token_T: Tensor
    length: int


def answer_logps(model: nn.Module, run: Callable[..., Any], scored: Scored) -> Tensor:
    """Log-prob of each answer token, [T], float64, nats; differentiable.

    Args:
        model: a causal language model.
        scored: the positions that need logits, and the answer tokens.
        run: calls the model on its batch, with any further keywords, and returns the model's output.

    Raises:
        BackendError: the model does not return one row of logits for each scored position.
    """
    if _is_compiled(model):  # no hook reaches a head that is traced into a compiled graph
        return _untiled_logps(_scored_rows(run, scored), scored)
    after = _possible_transforms(model, scored)
    if after is not None:
        with _through(model, scored.place_P, only_first=True) as seen:
            row_1V = run().logits.flatten(0, -2)
        if (found := _agreeing(after, seen, row_1V)) is not None:
            hidden_PD = seen.hidden_PD.to(seen.dtype)
            return _TiledLogps.apply(hidden_PD, *seen.weights(), scored.row_T, scored.token_T, found)
        _untiled[seen.head] = True
        log.info("srpo: the head is not tiled: the model's logits are not what its head and configuration give")
    with _through(model, scored.place_P):
        logits_PV = run().logits.flatten(0, -2)
    return _untiled_logps(logits_PV, scored)


def _is_compiled(model: nn.Module) -> bool:
    return any(getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod") for m in model.modules())


def _scored_rows(run: Callable[..., Any], scored: Scored) -> Tensor:
    """Logits [P, V] of the scored positions, by `logits_to_keep`: the columns that any row of the batch needs."""
    column_C, rank_P = (scored.place_P % scored.length).unique(return_inverse=True)
    logits_NCV = run(logits_to_keep=column_C).logits
    if logits_NCV.shape[1] == scored.length != len(column_C):  # the model ignored `logits_to_keep`
        rank_P = scored.place_P % scored.length
    return logits_NCV[scored.place_P // scored.length, rank_P]


def _untiled_logps(logits_PV: Tensor, scored: Scored) -> Tensor:
    """Log-prob of each answer token, [T], from the logits [P, V] of all scored positions at once."""
    if len(logits_PV) != len(scored.place_P):
        raise BackendError(f"{len(logits_PV)} rows of logits for {len(scored.place_P)} positions", where="the head")
    logits_PV = logits_PV.float() if logits_PV.dtype != torch.float64 else logits_PV
    norm_P = logits_PV.logsumexp(-1)
    return logits_PV[scored.row_T, scored.token_T].double() - norm_P[scored.row_T].double()


# ---------------------------------------------------------------------- inputs of the head


class _HeadInput:
    """A record of the head's last call: hidden states [P, D] of the scored positions, and the dtype it computes in."""

    def __init__(self, head: nn.Module) -> None:
        self.head: Any = head
        self.hidden_PD = torch.empty(0)
        self.dtype = torch.float32

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """The head's weight and bias, cast to the dtype of its computation; autocast stores them in another dtype."""
        bias = self.head.bias
        return self.head.weight.to(self.dtype), None if bias is None else bias.to(self.dtype)


@contextmanager
def _through(model: nn.Module, place_P: Tensor, *, only_first: bool = False) -> Iterator[_HeadInput]:
    """Inside the block, passes only the positions `place_P` to the model's head, or only the first of them."""
    seen = _HeadInput(core(model).get_output_embeddings())

    def narrow(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.hidden_PD = args[0].flatten(0, -2).index_select(0, place_P)
        kind = args[0].device.type
        seen.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else args[0].dtype
        return (seen.hidden_PD[None, :1] if only_first else seen.hidden_PD[None], *args[1:])

    hook = seen.head.register_forward_pre_hook(narrow)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def head_dtypes(model: nn.Module) -> Iterator[list[torch.dtype]]:
    """Yields a list that collects the dtype of the head's output at each call inside the block.

    Under autocast this dtype is neither that of the head's weights nor that of the model's logits.
    """
    found: list[torch.dtype] = []
    head = core(model).get_output_embeddings()
    watch = head.register_forward_hook(lambda _module, _inputs, out: found.append(out.dtype))
    try:
        yield found
    finally:
        watch.remove()


# ---------------------------------------------------------------------- transforms after the head


class _After(NamedTuple):
    """A function of logits as a named tuple: a model's transform z ↦ scale · z, then cap · tanh(z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


_untiled: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _possible_transforms(model: nn.Module, scored: Scored) -> list[_After] | None:
    """Transforms of logits that the model's configuration allows; None if the head must not be tiled."""
    head: Any = core(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    if type(head) is not nn.Linear or head in _untiled or type(weight) is not nn.Parameter:  # quantised, an adapter, …
        return None
    if weight.ndim != 2 or weight.untyped_storage().nbytes() < weight.numel() * weight.element_size():  # sharded
        return None
    if len(scored.place_P) * len(weight) <= TILED_ABOVE:
        return None
    config = core(model).config.get_text_config()
    scales = {1.0}
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        if isinstance(value := getattr(config, name, None), float | int) and value:
            scales |= {float(value), 1 / value}
    cap = getattr(config, "final_logit_softcapping", None)
    return [_After(scale, limit) for limit in ([cap, None] if cap else [None]) for scale in sorted(scales)]


@torch.no_grad()
def _agreeing(candidates: list[_After], seen: _HeadInput, row_1V: Tensor) -> _After | None:
    """The candidate that maps the product of the head and its input `seen` to the model's logits `row_1V`, or None."""
    if row_1V.shape != (1, len(seen.head.weight)):
        return None
    own_1V = F.linear(seen.hidden_PD[:1].to(seen.dtype), *seen.weights()).double()
    off = {after: (row_1V.double() - after(own_1V)).abs().max() / after(own_1V).abs().max() for after in candidates}
    nearest = min(off, key=lambda after: off[after].item())
    return nearest if off[nearest] <= NEAR * torch.finfo(seen.dtype).eps else None


# ---------------------------------------------------------------------- tiles


class _Context(Protocol):
    """A protocol for the `ctx` of autograd functions, which carries state from forward to backward."""

    after: _After
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _TiledLogps(torch.autograd.Function):
    """An autograd function: log-probs [T] of the answer tokens, from logits computed in tiles.

    Only the log-sum-exp of each position is kept; the backward pass computes the tiles again.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_T: Tensor,
        token_T: Tensor,
        after: _After,
    ) -> Tensor:
        full = torch.promote_types(hidden_PD.dtype, torch.float32)
        norm_P = hidden_PD.new_empty(len(hidden_PD), dtype=full)
        logp_T = hidden_PD.new_empty(len(row_T), dtype=torch.float64)
        for rows, answers in _tiles(hidden_PD, weight_VD, row_T):
            logits_RV = after(F.linear(hidden_PD[rows], weight_VD, bias_V).to(full))
            scored_A = logits_RV[row_T[answers] - rows.start, token_T[answers]]
            most_R1 = logits_RV.amax(1, keepdim=True)  # torch's logsumexp would need two more tiles of memory
            norm_P[rows] = most_R1[:, 0] + logits_RV.sub_(most_R1).exp_().sum(1).log()
            logp_T[answers] = scored_A.double() - norm_P[row_T[answers]].double()
            del logits_RV  # before the next tile is allocated
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P)
        ctx.after = after
        return logp_T

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P = ctx.saved_tensors
        after, full = ctx.after, norm_P.dtype
        grad_T = grad_T.to(full)
        grad_P = torch.zeros_like(norm_P).index_add_(0, row_T, grad_T)
        dhidden_PD = torch.empty_like(hidden_PD) if ctx.needs_input_grad[0] else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=full) if ctx.needs_input_grad[1] else None
        dbias_V = torch.zeros_like(bias_V, dtype=full) if ctx.needs_input_grad[2] else None
        for rows, answers in _tiles(hidden_PD, weight_VD, row_T):
            dlogits_RV = after(F.linear(hidden_PD[rows], weight_VD, bias_V).to(full))
            slope_RV = None if after.cap is None else 1 - (dlogits_RV / after.cap).square()  # of cap · tanh(z / cap)
            # −softmax weighted by each position's gradient, plus each answer token's gradient at its own logit
            dlogits_RV.sub_(norm_P[rows, None]).exp_().mul_(-grad_P[rows, None])
            places = (row_T[answers] - rows.start, token_T[answers])
            dlogits_RV.index_put_(places, grad_T[answers], accumulate=True)
            if slope_RV is not None:
                dlogits_RV.mul_(slope_RV)
            if after.scale != 1.0:
                dlogits_RV.mul_(after.scale)
            if dbias_V is not None:
                dbias_V += dlogits_RV.sum(0)
            dlogits_RV = dlogits_RV.to(hidden_PD.dtype)
            if dhidden_PD is not None:
                torch.mm(dlogits_RV, weight_VD, out=dhidden_PD[rows])
            if dweight_VD is None:
                pass
            elif full == weight_VD.dtype:
                dweight_VD.addmm_(dlogits_RV.T, hidden_PD[rows])
            else:  # tiles are summed in float32; no product of half-precision matrices adds into float32
                dweight_VD += dlogits_RV.T @ hidden_PD[rows]
            del dlogits_RV
        dweights = (None if d is None else d.to(weight_VD.dtype) for d in (dweight_VD, dbias_V))
        return dhidden_PD, *dweights, None, None, None


def _tiles(hidden_PD: Tensor, weight_VD: Tensor, row_T: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of the scored positions, each with the indices of the answer tokens scored in it (by `row_T`)."""
    rows = max(1, TILE.get(hidden_PD.device.type, TILE_ELSEWHERE) // len(weight_VD))
    starts = list(range(0, len(hidden_PD), rows))
    order_T = row_T.argsort()
    bounds = torch.searchsorted(row_T[order_T], torch.tensor([*starts[1:], len(hidden_PD)], device=row_T.device))
    first = 0
    for start, last in zip(starts, bounds.tolist(), strict=True):
        yield slice(start, min(start + rows, len(hidden_PD))), order_T[first:last]
        first = last
