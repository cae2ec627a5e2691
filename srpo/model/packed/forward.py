"""Model + trees → log-probs: the one door from a model to numbers.

What is behind it: backends.py settles which layout of the sequences serves the model, layouts.py lays them before it,
head.py turns hidden states of scored positions into log-probs.

Axes: B pairs, K sequences of a tree (six for SRPO).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from srpo.maths.objective import SixLogps
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.sequences.tree import PrefixTree


def six_logps(model: nn.Module, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
    """Log-probs of the six answers of each pair; differentiable.

    Args:
        model: a causal language model; a PEFT model is scored with whatever adapter is active.
        trees: one per pair, packed from six sequences, or from the first two, which leaves the other fields nan; or
            a forest planted from them, to be scored more than once.
        backend: "path", "flat", or "auto": path where the model can serve it, flat otherwise, saying so once. The
            first call for a model compares the two on its longest trees.

    Returns:
        Six [B] tensors, float64, nats, summed over answer tokens.

    Raises:
        BackendError: the named back-end cannot serve this model exactly.
        DataError: an answer has no token, or nothing stands before its first.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                    num_attention_heads=2)
        >>> tree = PrefixTree.pack([([1], [2]), ([1], [3]), *[([1, 2, 9], [2]), ([1, 2, 9], [3])] * 2])
        >>> six_logps(LlamaForCausalLM(tiny), [tree]).w.shape
        torch.Size([1])
    """
    logps_BK = sequence_logps(model, trees, backend)
    columns = list(logps_BK.unbind(1))
    missing = [torch.full_like(columns[0], float("nan"))] * (6 - len(columns))
    return SixLogps(*columns, *missing)


def sequence_logps(model: nn.Module, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> Tensor:
    """[B, K] summed log-probs of the K answers of each tree, float64, nats; `six_logps` without the names."""
    forest = trees if isinstance(trees, Forest) else Forest.plant(trees, next(model.parameters()).device)
    return LAYOUTS[settle_backend(model, forest.trees, backend)](model, forest)
