"""Computes log-probs of answer tokens from hidden states and the head's weight, tile by tile.

A tile is a block of the logits [P, V]: some words of many positions on a CPU, all words of some positions elsewhere. A
tile of few positions and all words would read the whole weight from memory for little work. The elementwise passes of a
tile work in the memory that its product was written to, and the weight is cast to the dtype of the products once a step
(`one_cast`).

Axes: P scored positions, R of them in a tile, T answer tokens, A of those scored at the rows of a tile, V vocabulary,
W words in a tile, D hidden size.
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
from srpo.model.packed.sums import wide
from srpo.model.weights.precision import has_fast_bfloat16

TILE = {"cpu": 2**23}  # logits of a tile
TILE_ELSEWHERE = 2**26  # accelerators are faster on larger products
MOST_ROWS = 2048  # positions of a tile on a CPU; with more, a tile would have too few words


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
        sorted_T: the index of each one's position, rising; on the host, as cutting tiles must not wait for a GPU.
            None looks for all answer tokens in each tile: no shape depends on the batch.
    """

    order_T: Tensor
    sorted_T: NDArray[np.int64] | None


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
        scored_T = torch.zeros_like(row_T, dtype=full)
        with Products(hidden_PD, weight_VD, bias_V, keep=keep) as products:
            # In float32 each further tile of words would add a rounding error.
            norms = torch.float64 if products.splits_words else full
            norm_P = hidden_PD.new_full((len(hidden_PD),), -torch.inf, dtype=norms)
            for rows, words, answers in _tiles(products, by_row):
                row_A, word_A, inside_A = _places(row_T[answers], token_T[answers], rows, words)
                if products.fused:
                    logits_RW = products.logits(rows, words)
                    scored_A = after(logits_RW[row_A, word_A].to(full))
                    norm_R = fused.norms(logits_RW, after.scale, after.cap or 0.0)
                else:
                    logits_RW = after(products.logits(rows, words).to(full))
                    scored_A = logits_RW[row_A, word_A]
                    # torch's logsumexp would need two more tiles of memory; minus infinity − minus infinity is nan
                    most_R1 = logits_RW.amax(1, keepdim=True).clamp_(min=torch.finfo(full).min)
                    norm_R = most_R1[:, 0] + products.minus(logits_RW, most_R1).exp_().sum(1).to(norms).log()
                scored_T[answers] = torch.where(inside_A, scored_A, scored_T[answers])
                norm_P[rows] = torch.logaddexp(norm_P[rows], norm_R.to(norms))
                del logits_RW  # before the next tile is allocated
        logp_T = wide(scored_T) - wide(norm_P[row_T])
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P, products.kept_PV)
        ctx.after, ctx.by_row = after, by_row
        return logp_T

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, row_T, token_T, norm_P, kept_PV = ctx.saved_tensors
        after, by_row, full = ctx.after, ctx.by_row, torch.promote_types(hidden_PD.dtype, torch.float32)
        norm_P = norm_P.to(full)
        grad_T = grad_T.to(full).to(norm_P.device)
        grad_P = torch.zeros_like(norm_P).index_add_(0, row_T, grad_T)
        dweight_VD = None
        dbias_V = torch.zeros_like(bias_V, dtype=full) if ctx.needs_input_grad[2] else None
        with Products(hidden_PD, weight_VD, bias_V, kept_PV=kept_PV) as products:
            summed = torch.promote_types(products.hidden_PD.dtype, torch.float32)
            dhidden_PD = torch.empty_like(products.hidden_PD) if ctx.needs_input_grad[0] else None
            if dhidden_PD is not None and products.splits_words:  # each tile adds to all positions
                dhidden_PD = torch.zeros_like(dhidden_PD, dtype=summed)
            if ctx.needs_input_grad[1] and products.splits_words:
                dweight_VD = torch.zeros_like(products.weight_VD, dtype=summed)
            slopes = _FusedSlopes(by_row, row_T, token_T, grad_T) if products.fused else None
            for rows, words, answers in _tiles(products, by_row):
                logits_RW, norms = products.logits(rows, words), (norm_P[rows], grad_P[rows])
                if slopes is not None:
                    dlogits_RW = slopes(logits_RW, *norms, rows, after)
                else:
                    row_A, word_A, inside_A = _places(row_T[answers], token_T[answers], rows, words)
                    places = (row_A, word_A, grad_T[answers] * inside_A)
                    dlogits_RW = _slopes(products, after(logits_RW.to(full)), *norms, *places, after)
                if dbias_V is not None:
                    dbias_V[words] += dlogits_RW.sum(0, dtype=full)
                dlogits_RW = dlogits_RW.to(products.hidden_PD.dtype)
                if dhidden_PD is not None and products.splits_words:
                    products.add_product(dhidden_PD[rows], dlogits_RW, products.weight_VD[words])
                elif dhidden_PD is not None:
                    torch.mm(dlogits_RW, products.weight_VD, out=dhidden_PD[rows])
                if ctx.needs_input_grad[1]:
                    total_WD = None if dweight_VD is None else dweight_VD[words]
                    total_WD = products.add_product(total_WD, dlogits_RW.T, products.hidden_PD[rows])
                    dweight_VD = total_WD if dweight_VD is None else dweight_VD
                del logits_RW, dlogits_RW
        dhidden_PD = None if dhidden_PD is None else dhidden_PD.to(hidden_PD.dtype)
        dweights = (None if d is None else d.to(weight_VD.dtype) for d in (dweight_VD, dbias_V))
        return dhidden_PD, *dweights, None, None, None, None, None


