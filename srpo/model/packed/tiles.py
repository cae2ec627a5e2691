"""Computes log-probs of answer tokens from hidden states and the head's weight, tile by tile.

A tile is some rows of the logits [P, V]. Its elementwise passes work in the memory that its product was written to, and
the weight is cast to the dtype of the products once a step (`one_cast`).

Axes: P scored positions, R of them in a tile, T answer tokens, A of them in a tile, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from srpo.model.packed import fused
from srpo.model.packed.sums import device_of_sums, wide
from srpo.model.weights.precision import has_fast_bfloat16

TILE = {"cpu": 2**23}  # logits of a tile
TILE_ELSEWHERE = 2**26  # accelerators are faster on larger products


class After(NamedTuple):
    """A transform that a model applies to its head's logits: z ↦ scale · z, then cap · tanh(z / cap) if `cap` is set.

    An instance is called with logits and returns the transformed ones.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap


class ByRow(NamedTuple):
    """The answer tokens of a batch in the order of the positions that score them.

    Attributes:
        order_T: indices of the answer tokens in this order.
        sorted_T: the index of each one's position, rising; on the host, so that cutting tiles need not wait for a GPU.
    """

    order_T: Tensor
    sorted_T: NDArray[np.int64]


class _Context(Protocol):
    """A protocol for the `ctx` of autograd functions, which carries state from forward to backward."""

    after: After
    by_row: ByRow
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class TiledLogps(torch.autograd.Function):
    """Autograd function: log-probs [T] of T answer tokens, from logits that are computed in tiles.

    The log-sum-exp of each position is stored for the backward pass, and with `keep` the logits. Without `keep` the
    backward pass computes the logits again, to the same bits.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_T: Tensor,
        token_T: Tensor,
        after: After,
        keep: bool = False,
        by_row: ByRow | None = None,
    ) -> Tensor:
        by_row = by_row or sorted_by_row(row_T)
        full = torch.promote_types(hidden_PD.dtype, torch.float32)
        norm_P = hidden_PD.new_empty(len(hidden_PD), dtype=full)
        logp_T = torch.empty_like(row_T, dtype=torch.float64, device=device_of_sums(row_T.device))
        with Products(hidden_PD, weight_VD, bias_V, keep=keep) as products:
            for rows, answers in _tiles(products, by_row):
                places = (row_T[answers] - rows.start, token_T[answers])
                if products.fused:
                    logits_RV = products.logits(rows)
                    scored_A = after(logits_RV[places].to(full))
                    norm_P[rows] = fused.norms(logits_RV, after.scale, after.cap or 0.0)
                else:
                    logits_RV = after(products.logits(rows).to(full))
                    scored_A = logits_RV[places]
                    most_R1 = logits_RV.amax(1, keepdim=True)  # torch's logsumexp would need two more tiles of memory
                    norm_P[rows] = most_R1[:, 0] + products.minus(logits_RV, most_R1).exp_().sum(1).log()
                logp_T[answers.to(logp_T.device)] = wide(scored_A) - wide(norm_P[row_T[answers]])
                del logits_RV  # before the next tile is allocated
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P, products.kept_PV)
        ctx.after, ctx.by_row = after, by_row
        return logp_T

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P, kept_PV = ctx.saved_tensors
        after, by_row, full = ctx.after, ctx.by_row, norm_P.dtype
        grad_T = grad_T.to(full).to(norm_P.device)
        grad_P = torch.zeros_like(norm_P).index_add_(0, row_T, grad_T)
        dweight_VD: Tensor | None = None
        dbias_V = torch.zeros_like(bias_V, dtype=full) if ctx.needs_input_grad[2] else None
        with Products(hidden_PD, weight_VD, bias_V, kept_PV=kept_PV) as products:
            dhidden_PD = torch.empty_like(products.hidden_PD) if ctx.needs_input_grad[0] else None
            slopes = _FusedSlopes(by_row, row_T, token_T, grad_T) if products.fused else None
            for rows, answers in _tiles(products, by_row):
                logits_RV, norms = products.logits(rows), (norm_P[rows], grad_P[rows])
                if slopes is not None:
                    dlogits_RV = slopes(logits_RV, *norms, rows, after)
                else:
                    places = (row_T[answers] - rows.start, token_T[answers], grad_T[answers])
                    dlogits_RV = _slopes(products, after(logits_RV.to(full)), *norms, *places, after)
                if dbias_V is not None:
                    dbias_V += dlogits_RV.sum(0, dtype=full)
                dlogits_RV = dlogits_RV.to(products.hidden_PD.dtype)
                if dhidden_PD is not None:
                    torch.mm(dlogits_RV, products.weight_VD, out=dhidden_PD[rows])
                if ctx.needs_input_grad[1]:
                    dweight_VD = products.add_product(dweight_VD, dlogits_RV.T, products.hidden_PD[rows])
                del logits_RV, dlogits_RV
        dhidden_PD = None if dhidden_PD is None else dhidden_PD.to(hidden_PD.dtype)
        dweights = (None if d is None else d.to(weight_VD.dtype) for d in (dweight_VD, dbias_V))
        return dhidden_PD, *dweights, None, None, None, None, None


def _slopes(
    products: Products,
    logits_RV: Tensor,
    norm_R: Tensor,
    grad_R: Tensor,
    row_A: Tensor,
    token_A: Tensor,
    grad_A: Tensor,
    after: After,
) -> Tensor:
    """Returns the gradient [R, V] of a loss with respect to a tile's logits before the transform `after`.

    Args:
        logits_RV: the tile's logits after the transform; they are overwritten, unless they are stored in `products`.
        norm_R: log-sum-exp of each row.
        grad_R: sum of the gradients of the log-probs that each row scores.
        row_A, token_A, grad_A: row, id and gradient of the log-prob of each answer token scored in the tile.
    """
    slope_RV = None if after.cap is None else 1 - (logits_RV / after.cap).square()  # of cap · tanh(z / cap)
    # −softmax weighted by each position's gradient, plus each answer token's gradient at its own logit
    dlogits_RV = products.minus(logits_RV, norm_R[:, None]).exp_().mul_(-grad_R[:, None])
    dlogits_RV.index_put_((row_A, token_A), grad_A, accumulate=True)
    if slope_RV is not None:
        dlogits_RV.mul_(slope_RV)
    return dlogits_RV if after.scale == 1.0 else dlogits_RV.mul_(after.scale)


class _FusedSlopes:
    """The gradient of `_slopes`, computed by one kernel (`fused.slopes`), called once per tile.

    It holds the answer tokens in the order of the scored positions, as the kernel needs them.
    """

    def __init__(self, by_row: ByRow, row_T: Tensor, token_T: Tensor, grad_T: Tensor) -> None:
        order_T = by_row.order_T
        self._row_T, self._token_T, self._grad_T = row_T[order_T], token_T[order_T], grad_T[order_T]

    def __call__(self, logits_RV: Tensor, norm_R: Tensor, grad_R: Tensor, rows: slice, after: After) -> Tensor:
        bounds_R1 = torch.arange(rows.start, rows.stop + 1, device=self._row_T.device)
        first_R1 = torch.searchsorted(self._row_T, bounds_R1)
        answers = (first_R1, self._token_T, self._grad_T)
        return fused.slopes(logits_RV, norm_R, grad_R, *answers, after.scale, after.cap or 0.0)


class Products:
    """Computes the head's logits tile by tile, some rows at a time; its `with` block switches autocast off.

    Axes: P scored positions, V vocabulary, D hidden size.

    Args:
        keep: store the logits of all tiles in `kept_PV`.
        kept_PV: logits that an earlier pass stored; None computes them.

    Attributes:
        hidden_PD, weight_VD, bias_V: operands in the dtype of the products.
        kept_PV: the stored logits, before any transform; None if they are not stored.
        fused: True if the kernels of `fused.py` do the elementwise passes over logits, False if torch does.
    """

    def __init__(
        self,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        *,
        keep: bool = False,
        kept_PV: Tensor | None = None,
    ) -> None:
        dtype = product_dtype(hidden_PD.dtype, hidden_PD.device.type)
        self.hidden_PD, self.weight_VD = hidden_PD.detach().to(dtype), _cast(weight_VD, dtype)
        self.bias_V = None if bias_V is None else _cast(bias_V, dtype)
        self._given, shape = kept_PV is not None, (len(hidden_PD), len(weight_VD))
        self.kept_PV = self.hidden_PD.new_empty(shape) if keep else kept_PV
        self._spare_RV: Tensor | None = None  # memory of one tile, allocated once: fresh pages cost as much as a pass
        kind = hidden_PD.device.type
        self.fused = serves(hidden_PD.device, dtype)
        mixed = torch.amp.is_autocast_available(kind)
        self._no_autocast: Any = torch.autocast(kind, enabled=False) if mixed else nullcontext()

    def __enter__(self) -> Products:
        self._no_autocast.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._no_autocast.__exit__(*error)

    def logits(self, rows: slice) -> Tensor:
        """Returns the logits [R, V] of a tile of R rows, before any transform; the next call may overwrite them."""
        if self._given and self.kept_PV is not None:
            return self.kept_PV[rows]
        out_RV = self._spare(rows) if self.kept_PV is None else self.kept_PV[rows]
        if self.bias_V is None:
            return torch.mm(self.hidden_PD[rows], self.weight_VD.T, out=out_RV)
        return torch.addmm(self.bias_V, self.hidden_PD[rows], self.weight_VD.T, out=out_RV)

    def add_product(self, total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        """Adds the product of two matrices to `total` in place and returns it; for None returns the product.

        Sums of 16-bit matrices are in float32.
        """
        if total is not None and left.dtype == total.dtype:
            return total.addmm_(left, right)
        product = fused.product32(left, right) if self.fused else left @ right
        product = product.to(torch.promote_types(left.dtype, torch.float32))
        return product if total is None else total.add_(product)

    def minus(self, logits_RV: Tensor, value_R1: Tensor) -> Tensor:
        """Subtracts `value_R1` from a tile's logits and returns them; in place, unless they lie in `kept_PV`."""
        if self.kept_PV is None or logits_RV.untyped_storage()._cdata != self.kept_PV.untyped_storage()._cdata:
            return logits_RV.sub_(value_R1)
        return torch.sub(logits_RV, value_R1, out=self._spare(slice(0, len(logits_RV))))

    def _spare(self, rows: slice) -> Tensor:
        count = rows.stop - rows.start
        if self._spare_RV is None:
            self._spare_RV = self.hidden_PD.new_empty(count, len(self.weight_VD))  # the first tile is the largest
        return self._spare_RV[:count]


