"""Protocols: the members of a tokenizer and of a prompt renderer that srpo uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from srpo.data.read import Pair, Prompt, PromptRow
from srpo.sequences.templates import RevisionTemplate

Options = Mapping[str, Any]  # variables that a chat template reads: `tools`, and any other
Context = TypeVar("Context")


class Tokenizer(Protocol):
    """Protocol: the members of a transformers tokenizer that srpo uses."""

    chat_template: Any  # the Jinja source, or None
    name_or_path: str

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer can return the place of each token in its text, as only fast tokenizers do."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Token id → token, for tokens that were added to the vocabulary."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of the special tokens, such as BOS and EOS."""

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """Encodes one text or a list of texts; the result holds the token ids under `input_ids`."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text that the token ids encode."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **options: Any) -> Any:
        """Renders a list of messages: token ids, or text if `tokenize` is False."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of a list of tokens."""

    def get_vocab(self) -> dict[str, int]:
        """The whole vocabulary: token → id."""


class PromptRenderer(Protocol[Context]):
    """Protocol: makes contexts for drafts and revisions, as token ids or as messages for a chat server."""

    template: RevisionTemplate

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids at which generation ends."""

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[Context]:
        """The context from which the model drafts, for each prompt."""

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[Context]:
        """The context from which the model revises, for each prompt and its draft."""

    def answers(self, texts: Sequence[str], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Token ids of each answer, its terminator included; [] for each answer where a chat server renders."""

    def decode(self, ids: Sequence[int], options: Options | None = None) -> str:
        """The text of an answer, from its token ids."""

    def read(self, text: str, options: Options | None = None) -> str:
        """A chat server's text as an answer: thinking, if any, between `<think>` and `</think>`, then the content."""

    def content_of(self, answer: str) -> str:
        """An answer without its thinking."""

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Raises a `DataError` or `TemplateError` if a part of the row would be missing from the model's context."""
