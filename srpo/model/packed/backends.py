"""Chooses the attention back-end that serves a model exactly, by comparing log-probs on the first batch of a run.

The model's configuration is read first. If it allows the back-end, packed log-probs must equal flat ones up to
rounding. Otherwise "auto" falls back with a warning, to flat in the end, and a back-end chosen by name is an error.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from time import monotonic
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.compiler import set_stance

from srpo.errors import BackendError
from srpo.model.packed.attention import checkpoints_activations, why_not_path
from srpo.model.packed.cache_tree import why_not_cache
from srpo.model.packed.flex import why_not_flex
from srpo.model.packed.forest import Forest
from srpo.model.packed.head import compiled_modules, head_dtypes, is_compiled
from srpo.model.packed.layouts import LAYOUTS, flat_logps
from srpo.model.packed.pictures import why_not_pictures
from srpo.model.packed.spread import unwatched
from srpo.model.unwrap import core, device_of
from srpo.progress import remark_detail
from srpo.sequences.tree import PrefixTree

BACKENDS = ("auto", *LAYOUTS)
log = logging.getLogger("srpo")

# Difference that rounding explains between two exact layouts of a sequence, in nats per square root of answer token:
# rounding grows like a random walk. A single wrong mask bit costs whole nats.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
CHECKED_TREES = 4

_settled: WeakKeyDictionary[nn.Module, dict[tuple[bool, int | None], dict[str, str]]] = WeakKeyDictionary()


def settle_backend(
    model: nn.Module, trees: Sequence[PrefixTree], backend: str = "auto", multiple: int | None = None
) -> str:
    """Returns the attention back-end for a model, "path", "flex", "cache" or "flat", after a check that it is exact.

    The first call for a model compares the back-end's log-probs on `trees` with those of separate sequences.

    Args:
        backend: a back-end by name, which is returned, or "auto", which chooses one and falls back to "flat".
        multiple: the number whose multiples batches are padded to (`Forest.plant`); None for no padding.

    Raises:
        BackendError: the back-end chosen by name cannot serve the model exactly, the name is unknown, or the trees have
            pictures and the model's type is not one that srpo gives pictures to.
    """
    if backend not in BACKENDS:
        raise BackendError(f"no back-end {backend!r}", where="backend", expected="one of " + ", ".join(BACKENDS))
    _refuse_for_all(model)
    if backend != "flat" and (why := _why_not_here(model, backend)):
        raise _unserved(backend, why)
    why_not_pictures(model, trees, "flat")
    # Text alone does not show that pictures are placed right, so a model is checked again at its first pictures.
    kind = any(tree.pictures for tree in trees), multiple
    known = _settled.setdefault(core(model), {}).setdefault(kind, {})
    if backend not in known:
        known[backend] = "flat" if backend == "flat" else _packed_or_flat(model, trees, backend, multiple)
        known[known[backend]] = known[backend]  # the choice of "auto" needs no second check by name
    return known[backend]


def _refuse_for_all(model: nn.Module) -> None:
    """Raises BackendError for a model that no back-end can score."""
    inner = core(model)
    if inner.config.is_encoder_decoder:
        fix = "srpo trains causal language models"
        raise BackendError("an encoder with a decoder has no prefixes to share", where=type(inner).__name__, fix=fix)
    # Prompt tuning inserts tokens before the input, so every answer would be scored that many positions too early.
    config = getattr(getattr(model, "module", model), "active_peft_config", None)
    if config is not None and config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
        raise BackendError(f"no back-end scores a model under {config.peft_type.value}", where="model", fix="use LoRA")


_TITLES = {"path": "path attention", "flex": "FlexAttention", "cache": "the cache tree"}
_WHY_NOT = {"path": why_not_path, "flex": why_not_flex, "cache": why_not_cache}


def _why_not_here(model: nn.Module, backend: str) -> str:
    """Reason why a back-end cannot run now, given the model's device and mode, and whether gradients are on.

    "" if it can run.
    """
    if backend == "cache" and torch.is_grad_enabled():
        return "it has no backward pass, and serves scoring alone"
    if backend == "cache" and checkpoints_activations(model):
        return "under activation checkpointing, layers in training mode drop their cache; score in eval mode"
    if backend == "flex" and torch.is_grad_enabled() and device_of(model).type == "cpu":
        return "it has no backward pass on a CPU"
    return ""


def _unserved(backend: str, why: str) -> BackendError:
    fix = "use --backend flat, or auto to fall back by itself"
    return BackendError(f"{_TITLES[backend]} cannot serve this model: {why}", fix=fix)


# Back-ends that "auto" tries before flat, by type of device. On CUDA path's masked calls leave the fastest kernels, and
# real pairs make 17 to 24 groups of chains a batch, each with launches of its own in every layer.
PREFERRED = {"cuda": ("flex", "path")}
PREFERRED_ELSEWHERE = ("path",)


def _packed_or_flat(model: nn.Module, trees: Sequence[PrefixTree], asked: str, multiple: int | None) -> str:
    """Returns the back-end `asked` if its log-probs are right; for "auto" the first of the preferred ones, else flat.

    A back-end that was asked for by name and scores wrongly raises BackendError.
    """
    if asked != "auto":
        try:
            # The line of the policy is enough; this one is of the reference.
            _expect_right(model, trees, asked, multiple, logging.DEBUG)
        except BackendError as problem:
            raise _unserved(asked, problem.what) from None
        return asked
    names = ["path"] if is_compiled(model) else [*PREFERRED.get(device_of(model).type, PREFERRED_ELSEWHERE)]
    for name, following in zip(names, [*names[1:], "flat"], strict=True):
        try:
            if why := _why_not_here(model, name):
                raise BackendError(why)
            _expect_right(model, trees, name, multiple, logging.INFO)
        except BackendError as problem:
            log.warning("srpo: backend %s: %s cannot serve this model: %s", following, _TITLES[name], problem.what)
        else:
            return name
    return "flat"


def _expect_right(
    model: nn.Module, trees: Sequence[PrefixTree], backend: str, multiple: int | None, level: int
) -> None:
    """Checks that a back-end's log-probs on these trees equal those of separate sequences, up to rounding.

    The log gets the largest difference and the seconds of the check, at `level`.

    Raises:
        BackendError: the back-end does not serve the model, or its kernels do not compile.
    """
    if why := _WHY_NOT[backend](model) or why_not_pictures(model, trees, backend):
        raise BackendError(why)
    began = monotonic()
    remark_detail("comparing packed log-probs with those of separate sequences")
    try:
        off, allowed = self_check(model, trees, backend, multiple)
    except RuntimeError as error:
        if backend != "flex" or isinstance(error, torch.OutOfMemoryError):
            raise
        first = str(error).strip().splitlines()[:1]
        raise BackendError(f"its kernels do not compile: {type(error).__name__}: {''.join(first)}") from error
    finally:
        remark_detail("")
    if allowed < off < float("inf") and (exact := _check_in_float32(model, trees, backend, multiple)) is not None:
        message = "srpo: %.2g nats between packed and flat log-probs are rounding of 16 bits; in float32 %.1g nats"
        log.info(message, off, exact[0])
        off, allowed = exact
    if not off <= allowed:
        raise BackendError(f"its packed log-probs differ from flat ones by {off:.2g} nats (allowed {allowed:.1g})")
    message = (
        "srpo: backend %s: packed log-probs within %.1g nats of flat ones on the first batch; the check took %.1f s"
    )
    log.log(level, message, backend, off, monotonic() - began)


def _check_in_float32(
    model: nn.Module, trees: Sequence[PrefixTree], backend: str, multiple: int | None
) -> tuple[float, float] | None:
    """Repeats the self-check in float32, after a difference in 16 bits that may come from rounding or a wrong mask.

    A family with large activations (Gemma) rounds more in 16 bits than `TOLERANCE` allows.

    Returns:
        The largest difference and the tolerance, in nats. None for a model that computes in float32 already, or is
        quantised and cannot be converted.
    """
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    device = device_of(model).type
    if getattr(core(model), "is_quantized", False) or not (half or torch.is_autocast_enabled(device)):
        return None
    exact = copy.deepcopy(model).float() if half else model
    with torch.autocast(device, enabled=False):
        return self_check(exact, trees, backend, multiple)


@torch.no_grad()
def self_check(
    model: nn.Module, trees: Sequence[PrefixTree], backend: str = "path", multiple: int | None = None
) -> tuple[float, float]:
    """Compares the log-probs of a back-end with those of separate sequences, on the longest of the trees.

    Trees with pictures are chosen before longer trees without. The caller judges the result; nothing is raised.

    Args:
        backend: name of the back-end, such as "path".
        multiple: the number whose multiples the packed trees are padded to; None for no padding.

    Returns:
        The largest difference, and the difference that rounding explains, both in nats.
    """
    chosen = sorted(trees, key=lambda tree: (bool(tree.pictures), len(tree)))[-CHECKED_TREES:]
    longest = Forest.plant(chosen, device_of(model), multiple)
    training = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw differently in the two layouts
    try:
        with unwatched(), head_dtypes(model) as dtypes:
            packed_BK = LAYOUTS[backend](model, longest)
            # A tree at a time: its rows are padded to each other, not to those of longer trees. A compiled model would
            # be traced for each of these shapes, which no later batch has.
            with set_stance("force_eager") if compiled_modules(model) else nullcontext():
                flat_BK = torch.cat([flat_logps(model, Forest.plant([tree], device_of(model))) for tree in chosen])
    finally:
        for module, mode in training.items():
            module.training = mode
    tokens = max(len(answer) for tree in longest.trees for _, answer in tree.unpack())
    return (packed_BK - flat_BK).abs().max().item(), TOLERANCE[dtypes[0]] * tokens**0.5