class Card(NamedTuple):
    """A device for which memory is planned: type of device, bytes of memory, whether it has bfloat16 in hardware."""

    kind: str
    memory: int
    bfloat16: bool = True


_card: Card | None = None


def planned_card() -> Card | None:
    """Returns the device for which memory is being planned, on tensors without values; None in a real run."""
    return _card


@contextmanager
def computing_for(card: Card) -> Iterator[None]:
    """Inside this `with` block, memory is planned on tensors without values: tiles and dtypes are those of `card`."""
    global _card
    before, _card = _card, card
    try:
        yield
    finally:
        _card = before


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """True if the kernels of `fused.py` are used on a device; while memory is planned, on the planned device."""
    if _card is not None:
        return _card.kind in fused.KINDS and dtype in fused.DTYPES
    return fused.serves(device, dtype)


def product_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Returns the dtype in which the output head multiplies: float32 for 16-bit values on a CPU without fast bfloat16.

    Such a CPU multiplies in float32 twice as fast, and the logits need no cast. The products are those of the 16-bit
    values, without rounding.
    """
    if dtype in (torch.bfloat16, torch.float16) and _kind(device) == "cpu":
        return dtype if (has_fast_bfloat16("cpu") if _card is None else _card.bfloat16) else torch.float32
    return dtype


def _kind(device: str) -> str:
    """Returns the device type whose rules hold, such as "cuda": while `srpo plan` imitates a card, the card's."""
    return device if _card is None else _card.kind


