"""The parts of a tokenizer and of a renderer that the library uses, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from srpo.data.read import Pair, Prompt, PromptRow
from srpo.sequences.templates import RevisionTemplate

Options = Mapping[str, Any]  # of a chat template: `tools`, and any other variable that it reads
Context = TypeVar("Context")


class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    chat_template: Any  # Jinja, or None
    name_or_path: str

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer maps tokens to places in the text."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id → added token."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens."""

    def __call__(self, text: Any, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """Ids of the text under `input_ids`."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> Any:
        """The text of ids."""

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **options: Any) -> Any:
        """The conversation as text, or as ids."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of each token."""

    def get_vocab(self) -> dict[str, int]:
        """Token → id."""


class PromptRenderer(Protocol[Context]):
    """Makes the contexts that a model drafts and revises from: token ids, or messages for a chat server."""

    template: RevisionTemplate

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends."""

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[Context]:
        """The context of each draft."""

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[Context]:
        """The context of each revision."""

    def answers(self, texts: Sequence[str], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Ids of each answer, its terminator included; [] where a server renders."""

    def decode(self, ids: Sequence[int], options: Options | None = None) -> str:
        """The text of an answer's ids."""

    def read(self, text: str, options: Options | None = None) -> str:
        """An answer from the text that a server generated."""

    def content_of(self, answer: str) -> str:
        """An answer without its thinking."""

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Raises a `DataError` or `TemplateError` if the model would not see everything in the row."""
