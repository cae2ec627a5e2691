"""Computes log-probs of answers from a model and trees: the one entry from a model to numbers.

backends.py settles which layout of the sequences serves the model, layouts.py runs the model on that layout, and
head.py turns the hidden states of scored positions into log-probs.

Axes: B pairs, K sequences of a tree (six for SRPO).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from srpo.maths.objective import SixLogps
from srpo.model.packed.adapter_sum import adding_by_product
from srpo.model.packed.backends import settle_backend
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.model.unwrap import device_of
from srpo.sequences.tree import PrefixTree


def six_logps(model: nn.Module, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
    """Returns the log-probs of the six answers of each pair; differentiable.

    Args:
        model: a causal language model; a PEFT model is scored with its active adapter.
        trees: one per pair, packed from six sequences, or from the first two (the other four fields are then nan); or
            a forest planted from such trees, to be scored more than once.
        backend: "path", "flex", "cache", "flat", or "auto": the first of flex (on CUDA), path and flat that serves the
            model exactly, with one warning for each that does not. The first call for a model compares its log-probs
            with flat ones on the longest trees.

    Returns:
        Six [B] tensors, float64, nats, summed over answer tokens.

    Raises:
        BackendError: the named back-end cannot serve this model exactly, or the model is given no pictures.
        DataError: an answer has no token, or no token before it.

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
    """Returns the log-probs [B, K] of the K answers in each of B trees: float64, nats, summed over tokens.

    `backend` is the way to compute them, such as "path", or "auto"; see `six_logps`.
    """
    forest = trees if isinstance(trees, Forest) else Forest.plant(trees, device_of(model))
    layout = LAYOUTS[settle_backend(model, forest.trees, backend, forest.layout.multiple)]
    with adding_by_product(model):
        return layout(model, forest)
