"""Attention in which every token follows its own path to the root of its tree.

Path attention is an ordinary scaled-dot-product attention per group of chains (see forest.py): the chains' tokens are
the queries, the paths from the root to them the keys. No S×S mask exists, every layer keeps its own sliding window, and
the cost of many pairs adds up instead of multiplying. Nothing of the model is patched: it is handed ids, positions and
a plan, through the attention interface it already has.

Axes: S packed tokens, C chains in a group, Q queries, K keys, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from srpo.errors import BackendError
from srpo.model.packed.forest import Forest

NAME = "srpo_path"
FLEX = "srpo_flex"


def path_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    srpo_forest: Forest | None = None,
    **unserved: Any,
) -> tuple[Tensor, None]:
    """Attention over a forest, for transformers' attention interface.

    Args:
        query: [1, H, S, D]; key and value [1, H', S, D] with H a multiple of H'.
        sliding_window: the layer's own window in tokens, None for full attention.
        srpo_forest: the plan; the model's forward passes it through.

    Returns:
        [1, S, H, D] and no weights.

    Raises:
        BackendError: the layer asks for something a path cannot serve exactly.
    """
    if srpo_forest is None:
        raise BackendError("the model did not pass the plan to its attention layers", where=type(module).__name__)
    refuse_unserved(module, sliding_window, unserved)
    rows = [t.squeeze(0).transpose(0, 1) for t in (query, key, value)]  # [S, H, D], as the projections left them
    outputs = []
    for group in srpo_forest.groups:
        places = (group.queries_CQ, group.keys_CK, group.keys_CK)
        query_CHQD, key_CHKD, value_CHKD = (_chains(row, place) for row, place in zip(rows, places, strict=True))
        window = sliding_window if sliding_window and sliding_window < group.keys_CK.shape[1] else None
        causal = group.causal and window is None
        # Fused kernels share a key head among its query heads by themselves; on CUDA those that take a mask do not,
        # and enable_gqa would then fall back to one that holds all the scores.
        repeats = query.shape[1] // key.shape[1]
        shares = repeats > 1 and (causal or query.device.type == "cpu")
        if repeats > 1 and not shares:
            key_CHKD, value_CHKD = (t.repeat_interleave(repeats, 1) for t in (key_CHKD, value_CHKD))
        out_CHQD = F.scaled_dot_product_attention(
            query_CHQD,
            key_CHKD,
            value_CHKD,
            attn_mask=None if causal else group.mask(window),
            is_causal=causal,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=shares,
        )
        outputs.append(out_CHQD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, srpo_forest.place_S)[None], None


def _chains(rows_SHD: Tensor, places: Tensor) -> Tensor:
    """[C, H, places of a chain, D]. Selected as whole rows: indexing would scatter its gradient element by element."""
    return rows_SHD.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def refuse_unserved(module: Any, window: int | None, unserved: dict[str, Any]) -> None:
    """Raises BackendError for what an attention layer asks for beyond queries, keys, values and a window."""
    for name in ("softcap", "s_aux", "position_bias"):
        if unserved.get(name) is not None:
            raise BackendError(f"attention with {name} has no exact path form", where=type(module).__name__)
    kinds = getattr(module.config, "layer_types", None)
    if kinds and kinds[module.layer_idx] == "sliding_attention" and window is None:
        raise BackendError("the layer does not name its window", where=f"layer {module.layer_idx}")


AttentionInterface.register(NAME, path_attention)

_SERVED_LAYERS = {"full_attention", "sliding_attention"}


def why_not_path(model: nn.Module) -> str:
    """Why this model's attention cannot follow paths, as far as its configuration tells; empty when nothing speaks
    against it. The self-check on the first batch decides."""
    causal_lm = core(model)
    config = causal_lm.config.get_text_config()
    if not getattr(causal_lm, "_supports_attention_backend", False):
        return "it has no exchangeable attention"
    if getattr(causal_lm, "_is_stateful", False) or config.is_encoder_decoder:
        return "it is not a causal transformer without state"
    other = set(getattr(config, "layer_types", None) or ()) - _SERVED_LAYERS
    if other:
        return "it has layers of kind " + ", ".join(sorted(other))
    for name in ("attn_logit_softcapping", "attention_chunk_size"):
        if getattr(config, name, None):
            return f"its attention uses {name}"
    return ""


@contextmanager
def following_paths(model: nn.Module, name: str = NAME) -> Iterator[None]:
    """The model attends over forests inside, and as before outside.

    Activation checkpointing runs the layers again during the backward pass, so that pass belongs inside, too.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "to_dict")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = name
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


_FOLLOWS = {"path": NAME, "flex": FLEX}
_held: set[int] = set()


@contextmanager
def serving(model: nn.Module, backend: str) -> Iterator[None]:
    """Holds the model's attention in place over a forward *and* its backward, as activation checkpointing needs."""
    if backend in _FOLLOWS:
        with following_paths(model, _FOLLOWS[backend]):
            _held.add(id(core(model)))
            try:
                yield
            finally:
                _held.discard(id(core(model)))
    else:
        yield


@contextmanager
def attending(model: nn.Module, backend: str) -> Iterator[None]:
    """The model follows paths inside; for a forward alone.

    Raises:
        BackendError: layers would be run again after it, in a plain row, silently wrong.
    """
    if id(core(model)) in _held:
        yield
        return
    if checkpoints_activations(model) and torch.is_grad_enabled():
        held = f"with srpo.model.packed.attention.serving(model, {backend!r})"
        fix = f"wrap forward and backward in `{held}`, as SRPOTrainer does"
        raise BackendError(
            "activation checkpointing recomputes layers after path attention has been taken down", fix=fix
        )
    with following_paths(model, _FOLLOWS[backend]):
        yield


def checkpoints_activations(model: nn.Module) -> bool:
    """Some layer would be run again in a backward pass; such a layer also drops the cache it is given."""
    return any(getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules())


def core(model: nn.Module) -> Any:
    """The transformers model inside wrappers (DDP, torch.compile, an adapter)."""
    inner: Any = model
    while wrapped := next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None):
        inner = wrapped
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner
