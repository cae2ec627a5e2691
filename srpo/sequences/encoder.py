"""Encodes texts as token ids; a mark inside a control token, such as `<|im_end|>`, makes it plain text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from srpo.sequences.chat_template import MARK
from srpo.sequences.protocols import Tokenizer


class Encoder:
    """Encodes texts with one tokenizer, without the special tokens, such as BOS, that the tokenizer adds by default."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text.

        Texts are split at each `MARK`, which is removed, and the pieces encoded one by one. So a control token with
        `MARK` inside is encoded as letters.
        """
        if not texts:
            return []
        pieces = [text.split(MARK) for text in texts]
        flat = [piece for row in pieces for piece in row]
        encoded = iter(self._encoded(flat))
        return [next(encoded) if len(row) == 1 else [id_ for _ in row for id_ in next(encoded)] for row in pieces]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        if not self._plainly_fast:
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)[
                "input_ids"
            ]
            return ids
        self.tokenizer("", add_special_tokens=False)  # resets padding and truncation that a caller may have set
        backend: Any = self.tokenizer
        quick = backend.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in quick]

    @cached_property
    def _plainly_fast(self) -> bool:
        """True if the faster `encode_batch_fast` of the tokenizers library gives the same ids as the tokenizer itself.

        It may give others for a class of tokenizer that overrides encoding.
        """
        from transformers import PreTrainedTokenizerFast

        encode = getattr(type(self.tokenizer), "_encode_plus", None)
        return encode is not None and encode is getattr(PreTrainedTokenizerFast, "_encode_plus", None)

    @cached_property
    def text_bos(self) -> list[int]:
        """[BOS id] if the tokenizer starts plain text with it, else []; chat templates write their own BOS."""
        first: list[int] = self.tokenizer("a")["input_ids"][:1]
        return first if first and [first[0]] == self.lone_bos else []

    @property
    def lone_bos(self) -> list[int]:
        """[BOS id], or [] if the tokenizer has no BOS token."""
        bos = self.special_id("bos")
        return [] if bos is None else [bos]

    def special_id(self, name: str) -> int | None:
        """Returns the tokenizer's id of the special token `name`, "eos" or "bos"; None without one."""
        found: int | None = getattr(self.tokenizer, f"{name}_token_id", None)
        return found
