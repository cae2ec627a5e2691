"""The language-model head on scored positions only: hidden states in, log-probs of answer tokens out.

The whole model runs, as its wrappers need; a hook passes only the scored positions to its head, so logits of all
positions never exist. Where the logits of the scored positions would still be large, the hook passes one position only
and the head is computed in tiles (tiles.py); logits that fit are stored, others computed again in the backward pass.
Where FSDP 2 splits the head's weight, the tiles are computed inside the head (../gathered.py).
That one position also shows whether the model scales or caps its logits after the head: the tiles must reproduce the
model's own logits there, else the model's own head is used. Within a training step that comparison is read at the end.

Axes: P scored positions, T answer tokens, V vocabulary, D hidden size, N rows, L row length.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from srpo.errors import BackendError
from srpo.model.gathered import Attached, attach, is_linear, split_by_fsdp, take
from srpo.model.packed.deferred import deferred
from srpo.model.packed.spread import watching
from srpo.model.packed.sums import wide
from srpo.model.packed.tiles import After, ByRow, Products, TiledLogps, planned_card, product_dtype, serves
from srpo.model.unwrap import core

log = logging.getLogger("srpo")

# Tiles compute the head's product once more, a third of its work; below some 250 positions of a 128k vocabulary
# (128 MiB of float32 logits) that costs more time than the memory is worth.
TILED_ABOVE = 2**25  # number of logits
KEPT_SHARE = 1 / 16  # share of the device's memory that logits stored for the backward pass may take
# Largest difference between a model's logits and the product of its head, in rounding errors of the largest logit; an
# overlooked scale or cap differs by far more.
NEAR = 8


class Scored(NamedTuple):
    """Positions of a batch at which the head runs, P of them, and the T answer tokens that are scored there.

    Attributes:
        place_P: indices of the positions in the flattened batch.
        row_T: index into `place_P` of the position at which each answer token is scored.
        token_T: id of each answer token.
        length: L, tokens of a row of the batch.
        owner_T: sequence of each answer token, as in `Forest`; needed only inside `spread.watched`, for entropies.
        by_row: the answer tokens in the order of `row_T`; None sorts them, for which the host waits for the device.
        one_row: True if the batch is one row, so that the positions are its columns.
    """

    place_P: Tensor
    row_T: Tensor
    token_T: Tensor
    length: int
    owner_T: Tensor | None = None
    by_row: ByRow | None = None
    one_row: bool = False


def answer_logps(model: nn.Module, run: Callable[..., Any], scored: Scored) -> Tensor:
    """Returns the log-prob of each of the T answer tokens, [T], float64, nats; differentiable.

    Args:
        model: a causal language model.
        scored: the positions that need logits, and the answer tokens.
        run: function that calls the model on its batch, with any keywords given to it, and returns the output.

    Raises:
        BackendError: the model does not return one row of logits for each scored position.
    """
    if is_compiled(model):  # no hook reaches a head that is traced into a compiled graph
        return _untiled_logps(_scored_rows(model, run, scored), scored)
    if split_by_fsdp(model):
        logp_T = _tiled_inside(model, run, scored)
        if logp_T is not None:
            return logp_T
    elif (after := _possible_transforms(model)) and _is_large(model, scored):
        with _through(model, scored.place_P, only_first=True) as seen:
            row_1V = run().logits.flatten(0, -2)
        if (found := _agreeing(after, seen, row_1V)) is not None:
            return _tiled_logps(seen, found, scored)
        _leave_untiled(seen.head)
    with _through(model, scored.place_P):
        logits_PV = run().logits.flatten(0, -2)
    return _untiled_logps(logits_PV, scored)


def is_compiled(model: nn.Module) -> bool:
    """True if the model's output head is inside a module compiled by `torch.compile`."""
    head = core(model).get_output_embeddings()
    return any(head in module.modules() for module in compiled_modules(model))