def _slopes(
    products: Products,
    logits_RW: Tensor,
    norm_R: Tensor,
    grad_R: Tensor,
    row_A: Tensor,
    word_A: Tensor,
    grad_A: Tensor,
    after: After,
) -> Tensor:
    """Returns the gradient [R, W] of a loss with respect to a tile's logits before the transform `after`.

    Args:
        logits_RW: the tile's logits after the transform; they are overwritten, unless they are stored in `products`.
        norm_R: log-sum-exp of each row.
        grad_R: sum of the gradients of the log-probs that each row scores.
        row_A, word_A, grad_A: row, id and gradient of the log-prob of each answer token scored in the tile.
    """
    slope_RW = None if after.cap is None else 1 - (logits_RW / after.cap).square()  # of cap · tanh(z / cap)
    # −softmax weighted by each position's gradient, plus each answer token's gradient at its own logit
    dlogits_RW = products.minus(logits_RW, norm_R[:, None]).exp_().mul_(-grad_R[:, None])
    dlogits_RW.index_put_((row_A, word_A), grad_A, accumulate=True)
    if slope_RW is not None:
        dlogits_RW.mul_(slope_RW)
    return dlogits_RW if after.scale == 1.0 else dlogits_RW.mul_(after.scale)


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
    """Computes the head's logits tile by tile; its `with` block switches autocast off.

    Axes: P scored positions, R of them in a tile, V vocabulary, W words in a tile, D hidden size.

    Args:
        keep: store the logits of all tiles in `kept_PV`.
        kept_PV: logits that an earlier pass stored; None computes them.

    Attributes:
        hidden_PD, weight_VD, bias_V: operands in the dtype of the products.
        kept_PV: the stored logits, before any transform; None if they are not stored.
        splits_words: True if a tile is some words of many positions, False if it is all words of some positions.
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
        self._spare_N: Tensor | None = None  # memory of one tile, allocated once: fresh pages cost as much as a pass
        kind = hidden_PD.device.type
        self.fused = serves(hidden_PD.device, dtype)
        self.splits_words = _kind(kind) == "cpu" and not self.fused
        mixed = torch.amp.is_autocast_available(kind)
        self._no_autocast: Any = torch.autocast(kind, enabled=False) if mixed else nullcontext()

    def __enter__(self) -> Products:
        self._no_autocast.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._no_autocast.__exit__(*error)

    def logits(self, rows: slice, words: slice = slice(None)) -> Tensor:
        """Returns the logits [R, W] of a tile, before any transform; the next call may overwrite them."""
        if self._given and self.kept_PV is not None:
            return self.kept_PV[rows, words]
        hidden_RD, weight_WD = self.hidden_PD[rows], self.weight_VD[words]
        out_RW = self._spare(len(hidden_RD), len(weight_WD)) if self.kept_PV is None else self.kept_PV[rows, words]
        if self.bias_V is None:
            return torch.mm(hidden_RD, weight_WD.T, out=out_RW)
        return torch.addmm(self.bias_V[words], hidden_RD, weight_WD.T, out=out_RW)

    def add_product(self, total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
        """Adds the product of two matrices to `total` in place and returns it; for None returns the product.

        Sums of 16-bit matrices are in float32.
        """
        if total is not None and left.dtype == total.dtype:
            return total.addmm_(left, right)
        product = fused.product32(left, right) if self.fused else left @ right
        product = product.to(torch.promote_types(left.dtype, torch.float32))
        return product if total is None else total.add_(product)

    def minus(self, logits_RW: Tensor, value_R1: Tensor) -> Tensor:
        """Subtracts `value_R1` from a tile's logits and returns them; in place, unless they lie in `kept_PV`."""
        if self.kept_PV is None or logits_RW.untyped_storage()._cdata != self.kept_PV.untyped_storage()._cdata:
            return logits_RW.sub_(value_R1)
        return torch.sub(logits_RW, value_R1, out=self._spare(*logits_RW.shape))

    def _spare(self, rows: int, words: int) -> Tensor:
        if self._spare_N is None:
            self._spare_N = self.hidden_PD.new_empty(rows * words)  # the first tile is the largest
        return self._spare_N[: rows * words].view(rows, words)


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
    """True if the kernels of `fused.py` compute the head's log-probs on `device` for values of `dtype`.

    Inside `srpo plan` no GPU is needed: there the answer is for the GPU that is planned.
    """
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


def _tiles(products: Products, by_row: ByRow) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cuts the logits into tiles; yields the rows and the words of each, and the answer tokens to look for in it.

    If the logits are stored and kernels read them, all positions are one tile: no float32 copy has to be small.
    """
    positions, vocabulary = len(products.hidden_PD), len(products.weight_VD)
    size = TILE.get(_kind(products.hidden_PD.device.type), TILE_ELSEWHERE)
    rows, words = max(1, size // vocabulary), vocabulary
    if products.splits_words:
        rows = min(positions, MOST_ROWS)
        words = max(1, size // max(1, rows))
    elif products.fused and products.kept_PV is not None:
        rows = positions
    first = 0
    for start in range(0, positions, rows):
        last = None if by_row.sorted_T is None else int(np.searchsorted(by_row.sorted_T, start + rows))
        here = slice(start, min(start + rows, positions))
        for word in range(0, vocabulary, words):
            yield here, slice(word, min(word + words, vocabulary)), by_row.order_T[first:last]
        first = last or 0


def _places(row_A: Tensor, token_A: Tensor, rows: slice, words: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column in a tile of each of A answer tokens, and whether both are the tile's own.

    Others get places inside the tile, since to select tokens would wait for the device.
    """
    place_A, column_A = row_A - rows.start, token_A - words.start
    here_A, word_A = (at.clamp(0, of.stop - of.start - 1) for at, of in ((place_A, rows), (column_A, words)))
    return here_A, word_A, (column_A == word_A) & (place_A == here_A)
