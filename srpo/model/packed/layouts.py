"""The attention back-ends: four layouts of the sequences of many pairs, which give the same log-probs.

    path    each shared prefix once, attention along root-to-leaf chains (attention.py); the default
    flex    each shared prefix once, FlexAttention with a block mask (flex.py); the default on CUDA
    cache   each shared prefix once, its cache copied at every branching (cache_tree.py); forward only
    flat    each sequence in a row of its own; always exact

Every answer token is scored at its parent node, so the language-model head runs on parents of answer tokens only.

Axes: B pairs, K sequences of a tree (six for SRPO), S packed tokens, P scored parents, T answer tokens, N flat rows,
L row length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from srpo.errors import DataError
from srpo.model.packed.attention import FLEX, attending
from srpo.model.packed.cache_tree import cache_logps
from srpo.model.packed.flex import flex_path_attention
from srpo.model.packed.forest import Forest
from srpo.model.packed.head import Scored, answer_logps
from srpo.model.packed.pictures import flat_inputs, packed_inputs
from srpo.model.packed.tiles import ByRow

if TYPE_CHECKING:
    from transformers.modeling_outputs import CausalLMOutputWithPast

# Raise when a layout may round differently than before: log-probs cached on disk by older versions are then ignored.
LAYOUT_VERSION = 2

AttentionInterface.register(FLEX, flex_path_attention)


def packed_logps(model: nn.Module, forest: Forest, *, backend: str) -> Tensor:
    """Returns the log-probs [B, K] of the K answers of B trees, with all trees in one row: float64, nats, summed.

    `backend` is "path" or "flex".
    """

    def run(**options: object) -> CausalLMOutputWithPast:
        return model(input_ids=forest.ids_1S, srpo_forest=forest, use_cache=False, **inputs, **options)

    inputs = packed_inputs(model, forest)
    with attending(model, backend):
        by_row, length = ByRow(forest.order_T, forest.layout.sorted_T), forest.ids_1S.shape[1]
        scored = Scored(forest.parents_P, forest.row_T, forest.token_T, length, forest.owner_T, by_row)
        logp_T = answer_logps(model, run, scored)
    return _summed(logp_T, forest)


def _summed(logp_T: Tensor, forest: Forest) -> Tensor:
    pairs, sequences = len(forest.trees), len(forest.trees[0].answers)
    return (
        logp_T.new_zeros(pairs * sequences)
        .index_add(0, forest.owner_T.to(logp_T.device), logp_T)
        .view(pairs, sequences)
    )


def flat_logps(model: nn.Module, forest: Forest) -> Tensor:
    """Returns the log-probs [B, K] of the K answers of B trees, with each sequence in a padded row of its own.

    They are float64, nats, summed over tokens. Drafts and revisions differ in length: each kind is a batch.
    """
    sequences = [tree.unpack() for tree in forest.trees]
    columns = range(len(sequences[0]))
    batches = [columns[:2], columns[2:]] if len(columns) == 6 else [columns]
    logps = []
    for batch in batches:
        rows = [pair[k] for k in batch for pair in sequences]
        owners = [pair * len(columns) + k for k in batch for pair in range(len(sequences))]
        logps.append(_row_logps(model, rows, owners, forest.ids_1S.device).view(len(batch), len(sequences)))
    return torch.cat(logps).T


def _row_logps(
    model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]], owners: Sequence[int], device: torch.device
) -> Tensor:
    """Scores N sequences in one padded batch; returns the log-prob of each answer, [N], summed over its tokens.

    Args:
        rows: context ids and answer ids of each sequence.
        owners: index of each sequence among all of the batch's trees, for entropies (`Scored.owner_T`).
    """
    length = max(len(context) + len(answer) for context, answer in rows)
    ids_NL, mask_NL = torch.zeros(2, len(rows), length, dtype=torch.long)
    place: list[int] = []
    owner: list[int] = []
    for n, (context, answer) in enumerate(rows):
        if not context or not answer:
            raise DataError("an answer without tokens, or with nothing before it")
        ids_NL[n, : len(context) + len(answer)] = torch.tensor([*context, *answer])
        mask_NL[n, : len(context) + len(answer)] = 1
        first = n * length + len(context) - 1  # each answer token is scored at the token before it
        place += range(first, first + len(answer))
        owner += [n] * len(answer)
    ids_NL = ids_NL.to(device)
    place_T, owner_T = torch.tensor([place, owner], device=device)
    row_T, token_T = torch.arange(len(place_T), device=device), ids_NL.flatten()[place_T + 1]
    by_row = ByRow(row_T, np.arange(len(place_T)))
    scored = Scored(place_T, row_T, token_T, length, torch.tensor(owners, device=device)[owner_T], by_row)
    pictures = flat_inputs(model, [context for context, _ in rows], ids_NL)
    run = partial(model, input_ids=ids_NL, attention_mask=mask_NL.to(device), use_cache=False, **pictures)
    logp_T = answer_logps(model, run, scored)
    return logp_T.new_zeros(len(rows)).index_add(0, owner_T.to(logp_T.device), logp_T)


LAYOUTS: dict[str, Callable[[nn.Module, Forest], Tensor]] = {
    "path": partial(packed_logps, backend="path"),
    "flex": partial(packed_logps, backend="flex"),
    "cache": lambda model, forest: _summed(cache_logps(model, forest), forest),
    "flat": flat_logps,
}
