"""Scores a tree of sequences with the model's own cache, for layers that carry a state instead of attending.

Convolutions and linear attention cannot follow paths, but their cache holds the whole state after a prefix. So the tree
is walked depth-first in segments between its branchings; at each branching the cache is copied, and every branch goes
on from the copy. States are updated in place, so there is no gradient: this back-end scores the reference and the
confidence, and does not train.

Axes: B pairs, K sequences of a tree, S packed tokens, P scored parents, T answer tokens.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from srpo.model.packed.forest import Forest
from srpo.model.packed.head import Scored, answer_logps
from srpo.model.packed.sums import device_of_sums
from srpo.model.unwrap import core
from srpo.sequences.tree import PrefixTree

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

Segment = tuple[int, int, int]  # first node, one past the last node, index of the parent segment (−1 for a root)


def cache_logps(model: nn.Module, forest: Forest) -> Tensor:
    """Returns the log-probs of a batch's T answer tokens, [T], float64, nats, without gradients.

    Each shared prefix is computed once, and its key-value cache is copied for every branch; see the module.
    """
    logp_T = torch.zeros(len(forest.row_T), dtype=torch.float64, device=device_of_sums(forest.ids_1S.device))
    offset = 0
    with torch.no_grad():
        for tree in forest.packed:
            _walk(model, forest, tree, offset, logp_T)
            offset += len(tree)
    return logp_T


def _walk(model: nn.Module, forest: Forest, tree: PrefixTree, offset: int, logp_T: Tensor) -> None:
    from transformers import DynamicCache

    found = segments(tree)
    children = [sum(parent == n for _, _, parent in found) for n in range(len(found))]
    left: dict[int, DynamicCache] = {}  # cache after each segment, as long as a branch still starts from it
    for n, (start, stop, parent) in enumerate(found):
        if parent < 0:
            cache = DynamicCache(config=core(model).config.get_text_config())
        else:
            children[parent] -= 1
            cache = copy.deepcopy(left[parent]) if children[parent] else left.pop(parent)
        _score(model, forest, slice(start + offset, stop + offset), cache, logp_T)
        if children[n]:
            left[n] = cache


def segments(tree: PrefixTree) -> list[Segment]:
    """Cuts a tree into segments: runs of nodes without a branching inside.

    Returns (first node, one past the last node, index of the segment that it continues or −1) for each segment, parents
    before children.
    """
    branchings = sorted({chain.attach for chain in tree.chains if chain.attach >= 0})
    found: list[Segment] = []
    ends: dict[int, int] = {-1: -1}  # last node of a segment → the segment
    for chain in tree.chains:
        start, hangs = chain.start, chain.attach
        for stop in [*(node + 1 for node in branchings if chain.start <= node < chain.stop - 1), chain.stop]:
            found.append((start, stop, ends[hangs]))
            ends[stop - 1] = len(found) - 1
            start, hangs = stop, stop - 1
    return found


def _score(model: nn.Module, forest: Forest, nodes: slice, cache: DynamicCache, logp_T: Tensor) -> None:
    """Runs the model on one segment of a tree, `nodes`, and writes the log-probs that it scores to `logp_T`.

    `cache` holds the prefix of the segment, and the segment as well afterwards.
    """
    inside_P = (forest.parents_P >= nodes.start) & (forest.parents_P < nodes.stop)
    answers = inside_P[forest.row_T].nonzero()[:, 0]
    rank_P = inside_P.cumsum(0) - 1
    scored = Scored(
        place_P=forest.parents_P[inside_P] - nodes.start,
        row_T=rank_P[forest.row_T[answers]],
        token_T=forest.token_T[answers],
        length=nodes.stop - nodes.start,
        owner_T=forest.owner_T[answers],
    )

    def run(**options: object) -> CausalLMOutputWithPast:
        ids_1S, positions_1S = forest.ids_1S[:, nodes], forest.positions_1S[:, nodes]
        inputs = {"input_ids": ids_1S, "position_ids": positions_1S, "past_key_values": cache}
        return model(**inputs, use_cache=True, **options)

    logp_T[answers.to(logp_T.device)] = answer_logps(model, run, scored)


def why_not_cache(model: nn.Module) -> str:
    """Returns the reason why a model cannot score trees with copies of its cache; "" if it can."""
    if "past_key_values" not in inspect.signature(core(model).forward).parameters:
        return "its state does not pass through past_key_values"
    return ""