def compiled_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of a model that `torch.compile` has compiled, whole or as a layer."""
    kinds = ((m, getattr(m, "_compiled_call_impl", None)) for m in model.modules())
    return [m for m, call in kinds if call is not None or hasattr(m, "_orig_mod")]


def _scored_rows(model: nn.Module, run: Callable[..., Any], scored: Scored) -> Tensor:
    """Logits [P, V] of the scored positions of a compiled model, whose head no hook can give these positions alone.

    `logits_to_keep` takes columns of a batch, so the head runs on each column in which any row is scored.
    """
    if scored.one_row and "logits_to_keep" in inspect.signature(core(model).forward).parameters:
        kept: Tensor = run(logits_to_keep=scored.place_P).logits[0]  # `unique` would make a shape of its own
        return kept
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
    if (spread := watching()) is not None and scored.owner_T is not None:
        spread.add(scored.row_T, scored.owner_T, lambda rows_N: logits_PV.detach()[rows_N], logits_PV.shape[1])
    return wide(logits_PV[scored.row_T, scored.token_T]) - wide(norm_P[scored.row_T])


def _tiled_logps(seen: _HeadInput, after: After, scored: Scored) -> Tensor:
    """Log-prob of each answer token, [T], from logits computed in tiles."""
    hidden_PD, (weight_VD, bias_V) = seen.hidden_PD.to(seen.dtype), seen.weights()
    logp_T = TiledLogps.apply(hidden_PD, weight_VD, bias_V, *scored[1:3], after, _keeps_logits(seen), scored.by_row)
    if (spread := watching()) is not None and scored.owner_T is not None:
        full = torch.promote_types(seen.dtype, torch.float32)

        def logits_of(rows_N: Tensor) -> Tensor:
            with Products(hidden_PD[rows_N], weight_VD, bias_V) as products:
                return after(products.logits(slice(0, len(rows_N))).to(full))

        spread.add(scored.row_T, scored.owner_T, logits_of, len(weight_VD))
    return logp_T


def _tiled_inside(model: nn.Module, run: Callable[..., Any], scored: Scored) -> Tensor | None:
    """Log-prob of each answer token, [T], from tiles computed inside the head, where FSDP gathers its weight.

    None if the head must not be tiled, or its logits are few. The first call runs one more forward pass, to find the
    model's transform of logits. It does so in all processes, also in those with few logits, since FSDP makes processes
    wait for each other in every pass.

    Raises:
        BackendError: the model's logits are no longer what its head and configuration give. Outside `deferring` one
            process may raise it alone, and the others wait for it in their next pass.
    """
    head: Any = core(model).get_output_embeddings()
    if head not in _split:  # processes may have scored different batches on the whole model
        _split[head] = True
        _agreed.pop(head, None)
        _untiled.pop(head, None)
    after = _possible_transforms(model, gathered=True)
    if after is None:
        return None
    if head not in _agreed:
        with torch.no_grad(), _through(model, scored.place_P, only_first=True) as seen:
            row_1V = run().logits.flatten(0, -2)
        if _agreeing(after, seen, row_1V) is None:
            _leave_untiled(head)
            return None
    if not _is_large(model, scored):
        return None
    attached, known = Attached(), _agreed[head]

    def tile(seen: _HeadInput, out_1V: Tensor) -> Tensor:
        return attach(out_1V, _tiled_logps(seen, known, scored), attached)

    with _through(model, scored.place_P, only_first=True, inside=tile) as seen:
        logits = run().logits
    if _agreeing([known], seen, logits.detach().flatten(0, -2)) is None:
        raise other_logits()
    return take(logits, attached)


# ---------------------------------------------------------------------- inputs of the head


class _HeadInput:
    """Inputs of the output head in a forward pass, recorded by a hook.

    Attributes:
        head: the output head.
        hidden_PD: hidden states of the scored positions.
        dtype: dtype in which the head computes, under autocast too.
        own_1V: product of the first position with the weight, float64; None for a weight that is no plain parameter.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head: Any = head
        self.hidden_PD = torch.empty(0)
        self.dtype = torch.float32
        self.own_1V: Tensor | None = None

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Returns the weight and bias of the output head as they are stored."""
        return self.head.weight, self.head.bias


@contextmanager
def _through(
    model: nn.Module,
    place_P: Tensor,
    *,
    only_first: bool = False,
    inside: Callable[[_HeadInput, Tensor], Tensor] | None = None,
) -> Iterator[_HeadInput]:
    """Inside this `with` block, the output head gets the hidden states of the positions `place_P` alone.

    Yields a record of them.

    Args:
        only_first: True passes just the first of these positions to the head; the record still holds all.
        inside: function from the record and the head's own output to the output that replaces it; called while FSDP has
            gathered the head's weight. None replaces nothing.
    """
    seen = _HeadInput(core(model).get_output_embeddings())

    def narrow(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.hidden_PD = args[0].flatten(0, -2).index_select(0, place_P)
        kind = args[0].device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        seen.dtype = torch.get_autocast_dtype(kind) if mixed else args[0].dtype
        if not only_first:
            return (seen.hidden_PD[None], *args[1:])
        if mixed and head.weight.dtype != seen.dtype:  # autocast would cast the whole weight for this one position
            block = torch.autocast(kind, enabled=False)
            block.__enter__()
            open_blocks.append(block)
        return (seen.hidden_PD[None, :1].to(head.weight.dtype), *args[1:])

    def close(*_: object) -> None:
        while open_blocks:
            open_blocks.pop().__exit__(None, None, None)

    def computed(head: Any, args: object, out: Tensor) -> Tensor | None:
        if type(head.weight) is nn.Parameter:
            with Products(seen.hidden_PD[:1].to(seen.dtype), *seen.weights()) as products:
                seen.own_1V = wide(products.logits(slice(0, 1)))
        return None if inside is None else inside(seen, out)

    open_blocks: list[Any] = []
    hook = seen.head.register_forward_pre_hook(narrow)
    closing = seen.head.register_forward_hook(close, always_call=True)
    # Before FSDP's own hook, which frees the weight.
    measuring = seen.head.register_forward_hook(computed, prepend=True) if only_first else None
    try:
        yield seen
    finally:
        for each in (hook, closing, measuring):
            if each is not None:
                each.remove()


@contextmanager
def head_dtypes(model: nn.Module) -> Iterator[list[torch.dtype]]:
    """Inside this `with` block, each call of the model's output head adds the dtype of its output to the yielded list.

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


