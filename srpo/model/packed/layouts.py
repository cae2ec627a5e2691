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
from srpo.model.packed.forest import Forest, rounded_up
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
        by_row = ByRow(forest.order_T, None if forest.layout.multiple else forest.layout.sorted_T)
        length = forest.ids_1S.shape[1]
        scored = Scored(forest.parents_P, forest.row_T, forest.token_T, length, forest.owner_T, by_row, one_row=True)
        logp_T = answer_logps(model, run, scored)
    return _summed(logp_T, forest)


def _summed(logp_T: Tensor, forest: Forest) -> Tensor:
    pairs, sequences = len(forest.trees), len(forest.trees[0].answers)
    summed = logp_T.new_zeros(pairs * sequences + 1).index_add(0, forest.owner_T.to(logp_T.device), logp_T)
    return summed[:-1].view(pairs, sequences)  # the last one holds padded answer tokens


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
        logps.append(_row_logps(model, rows, owners, forest).view(len(batch), len(sequences)))
    return torch.cat(logps).T


def _row_logps(
    model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]], owners: Sequence[int], forest: Forest
) -> Tensor:
    """Scores N sequences in one padded batch; returns the log-prob of each answer, [N], summed over its tokens.

    Args:
        rows: context ids and answer ids of each sequence.
        owners: index of each sequence among all of the batch's trees, for entropies (`Scored.owner_T`).
        forest: the trees, which give the device and the number whose multiples all lengths are padded to.
    """
    device, multiple = forest.ids_1S.device, forest.layout.multiple
    length = rounded_up(max(len(context) + len(answer) for context, answer in rows), multiple)
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    place: list[int] = []
    owner: list[int] = []
    for n, (context, answer) in enumerate(rows):
        if not context or not answer:
            raise DataError("an answer without tokens, or with nothing before it")
        ids[n, : len(context) + len(answer)] = [*context, *answer]
        mask[n, : len(context) + len(answer)] = 1
        first = n * length + len(context) - 1  # each answer token is scored at the token before it
        place += range(first, first + len(answer))
        owner += [n] * len(answer)
    padding = rounded_up(len(place), multiple) - len(place)  # answer tokens of a row after the last one
    place, owner = place + place[-1:] * padding, owner + [len(rows)] * padding
    owners = [*owners, len(forest.trees) * len(forest.trees[0].answers)]
    ids_NL, mask_NL = (torch.from_numpy(each).to(device) for each in (ids, mask))
    place_T, owner_T = torch.tensor([place, owner], device=device)
    row_T, token_T = torch.arange(len(place_T), device=device), ids_NL.flatten()[place_T + 1]
    by_row = ByRow(row_T, None if multiple else np.arange(len(place_T)))
    scored = Scored(place_T, row_T, token_T, length, torch.tensor(owners, device=device)[owner_T], by_row)
    pictures = flat_inputs(model, [context for context, _ in rows], ids_NL)
    run = partial(model, input_ids=ids_NL, attention_mask=mask_NL, use_cache=False, **pictures)
    logp_T = answer_logps(model, run, scored)
    return logp_T.new_zeros(len(rows) + 1).index_add(0, owner_T.to(logp_T.device), logp_T)[:-1]


LAYOUTS: dict[str, Callable[[nn.Module, Forest], Tensor]] = {
    "path": partial(packed_logps, backend="path"),
    "flex": partial(packed_logps, backend="flex"),
    "cache": lambda model, forest: _summed(cache_logps(model, forest), forest),
    "flat": flat_logps,
}
