"""The model's own processor, asked about one picture at a time: token ids in its place, and tensors for its tower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.data.picture import Picture
from srpo.data.pictures import pictures_of
from srpo.data.values import Prompt
from srpo.errors import DataError, TemplateError
from srpo.sequences.chat_template import MARK
from srpo.sequences.picture_inputs import PicturedIds, PictureInputs

if TYPE_CHECKING:
    from torch import Tensor

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "batch_num_images", "num_crops")
# Processors that prepare a picture differently beside others, so that pictures cannot be prepared one by one.
_ONE_A_PROMPT = ("LlavaOnevisionProcessor",)
# Processors whose image tokens have letters around them, which form one token with letters of the text.
_WITH_LETTERS = ("Gemma3Processor",)
_TEMPLATE = "use the model's; if only chat_template.json holds it, save the template it contains as chat_template.jinja"
KEPT = 16  # pictures whose tensors are kept: a prompt's contexts are rendered one after the other
LONG_KEPT = 4096  # pictures whose token ids are kept


def tokenizer_of(processor: Any) -> Any:
    """Returns the tokenizer inside a processor; sets its chat template to the processor's if it has none."""
    tokenizer = processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    return tokenizer


class PictureProcessor:
    """Turns pictures of prompts into token ids and tensors, by a model's own transformers processor.

    Args:
        source: the processor, or a function that loads it at the first picture.

    Example:
        >>> PictureProcessor(None).expanded([1, 2], "<bos>Hi", "Hi", encode=list)
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
        """State for pickling, without the cache of prepared pictures: another process prepares its own."""
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
        """The transformers processor, loaded at the first access.

        Raises:
            DataError: the model has no processor of pictures, so it cannot be shown any.
        """
        if not self.able:
            problem = "the row has pictures, and the model has no processor for them; a text model cannot be shown them"
            raise DataError(problem, fix="take a vision-language model with its processor, or rows without pictures")
        return self._made

    @property
    def able(self) -> bool:
        """Whether there is a processor of pictures, which is loaded now if it was not."""
        return hasattr(self._made, "image_processor")

    @property
    def loaded(self) -> bool:
        """True if the processor has been loaded, which happens at the first picture."""
        return "processor" in self.__dict__

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Writes the processor, with `tokenizer` and its chat template, into a folder; does nothing if not `loaded`."""
        if self.loaded:
            made = copy(self.processor)
            made.tokenizer, made.chat_template = tokenizer, tokenizer.chat_template
            made.save_pretrained(folder)

    @cached_property
    def placeholder(self) -> int:
        """Id of the token that a chat template writes for a picture."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self._placeholder_text))

    @cached_property
    def filler(self) -> int:
        """Id of the token that a picture's features replace, mostly the placeholder itself."""
        return int(self.processor.tokenizer.image_token_id) if self._with_letters else self.placeholder

    @property
    def _with_letters(self) -> bool:
        return type(self.processor).__name__ in _WITH_LETTERS

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
            if not chat:
                raise DataError("pictures need a chat template, and none is used", fix=_TEMPLATE)
            if len(pictures) > 1 and kind in _ONE_A_PROMPT:
                raise DataError(f"{len(pictures)} pictures in a prompt; {kind} is served one")
            for picture in pictures:
                self._ids(picture)
        except DataError as error:
            raise DataError(error.what, where=where, expected=error.expected, fix=error.fix) from None

    def expanded(
        self, ids: list[int], text: str, prompt: Prompt, encode: Callable[[list[str]], list[list[int]]]
    ) -> list[int]:
        """Returns a context's token ids with the placeholder of each picture replaced by the picture's image tokens.

        A context without pictures is returned unchanged. The first one with pictures is compared with the ids that the
        processor itself makes of the whole text.

        Args:
            ids: token ids of the context, with one placeholder per picture.
            text: the context as text.
            prompt: the prompt that carries the pictures.
            encode: returns the token ids of contexts; used if those around a picture depend on the text.

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
        if self._with_letters:
            (found,) = encode([text.replace(self._placeholder_text, self.processor.full_image_sequence)])
        else:
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
        """Returns the `PictureInputs.key` of each picture, a digest that identifies it; opens no picture."""
        return [hashlib.sha256(each.sha256.encode() + self._fingerprint).digest() for each in pictures]

    def inputs(self, pictures: Sequence[Picture]) -> tuple[PictureInputs, ...]:
        """Returns the pictures as inputs of the model; each one's tensors are made when they are first read."""
        found = []
        for picture, key in zip(pictures, self.keys(pictures), strict=True):
            count = self._ids(picture).count(self.filler)
            found.append(PictureInputs(key, self.filler, count, partial(self._tensors, picture)))
        return tuple(found)

    def _tensors(self, picture: Picture) -> dict[str, Tensor]:
        return self._prepared(picture)[1]

    def _prepare(self, picture: Picture) -> tuple[list[int], dict[str, Tensor]]:
        """Runs the processor on one picture; returns the token ids that it fills, and its tensors by name.

        Raises:
            DataError: the processor refuses the picture.
        """
        try:
            made = self.processor(
                text=[self._placeholder_text], images=[[picture.image()]], return_tensors="pt", add_special_tokens=False
            )
        except (ValueError, ZeroDivisionError) as error:  # as of a picture one pixel high
            name = picture.path or picture.sha256[:12]
            raise DataError(f"the processor refuses the picture {name}: {str(error).splitlines()[0]}") from None
        return made["input_ids"][0].tolist(), {name: made[name] for name in made if name not in _OF_TEXT}
