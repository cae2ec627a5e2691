"""Attention in which every token follows its own path to the root of its tree.

Path attention is an ordinary scaled-dot-product attention per group of chains (see forest.py): the chains' tokens are
the queries, the paths from the root to them the keys. No S×S mask exists, every layer keeps its own sliding window, and
the cost of many pairs adds up instead of multiplying. Nothing of the model is patched: it is handed ids, positions and
a plan, through the attention interface it already has.

Axes: S packed tokens, C chains in a group, Q queries, K keys, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from srpo.errors import BackendError
from srpo.model.packed.forest import Forest
from srpo.model.unwrap import core
from srpo.model.weights.architecture import TOWERS

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
    **unserved: object,
) -> tuple[Tensor, None]:
    """Computes attention along root-to-leaf paths of packed trees; a function for transformers' attention interface.

    Args:
        query: [1, H, S, D]; `key` and `value` are [1, H', S, D] with H a multiple of H'.
        sliding_window: the layer's own window in tokens, None for full attention.
        srpo_forest: the packed trees with their attention plan, a keyword that the model's forward passes on.
        unserved: further keywords of the layer; one that changes the result raises BackendError.

    Returns:
        Outputs [1, S, H, D]; attention weights are never formed.

    Raises:
        BackendError: the layer needs a feature that path attention cannot compute exactly.
    """
    forest = served_forest(module, srpo_forest, sliding_window, unserved)
    rows = [t.squeeze(0).transpose(0, 1) for t in (query, key, value)]  # [S, H, D], as the projections left them
    outputs = []
    for group in forest.groups:
        places = (group.queries_CQ, group.keys_CK, group.keys_CK)
        query_CHQD, key_CHKD, value_CHKD = (_chains(row, place) for row, place in zip(rows, places, strict=True))
        window = sliding_window if sliding_window and sliding_window < group.keys_CK.shape[1] else None
        causal = group.causal and window is None
        # On CUDA, no fused kernel takes a mask and shares key heads: enable_gqa would fall back to the kernel that
        # stores all the scores.
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
    return torch.cat(outputs).index_select(0, forest.place_S)[None], None


def _chains(rows_SHD: Tensor, places: Tensor) -> Tensor:
    """Gathers the queries, keys or values of C chains, [C, H, places, D], from `rows_SHD`, those of all packed tokens.

    `places`, [C, queries or keys], holds packed indices.

    `index_select` copies whole rows; the gradient of plain indexing goes element by element.
    """
    return rows_SHD.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def served_forest(
    module: nn.Module, forest: Forest | None, window: int | None, unserved: Mapping[str, object]
) -> Forest:
    """Returns the forest (packed trees) that reached an attention layer, after a check that the layer can be served.

    Args:
        module: the attention layer.
        forest: the forest that the model passed on; None if it did not.
        window: the layer's sliding window in tokens; None for full attention.
        unserved: further keywords of the layer, some of which path attention cannot serve exactly.

    Raises:
        BackendError: the forest did not arrive, or the layer needs more than queries, keys, values and a window.
    """
    if forest is None:
        raise BackendError("the model did not pass the plan to its attention layers", where=type(module).__name__)
    for name in ("softcap", "s_aux", "position_bias"):
        if unserved.get(name) is not None:
            raise BackendError(f"attention with {name} has no exact path form", where=type(module).__name__)
    layer: Any = module
    kinds = getattr(layer.config, "layer_types", None)
    if kinds and kinds[layer.layer_idx] == "sliding_attention" and window is None:
        raise BackendError("the layer does not name its window", where=f"layer {layer.layer_idx}")
    return forest


AttentionInterface.register(NAME, path_attention)


def leave_attention_uncompiled() -> None:
    """Excludes the packed attention functions from `torch.compile`, for every model from now on.

    A compiled graph that contains one is traced again for every new number of groups of chains, batch after batch. The
    kernel of FlexAttention is still compiled, by itself.
    """
    for name in (NAME, FLEX):
        attend: Any = AttentionInterface()[name]
        if not getattr(attend, "_torchdynamo_disable", False):
            AttentionInterface.register(name, torch.compiler.disable(attend))


_SERVED_LAYERS = {"full_attention", "sliding_attention"}


def why_not_path(model: nn.Module) -> str:
    """Returns the reason why a model's configuration rules out attention along paths of a tree; "" if it does not.

    "" does not prove that path attention is exact: the self-check on the first batch decides.
    """
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
    """Inside this `with` block, the language model uses the attention function registered in transformers as `name`.

    A vision tower keeps its attention: it attends within pictures, not along paths of a tree.

    Under activation checkpointing the layers run again in the backward pass, so the block must contain that pass too.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "to_dict")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    towers = {id(getattr(core(model).config, name, None)) for name in TOWERS}
    for config in configs.values():
        config._attn_implementation = name
    for key in towers & configs.keys():  # after the models around them, which pass the name on to their parts
        configs[key]._attn_implementation = before[key]
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


INTERFACES = {"path": NAME, "flex": FLEX}  # back-end → its name in transformers' attention interface
_held: set[int] = set()  # ids of models inside a `serving` block


@contextmanager
def serving(model: nn.Module, backend: str) -> Iterator[None]:
    """Inside this `with` block, which holds forward *and* backward pass, the model attends along the paths of trees.

    Under activation checkpointing the layers run again in the backward pass, so that pass needs the same attention. For
    a `backend` other than "path" and "flex" the block changes nothing.
    """
    if backend in INTERFACES:
        with following_paths(model, INTERFACES[backend]):
            _held.add(id(core(model)))
            try:
                yield
            finally:
                _held.discard(id(core(model)))
    else:
        yield


@contextmanager
def attending(model: nn.Module, backend: str) -> Iterator[None]:
    """Inside this `with` block, which holds a forward pass alone, the model attends along the paths of trees.

    Does nothing inside a `serving` block.

    Args:
        backend: "path" or "flex".

    Raises:
        BackendError: activation checkpointing would run layers again after the block, without packed attention.
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
    with following_paths(model, INTERFACES[backend]):
        yield


def checkpoints_activations(model: nn.Module) -> bool:
    """True if activation checkpointing is on, by which layers run again in the backward pass, without a cache."""
    return any(getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules())
