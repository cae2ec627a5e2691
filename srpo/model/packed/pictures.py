"""Pictures in a packed batch: which model takes them how, their order in the row, and the position ids around them.

A model replaces the embeddings of image tokens by features of its pictures, in the order of the tokens in its batch.
In preorder a picture lies where its path enters it, so a picture in the trunk is given to the model once for all
sequences of the tree, and a picture that two branches contain is given twice.

Position ids are the model's own. Where it counts time, height and width of a picture (mrope), each root-to-leaf path
is given to the model's `get_rope_index`, and every node takes the ids that it has in its flat rows.

Axes: B pairs, S packed tokens, N flat rows, L row length, X axes of a position (time, height, width).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from srpo.errors import BackendError, DataError
from srpo.model.packed.forest import Forest
from srpo.model.unwrap import core
from srpo.sequences.picture_inputs import PictureInputs, pictures_in
from srpo.sequences.tree import PrefixTree


@dataclass(frozen=True)
class Family:
    """The form in which models of one type take pictures as input.

    Attributes:
        along: input name → dimension along which the tensors of several pictures are joined; 0 for other names.
        kinds: name of the input that marks image tokens by 1 and other tokens by 0; "" if the model has none.
        counted: True if the model also takes the number of pictures of each prompt, as `batch_num_images`.
        mutual: True if the tokens of a picture see each other, later ones too; then only flat rows are exact.
    """

    along: Mapping[str, int] = field(default_factory=dict)
    kinds: str = ""
    counted: bool = False
    mutual: bool = False


_ROPE_3D = Family(kinds="mm_token_type_ids")
_TILES = Family(along={"pixel_values": 1, "pixel_attention_mask": 1})
FAMILIES = {
    "qwen2_vl": _ROPE_3D,
    "qwen2_5_vl": _ROPE_3D,
    "qwen3_vl": _ROPE_3D,
    "idefics3": _TILES,
    "smolvlm": _TILES,
    "llava": Family(),
    "llava_onevision": Family(counted=True),
    "gemma3": Family(kinds="token_type_ids", mutual=True),
}


def family_of(model: nn.Module) -> Family:
    """Returns the form in which this model takes pictures, by its `model_type`.

    Raises:
        BackendError: the type is not one of `FAMILIES`, as for a model of text.
    """
    kind = core(model).config.model_type
    if kind not in FAMILIES:
        expected = "a vision-language model of type " + ", ".join(FAMILIES)
        raise BackendError(f"models of type {kind!r} are given no pictures", where="model", expected=expected)
    return FAMILIES[kind]


def why_not_pictures(model: nn.Module, trees: Iterable[PrefixTree], backend: str) -> str:
    """Returns the reason why a back-end cannot score these trees' pictures; "" if it can, or if there are none.

    Raises:
        BackendError: no back-end can, since the model's type is not one of `FAMILIES`.
    """
    if not any(tree.pictures for tree in trees):
        return ""
    mutual = family_of(model).mutual and backend != "flat"
    if mutual:
        return "tokens of a picture see later ones of the same picture"
    return "it does not place pictures" if backend == "cache" else ""


# ---------------------------------------------------------------------- inputs of a batch


def packed_inputs(model: nn.Module, forest: Forest) -> dict[str, Tensor]:
    """Returns the keyword arguments, besides token ids, of a forward pass over a packed row.

    They are its position ids and, if it has pictures, the tensors of the pictures.
    """
    if not any(tree.pictures for tree in forest.packed):
        return {"position_ids": forest.positions_1S}
    groups = []
    for tree in forest.packed:
        found = occurrences(tree)
        alone = len(tree.pictures) == 1
        groups += [[tree.pictures[i]] for i in found] if alone else [[tree.pictures[i] for i in found]]
    return {"position_ids": model_positions(model, forest), **_joined(model, groups)}


def flat_inputs(model: nn.Module, contexts: Sequence[Sequence[int]], ids_NL: Tensor) -> dict[str, Tensor]:
    """Returns the keyword arguments with pictures of a forward pass over N padded rows; {} without pictures.

    Position ids are not among them: the model counts them itself.

    Args:
        contexts: token ids of each row's context, which carry its pictures.
        ids_NL: [N, L] token ids of the rows.
    """
    pictures = [pictures_in(context) for context in contexts]
    if not any(pictures):
        return {}
    inputs = _joined(model, pictures)
    if kinds := family_of(model).kinds:
        inputs[kinds] = (ids_NL == next(each[0].token for each in pictures if each)).int()
    return inputs


def _joined(model: nn.Module, groups: Sequence[Sequence[PictureInputs]]) -> dict[str, Tensor]:
    """Joins the tensors of all pictures by input name, in order, on the model's device and in its dtype.

    `groups` holds the pictures of each prompt.
    """
    family, inner = family_of(model), core(model)
    pictures = [picture for group in groups for picture in group]
    inputs, tensors = {}, [picture.tensors for picture in pictures]
    for name in tensors[0]:
        parts = [each[name] for each in tensors]
        joined = torch.cat(_padded(parts, dim := family.along.get(name, 0)), dim).to(inner.device)
        inputs[name] = joined.to(inner.dtype) if joined.is_floating_point() else joined
    if family.counted:
        inputs["batch_num_images"] = torch.tensor([len(group) for group in groups if group], device=inner.device)
    return inputs


def _padded(parts: list[Tensor], dim: int) -> list[Tensor]:
    """Pads tensors with zeros at their ends, so that all have one size in every dimension but `dim`."""
    sizes = [max(size) for size in zip(*(part.shape for part in parts), strict=True)]
    padded = []
    for part in parts:
        more = [0 if i == dim else size - part.shape[i] for i, size in enumerate(sizes)]
        ends = [end for extra in reversed(more) for end in (0, extra)]
        padded.append(nn.functional.pad(part, ends) if any(more) else part)
    return padded


# ---------------------------------------------------------------------- places and positions


def occurrences(tree: PrefixTree) -> list[int]:
    """Returns the pictures in the order in which the tree's packed row contains them, as indices in `tree.pictures`.

    A picture that several branches contain occurs several times.

    Raises:
        DataError: a sequence does not contain the image tokens of all pictures.
    """
    if not tree.pictures:
        return []
    is_image_S = np.array(tree.ids) == tree.pictures[0].token
    ends = list(accumulate(picture.count for picture in tree.pictures))
    begins = {end - picture.count: i for i, (end, picture) in enumerate(zip(ends, tree.pictures, strict=True))}
    before_S = np.empty(len(tree), np.int64)  # image tokens before each node on its path
    for start, stop, attach, _ in tree.chains:  # parents come before their children
        above = int(before_S[attach] + is_image_S[attach]) if attach >= 0 else 0
        before_S[start:stop] = above + np.cumsum(is_image_S[start:stop]) - is_image_S[start:stop]
    for answer in tree.answers:
        there = int(before_S[answer.leaf] + is_image_S[answer.leaf])
        if there != ends[-1]:
            raise DataError(f"a sequence has {there} image tokens and its pictures fill {ends[-1]}")
    found = [begins[before] for before in before_S[is_image_S].tolist() if before in begins]
    # A branch inside a picture would continue it away from its beginning.
    assert sum(tree.pictures[i].count for i in found) == is_image_S.sum(), "a branch inside a picture"
    return found


def model_positions(model: nn.Module, forest: Forest) -> Tensor:
    """Returns the position ids of S packed tokens as the model counts them.

    The shape is [1, S], or [3, 1, S] for a model that counts time, height and width of pictures (mrope).
    """
    inner: Any = core(model).base_model
    if not hasattr(inner, "get_rope_index"):
        return forest.positions_1S
    positions_XS = forest.positions_1S.expand(3, -1).clone()
    offset = 0
    for tree in forest.packed:
        grids = [picture.tensors["image_grid_thw"] for picture in tree.pictures]
        for leaf in sorted({answer.leaf for answer in tree.answers} if grids else ()):
            nodes = torch.tensor(tree.path(leaf), device=positions_XS.device) + offset
            ids_1L = forest.ids_1S[:, nodes]
            grid = torch.cat(grids).to(ids_1L.device)
            kinds_1L = (ids_1L == tree.pictures[0].token).int()
            own_X1L, _ = inner.get_rope_index(ids_1L, image_grid_thw=grid, mm_token_type_ids=kinds_1L)
            positions_XS[:, nodes] = own_X1L[:, 0]
        offset += len(tree)
    return positions_XS[:, None]