_untiled: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_agreed: WeakKeyDictionary[nn.Module, After] = WeakKeyDictionary()  # the transform that gave a model's logits before
_split: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # heads whose weight FSDP 2 has split


def _leave_untiled(head: nn.Module) -> None:
    """Records that the model's own head computes all logits from now on."""
    _untiled[head] = True
    log.info("srpo: the head is not tiled: the model's logits are not what its head and configuration give")


def _is_large(model: nn.Module, scored: Scored) -> bool:
    """True if the logits of all scored positions are worth tiling."""
    head: Any = core(model).get_output_embeddings()
    return len(scored.place_P) * len(head.weight) > TILED_ABOVE


def _possible_transforms(model: nn.Module, *, gathered: bool = False) -> list[After] | None:
    """Scales and caps that the model may apply to its head's logits, by its configuration; one of them is right.

    None if the head must not be computed in tiles.

    Args:
        gathered: True if the head's weight is split by FSDP, and whole only during its own forward pass.
    """
    head: Any = core(model).get_output_embeddings()
    weight: Any = getattr(head, "weight", None)
    if not is_linear(head) or head in _untiled or weight.ndim != 2:  # an adapter, …
        return None
    plain = type(weight) is nn.Parameter or planned_card() is not None  # fake tensors have a type of their own
    whole = plain and weight.untyped_storage().nbytes() >= weight.numel() * weight.element_size()
    if not (gathered or whole):  # quantised, or split
        return None
    config = core(model).config.get_text_config()
    scales = {1.0}
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        if isinstance(value := getattr(config, name, None), float | int) and value:
            scales |= {float(value), 1 / value}
    cap = getattr(config, "final_logit_softcapping", None)
    return [After(scale, limit) for limit in ([cap, None] if cap else [None]) for scale in sorted(scales)]


@torch.no_grad()
def _agreeing(candidates: list[After], seen: _HeadInput, row_1V: Tensor) -> After | None:
    """Finds the transform of logits that the model applies after its head, by the logits of one position.

    Args:
        candidates: the possible transforms.
        seen: record of the head's call.
        row_1V: the model's own logits of the first position.

    Returns:
        The candidate that gives these logits from the head's product; None if no candidate does.
    """
    if planned_card() is not None:  # a plan of memory: tensors without values
        return candidates[0]
    if seen.own_1V is None or seen.own_1V.shape != row_1V.shape:
        return None
    own_1V, row_1V = seen.own_1V, wide(row_1V)
    off = {after: (row_1V - after(own_1V)).abs().max() / after(own_1V).abs().max() for after in candidates}
    allowed = NEAR * torch.finfo(seen.dtype).eps
    if (later := deferred()) is not None and (before := _agreed.get(seen.head)) in off:
        later.add(~(off[before] <= allowed), other_logits())
        return before
    nearest = min(off, key=lambda after: off[after].item())
    if not off[nearest] <= allowed:
        return None
    _agreed[seen.head] = nearest
    return nearest


def other_logits() -> BackendError:
    """Returns the error for a model whose logits are no longer its head's product with the scale and cap found before.

    It ends a run: the check is read at the end of a training step, or of an evaluation under FSDP 2, which has used the
    wrong logits already.
    """
    what = "the model's logits are no longer what its head and configuration give, as they were in earlier batches"
    fix = "give its configuration the scale or cap: logit_scale, logits_scaling or final_logit_softcapping"
    return BackendError(what, where="the head, in this process or another one", fix=fix)


# ---------------------------------------------------------------------- logits that are stored

_announced: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _keeps_logits(seen: _HeadInput) -> bool:
    """True if the logits are to be stored for the backward pass: they fit into `KEPT_SHARE` of the device's memory.

    Otherwise, or without gradients, they are not stored.
    """
    if not (torch.is_grad_enabled() and (seen.hidden_PD.requires_grad or seen.head.weight.requires_grad)):
        return False
    dtype, device = product_dtype(seen.dtype, seen.hidden_PD.device.type), seen.hidden_PD.device
    size, room = len(seen.hidden_PD) * len(seen.head.weight) * dtype.itemsize, KEPT_SHARE * _memory_of(device)
    if serves(device, dtype):
        size *= 2  # the fused backward pass writes the slopes of all stored logits at once
    fits = size <= room
    if _announced.get(seen.head) is not fits:
        _announced[seen.head] = fits
        message = "srpo: head: %.2f GiB for logits, %.2f GiB allowed (%.3g of the memory): %s"
        way = "kept for the backward pass" if fits else "computed again in the backward pass"
        log.info(message, size / 2**30, room / 2**30, KEPT_SHARE, way)
    return fits


def _memory_of(device: torch.device) -> int:
    """Bytes of the device's memory; 0 if unknown."""
    if (card := planned_card()) is not None:
        return card.memory
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else 0
    except (ValueError, OSError, AttributeError):
        return 0
