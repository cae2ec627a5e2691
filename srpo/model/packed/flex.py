"""FlexAttention over a forest: one fused kernel, with a block mask that skips empty tiles.

For CUDA, where path attention's masked calls would leave the fastest kernels. On a CPU FlexAttention has no backward
pass, so there it scores and does not train.

Axes: S packed tokens, Q query blocks, K key blocks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from srpo.errors import BackendError
from srpo.model.packed.attention import served_forest, why_not_path
from srpo.model.packed.forest import Forest
from srpo.model.unwrap import core, device_of

BLOCK = 128  # number of tokens in a block, the size that FlexAttention's kernels are tuned for
SMALLEST_HEAD = 16  # smallest head size that a compiled kernel takes
_compiled: list[Any] = []


def why_not_flex(model: nn.Module) -> str:
    """Returns the reason why a model's configuration rules out FlexAttention along tree paths; "" if it does not."""
    config = core(model).config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size < SMALLEST_HEAD and device_of(model).type != "cpu":
        return f"its heads are of size {size}, and FlexAttention's kernels take {SMALLEST_HEAD} or more"
    return why_not_path(model)


def tree_block_mask(forest: Forest, window: int | None) -> BlockMask:
    """Returns FlexAttention's block mask for packed trees: which tiles of the S×S scores are empty, full or mixed.

    The S×S scores themselves are never formed; S is the number of packed tokens.

    `window` is a layer's sliding window in tokens, None for full attention.

    In preorder, token q sees token k exactly when k ≤ q < end[k] (and within a window W, depth[q] − depth[k] < W). So
    a tile below the diagonal has a visible pair exactly when the largest end of its keys lies beyond its first query.
    It is full when the smallest end of its keys reaches beyond its last query.
    """
    ends_S, depth_S = forest.ends_S, forest.positions_1S[0]
    tokens = len(ends_S)
    blocks = -(-tokens // BLOCK)
    first = torch.arange(blocks, device=ends_S.device) * BLOCK
    last = (first + BLOCK).clamp(max=tokens)

    def least_and_most(values_S: Tensor) -> tuple[Tensor, Tensor]:
        padded = torch.cat([values_S, values_S[-1:].expand(blocks * BLOCK - tokens)]).view(blocks, BLOCK)
        return padded.amin(1), padded.amax(1)

    (end_min_K, end_max_K), (depth_min, depth_max) = least_and_most(ends_S), least_and_most(depth_S)
    below_QK = first[None, :] < first[:, None]
    some_QK = (below_QK & (end_max_K[None, :] > first[:, None])) | torch.eye(
        blocks, dtype=torch.bool, device=first.device
    )
    full_QK = below_QK & (end_min_K[None, :] >= last[:, None])
    if window is not None:
        some_QK &= depth_min[:, None] - depth_max[None, :] < window
        full_QK &= depth_max[:, None] - depth_min[None, :] < window
    # The diagonal is never full: padded keys of the last block would be visible. Blocks below it have no padding.
    mixed_QK = some_QK & ~full_QK

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Compiled kernels call this for the padding of the last block, too.
        q, k = query.clamp(max=tokens - 1), key.clamp(max=tokens - 1)
        seen = (key <= query) & (q < ends_S[k])
        return seen if window is None else seen & (depth_S[q] - depth_S[k] < window)

    return BlockMask.from_kv_blocks(
        *_listed(mixed_QK), *_listed(full_QK), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens)
    )


def _listed(chosen_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Turns a boolean table of key blocks per query block, [Q, K], into the lists that BlockMask takes.

    Returns the number of True blocks, [1, 1, Q], and all block indices with those of the True ones first, [1, 1, Q, K].
    """
    order_QK = chosen_QK.int().argsort(dim=1, descending=True, stable=True).int()
    return chosen_QK.sum(1, dtype=torch.int32)[None, None], order_QK[None, None]


def flex_path_attention(
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
    """Computes attention along the paths of packed trees by FlexAttention; arguments and result as in `path_attention`.

    Raises:
        BackendError: the layer asks for dropout, or for something in `unserved` such as a soft cap of its scores.
    """
    forest = served_forest(module, srpo_forest, sliding_window, unserved)
    if dropout:
        raise BackendError("FlexAttention has no dropout", where="attention_dropout", fix="use --backend path")
    masks = forest.block_masks
    if sliding_window not in masks:
        masks[sliding_window] = tree_block_mask(forest, sliding_window)
    out: Any = _kernel(query)(
        query,
        key,
        value,
        block_mask=masks[sliding_window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _kernel(query: Tensor) -> Any:
    """Returns FlexAttention's function for the device of `query`: on a GPU compiled, once for all lengths.

    On a CPU it is not compiled, which is slow and inexact.
    """
    if query.device.type == "cpu":
        return flex_attention
    if not _compiled:
        # fullgraph: an error is better than the uncompiled form, which stores all S×S scores. TRITON: below 128 tokens
        # the automatic choice is a kernel for decoding, which does not take these masks.
        compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)
        _compiled.append(partial(compiled, kernel_options={"BACKEND": "TRITON"}))
    return _compiled[0]