# ---------------------------------------------------------------------- casts of the weight

# (storage, offset, version, dtype) of a weight → the weight, which keeps the storage its own, and its cast; None: no
# `one_cast`
_casts: dict[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None


@contextmanager
def one_cast() -> Iterator[None]:
    """Inside this `with` block, the output head's weight is cast to the dtype of its products once, not in every pass.

    The block must not be longer than one training step: a change that bypasses torch's version counter, as by
    `weight.data.add_`, would not be noticed, and the old cast would be used.
    """
    global _casts
    before, _casts = _casts, {} if _casts is None else _casts
    try:
        yield
    finally:
        _casts = before


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if weight.dtype == dtype or _casts is None:
        return weight.detach().to(dtype)
    key = (weight.untyped_storage()._cdata, weight.storage_offset(), weight._version, dtype)
    if key not in _casts:
        _casts[key] = (weight, weight.detach().to(dtype))
    return _casts[key][1]


def sorted_by_row(row_T: Tensor) -> ByRow:
    """Sorts answer tokens by the position that scores each, `row_T` [T]; the host waits for the device's numbers."""
    order_T = row_T.argsort(stable=True)
    return ByRow(order_T, row_T[order_T].numpy(force=True))


def _tiles(products: Products, by_row: ByRow) -> Iterator[tuple[slice, Tensor]]:
    """Cuts the scored positions into tiles; yields the slice of each with the indices of the answer tokens in it.

    If the logits are stored and kernels read them, all positions are one tile: no float32 copy has to be small.
    """
    positions, words = len(products.hidden_PD), len(products.weight_VD)
    rows = max(1, TILE.get(_kind(products.hidden_PD.device.type), TILE_ELSEWHERE) // words)
    if products.fused and products.kept_PV is not None:
        rows = positions
    first = 0
    for start in range(0, positions, rows):
        last = int(np.searchsorted(by_row.sorted_T, start + rows))
        yield slice(start, min(start + rows, positions)), by_row.order_T[first:last]
        first = last
