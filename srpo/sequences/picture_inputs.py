"""Pictures as a model takes them: tensors for its vision tower, and the number of token ids that they fill.

A picture is a run of equal token ids in a sequence, the image tokens; the model replaces their embeddings by features
of the picture. Equal ids do not mean equal pictures, so token ids of a context carry their pictures with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PictureInputs:
    """One picture of a prompt, for one model.

    Attributes:
        key: digest of the picture's content and of the processor; equal keys mean equal tensors.
        token: id of the image token.
        count: number of image tokens that the picture fills.
        make: function that returns the inputs of the model by name, such as `pixel_values`, for this picture alone.

    Example:
        >>> PictureInputs(b"digest", token=9, count=4) == PictureInputs(b"digest", token=9, count=4, make=dict)
        True
    """

    key: bytes
    token: int
    count: int
    make: Callable[[], Mapping[str, Tensor]] = field(default=dict, compare=False, repr=False)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Inputs of the model by name, made by `make` at each access: a data set of many pictures cannot hold them."""
        return self.make()

    def made(self) -> PictureInputs:
        """Returns a copy that holds its tensors, so that the process it is sent to need not make them."""
        return replace(self, make=partial(dict, self.tensors))


class PicturedIds(list[int]):
    """A list of the token ids of a context, which also carries the pictures that its image tokens belong to.

    Attributes:
        pictures: the pictures, in the order of the context.
    """

    def __init__(self, ids: Iterable[int], pictures: Iterable[PictureInputs]) -> None:
        super().__init__(ids)
        self.pictures = tuple(pictures)


def pictures_in(ids: Sequence[int]) -> tuple[PictureInputs, ...]:
    """Returns the pictures that a context's token ids carry (`PicturedIds`); () for ids of text alone."""
    return ids.pictures if isinstance(ids, PicturedIds) else ()


def keys_of(pictures: Sequence[PictureInputs]) -> tuple[bytes, ...]:
    """Returns the keys of pictures, which identify their contents, in order."""
    return tuple(picture.key for picture in pictures)
