"""The parts of a tokenizer and of a renderer that the library uses, as protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from srpo.data.read import Pair, Prompt, PromptRow
from srpo.sequences.templates import RevisionTemplate

Options = Mapping[str, Any]  # of a chat template: `tools`, and any other variable that it reads
Context = TypeVar("Context")


class Tokenizer(Protocol):
    """A tokenizer of transformers."""

    chat_template: Any  # Jinja, or None
    name_or_path: str
    is_fast: bool
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None
    all_special_tokens: list[str]
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, Any]

    decode: Callable[..., str]
    apply_chat_template: Callable[..., Any]
    convert_tokens_to_ids: Callable[[Any], Any]
    get_vocab: Callable[[], dict[str, int]]

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        """Ids of the text under `input_ids`."""


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

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each answer, its terminator included; [] where a server renders."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids."""

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Raises a `DataError` or `TemplateError` if the model would not see everything in the row."""
