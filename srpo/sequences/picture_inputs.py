"""Pictures as a model takes them: tensors for its vision tower, and the number of token ids that they fill.

A picture is a run of equal token ids in a sequence, the image tokens; the model replaces their embeddings by features
of the picture. Equal ids do not mean equal pictures, so a prefix tree knows its pictures besides its ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PictureInputs:
    """One picture of a prompt, made ready for one model.

    Attributes:
        key: digest of the picture's content and of the processor; equal keys mean equal tensors.
        token: id of the image token.
        count: number of image tokens that the picture fills.
        tensors: inputs of the model by name, such as `pixel_values`, for this picture alone.

    Example:
        >>> PictureInputs(b"digest", token=9, count=4) == PictureInputs(b"digest", token=9, count=4, tensors={})
        True
    """

    key: bytes
    token: int
    count: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


def keys_of(pictures: Sequence[PictureInputs]) -> tuple[bytes, ...]:
    """Returns the keys of pictures, which identify their contents, in order."""
    return tuple(picture.key for picture in pictures)
