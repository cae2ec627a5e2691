"""Protocols: the members of a tokenizer and of a prompt renderer that srpo uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from srpo.data.read import Pair, Prompt, PromptRow
from srpo.sequences.templates import RevisionTemplate

Options = Mapping[str, Any]  # variables that a chat template reads: `tools`, and any other
Context = TypeVar("Context")


class Tokenizer(Protocol):
    """Protocol of the members of a transformers tokenizer that srpo uses."""

    chat_template: Any  # the Jinja source, or None
    name_or_path: str

    @property
    def is_fast(self) -> bool:
        """True if the tokenizer can return the place of each token in its text, as only fast tokenizers can."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Token id → token, for tokens that were added to the vocabulary."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of the special tokens, such as BOS and EOS."""

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """Encodes one text or a list of texts; the result holds the token ids under `input_ids`."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the text that the token ids encode."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **options: Any) -> Any:
        """Renders a list of messages by the chat template; returns token ids, or text if `tokenize` is False."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Returns the id of a token, or the ids of a list of tokens."""

    def get_vocab(self) -> dict[str, int]:
        """Returns the whole vocabulary: token → id."""


class PromptRenderer(Protocol[Context]):
    """Protocol: makes contexts for drafts and revisions, as token ids or, for a chat server, as messages."""

    template: RevisionTemplate

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids at which generation ends."""

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[Context]:
        """Returns for each prompt the context from which the model drafts; `options` go to the chat template."""

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[Context]:
        """Returns each prompt's context from which the model revises its draft; `options` go to the chat template."""

    def answers(self, texts: Sequence[str], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Returns the token ids of each answer, its terminator included; [] for each where a chat server renders."""

    def decode(self, ids: Sequence[int], options: Options | None = None) -> str:
        """Returns the text of an answer from its token ids; `options` are those of its chat template."""

    def read(self, text: str, options: Options | None = None) -> str:
        """Returns a server's text as an answer: `<think>`, thinking and `</think>` if there are any, then content."""

    def content_of(self, answer: str) -> str:
        """Returns an answer without its thinking."""

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Checks that the model sees every part of the row.

        Raises:
            DataError, TemplateError: a part would be missing from the model's context.
        """
