"""Prompts and drafts as messages, for a server that renders them with a chat template of its own.

The words are those of the revision template; which control tokens stand between them is the server's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srpo.data.read import Pair, Prompt, PromptRow
from srpo.errors import DataError, TemplateError
from srpo.sequences.templates import RevisionTemplate


class MessageRenderer:
    """Stands where a `Renderer` does, with messages for contexts and no ids anywhere.

    Args:
        template: how a draft is shown; None takes `quote`.

    Example:
        >>> MessageRenderer(RevisionTemplate.preset("turn")).drafts(["What is 2+2?"])
        [[{'role': 'user', 'content': 'What is 2+2?'}]]
    """

    stop_ids: tuple[int, ...] = ()

    def __init__(self, template: RevisionTemplate | None = None) -> None:
        self.template = template or RevisionTemplate.preset("quote")

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Any] | None = None) -> list[list[dict[str, Any]]]:
        """Messages the model drafts from."""
        return [self._turns(prompt, None) for prompt in prompts]

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Any] | None = None
    ) -> list[list[dict[str, Any]]]:
        """Messages the model revises each draft from."""
        return [self._turns(prompt, draft) for prompt, draft in zip(prompts, drafts, strict=True)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Nothing: whoever asks by chat tells no ids."""
        return [[] for _ in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Never called: a chat server tells text.

        Raises:
            TemplateError: always.
        """
        raise TemplateError("a chat server's token ids cannot be read without its tokenizer", where="renderer")

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Whether everything that the row holds for the model would reach it.

        Raises:
            DataError: it has tools or options for a chat template, and the template is the server's; or its prompt ends
                in another turn than the user's.
        """
        if row.tools or row.chat_template_kwargs:
            raise DataError("tools and chat_template_kwargs are not sent by chat", where=row.where)
        try:
            self._turns(row.prompt, None)
        except DataError as error:
            raise DataError(error.what, where=row.where, expected=error.expected) from None

    def _turns(self, prompt: Prompt, draft: str | None) -> list[dict[str, Any]]:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if not turns or turns[-1]["role"] != "user":
            last = f"ends in a {turns[-1]['role']} message" if turns else "has no message"
            raise DataError(f"the prompt {last}", expected="a user message last")
        asked = turns[-1]["content"]
        if self.template.form == "turn":
            if draft is not None:
                turns.append({"role": "assistant", "content": draft})
                turns.append({"role": "user", "content": self.template.fill_revision(asked, draft)})
            return turns
        filled = self.template.fill_draft(asked) if draft is None else self.template.fill_revision(asked, draft)
        turns[-1] = {**turns[-1], "content": filled}
        return turns
