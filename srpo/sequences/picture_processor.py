"""The model's own processor, asked about one picture at a time: token ids in its place, and tensors for its tower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.data.pictures import Picture, pictures_of
from srpo.data.values import Prompt
from srpo.errors import DataError, TemplateError
from srpo.sequences.chat_template import MARK
from srpo.sequences.picture_inputs import PicturedIds, PictureInputs

if TYPE_CHECKING:
    from torch import Tensor

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "batch_num_images")
# Processors that prepare a picture differently beside others, so that pictures cannot be prepared one by one.
_ONE_A_PROMPT = ("LlavaOnevisionProcessor",)
# Processors whose image tokens see later tokens of their picture, and whose ids depend on the text around.
_REFUSED = ("Gemma3Processor",)
_TEMPLATE = "use the model's; if only chat_template.json holds it, save the template it contains as chat_template.jinja"
KEPT = 16  # pictures whose tensors are kept: a prompt's contexts are rendered one after the other
LONG_KEPT = 4096  # pictures whose token ids are kept


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, with the processor's chat template if it has none of its own."""
    tokenizer = processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    return tokenizer


class PictureProcessor:
    """Wraps a transformers processor of pictures and text.

    Args:
        source: the processor, or a function that loads it at the first picture.

    Example:
        >>> PictureProcessor(None).expanded([1, 2], "<bos>Hi", "Hi")
        [1, 2]
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._compared = False
        self._keep()

    def _keep(self) -> None:
        self._prepared = lru_cache(KEPT)(self._prepare)
        self._ids = lru_cache(LONG_KEPT)(lambda picture: self._prepared(picture)[0])

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the kept pictures, which another process makes again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_prepared", "_ids")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep()

    @cached_property
    def _made(self) -> Any:
        given = self._source
        return given() if callable(given) and not hasattr(given, "decode") else given  # processors are callable, too

    @cached_property
    def processor(self) -> Any:
        """The processor, loaded now if it was not.

        Raises:
            DataError: there is none: a text model cannot be shown pictures.
        """
        if not hasattr(self._made, "image_processor"):
            problem = "the row has pictures, and the model has no processor for them; a text model cannot be shown them"
            raise DataError(problem, fix="take a vision-language model with its processor, or rows without pictures")
        return self._made

    @property
    def loaded(self) -> bool:
        """Whether a picture was met, so that the processor was needed."""
        return "processor" in self.__dict__

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Writes the processor with this tokenizer and its chat template; does nothing if no picture was met."""
        if self.loaded:
            made = copy(self.processor)
            made.tokenizer, made.chat_template = tokenizer, tokenizer.chat_template
            made.save_pretrained(folder)

    @cached_property
    def placeholder(self) -> int:
        """Id of the token that a chat template writes for a picture."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self._placeholder_text))

    @property
    def _placeholder_text(self) -> str:
        return str(self.processor.image_token)

    @cached_property
    def _fingerprint(self) -> bytes:
        made = self.processor
        about = [type(made).__name__, made.image_processor.to_dict(), getattr(made, "image_seq_len", None)]
        return json.dumps(about, sort_keys=True, default=str).encode()

    def expect_served(self, prompt: Prompt, where: str, *, chat: bool) -> None:
        """Checks that the model can be shown a prompt's pictures; `where` is the row's place in errors.

        Raises:
            DataError: there is no processor or no chat template, or the processor refuses a picture.
        """
        if not (pictures := pictures_of(prompt)):
            return
        try:
            kind = type(self.processor).__name__
            if kind in _REFUSED:
                raise DataError(f"pictures of {kind} are not supported", fix="take another family of docs/pictures.md")
            if not chat:
                raise DataError("pictures need a chat template, and none is used", fix=_TEMPLATE)
            if len(pictures) > 1 and kind in _ONE_A_PROMPT:
                raise DataError(f"{len(pictures)} pictures in a prompt; {kind} is served one")
            for picture in pictures:
                self._ids(picture)
        except DataError as error:
            raise DataError(error.what, where=where, expected=error.expected, fix=error.fix) from None

    def expanded(self, ids: list[int], text: str, prompt: Prompt) -> list[int]:
        """The token ids of a context, each placeholder replaced by the ids of its picture; a context without is as is.

        The first context with pictures is compared with that which the processor itself makes of the context's text.

        Raises:
            TemplateError: the chat template does not write one placeholder a picture, or the processor makes other ids.
        """
        pictures = pictures_of(prompt)
        if not pictures:
            return ids
        if ids.count(self.placeholder) != len(pictures):
            problem = f"the chat template writes {ids.count(self.placeholder)} places for {len(pictures)} pictures"
            raise TemplateError(problem, expected=f"one {self._placeholder_text} a picture")
        left, found = iter(pictures), list[int]()
        for token in ids:
            found += self._ids(next(left)) if token == self.placeholder else [token]
        self._expect_same(found, text, pictures)
        return PicturedIds(found, self.inputs(pictures))

    def _expect_same(self, ids: list[int], text: str, pictures: Sequence[Picture]) -> None:
        if self._compared or MARK in text:  # the processor would read the user's control tokens as such
            return
        images = [picture.image() for picture in pictures]
        theirs = self.processor(text=[text], images=[images], add_special_tokens=False)["input_ids"]
        if list(theirs[0]) != list(ids):
            problem = f"{type(self.processor).__name__} makes other token ids of a prompt with pictures"
            raise TemplateError(problem, where="processor", expected="ids that do not depend on the text around")
        self._compared = True

    def keys(self, pictures: Sequence[Picture]) -> list[bytes]:
        """`PictureInputs.key` of each picture, which no picture is opened for."""
        return [hashlib.sha256(each.sha256.encode() + self._fingerprint).digest() for each in pictures]

    def inputs(self, pictures: Sequence[Picture]) -> tuple[PictureInputs, ...]:
        """Pictures as the model takes them; their tensors are made when they are first read."""
        found = []
        for picture, key in zip(pictures, self.keys(pictures), strict=True):
            count = self._ids(picture).count(self.placeholder)
            found.append(PictureInputs(key, self.placeholder, count, partial(self._tensors, picture)))
        return tuple(found)

    def _tensors(self, picture: Picture) -> dict[str, Tensor]:
        return self._prepared(picture)[1]

    def _prepare(self, picture: Picture) -> tuple[list[int], dict[str, Tensor]]:
        """Token ids in the place of a picture, and its tensors."""
        try:
            made = self.processor(
                text=[self._placeholder_text], images=[[picture.image()]], return_tensors="pt", add_special_tokens=False
            )
        except (ValueError, ZeroDivisionError) as error:  # as of a picture one pixel high
            name = picture.path or picture.sha256[:12]
            raise DataError(f"the processor refuses the picture {name}: {str(error).splitlines()[0]}") from None
        return made["input_ids"][0].tolist(), {name: made[name] for name in made if name not in _OF_TEXT}
