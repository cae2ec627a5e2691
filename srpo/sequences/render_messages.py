"""Makes messages of prompts and drafts, for a chat server that renders them with its own chat template.

The text is the revision template's; the control tokens around it are the server's choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from srpo.data.pictures import pictures_of
from srpo.data.read import Pair, Prompt, PromptRow
from srpo.data.values import Message, split_thinking
from srpo.errors import DataError, TemplateError
from srpo.sequences.protocols import Options
from srpo.sequences.templates import RevisionTemplate, conversation


class MessageRenderer:
    """A `PromptRenderer` whose contexts are messages, without any token ids.

    Args:
        template: the request for a revision; None takes `quote`.

    Example:
        >>> MessageRenderer(RevisionTemplate.preset("turn")).drafts(["What is 2+2?"])
        [[{'role': 'user', 'content': 'What is 2+2?'}]]
    """

    stop_ids: tuple[int, ...] = ()

    def __init__(self, template: RevisionTemplate | None = None) -> None:
        self.template = template or RevisionTemplate.preset("quote")

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[list[Message]]:
        """Returns for each prompt the messages from which a chat server drafts an answer; `options` have no effect."""
        return [self.template.asking(conversation(prompt)) for prompt in prompts]

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[list[Message]]:
        """Returns for each prompt the messages from which a chat server revises its draft; `options` have no effect."""
        shown = list(drafts) if self.template.show_thinking else [self.content_of(draft) for draft in drafts]
        both = zip(prompts, shown, strict=True)
        return [self.template.asking(conversation(prompt), draft) for prompt, draft in both]

    def answers(self, texts: Sequence[str], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Returns an empty list per answer, since a chat server returns no token ids."""
        return [[] for _ in texts]

    def decode(self, ids: Sequence[int], options: Options | None = None) -> str:
        """Always raises, since a chat server returns text and no token ids.

        Raises:
            TemplateError: always.
        """
        raise TemplateError("a chat server's token ids cannot be read without its tokenizer", where="renderer")

    def read(self, text: str, options: Options | None = None) -> str:
        """Returns the text unchanged, since a chat server has already removed its template's marks."""
        return text

    def content_of(self, answer: str) -> str:
        """Returns an answer without its thinking, which a chat server may return between `<think>` and `</think>`."""
        return split_thinking(answer)[1] or ""

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Checks that a chat server's model would see every part of the row.

        Raises:
            DataError: the row has pictures; it has tools or options for a chat template, and the template is the
                server's; or its prompt does not end with the user's message.
        """
        if pictures_of(row.prompt):
            raise DataError("the prompt has pictures, and pictures are not sent by chat", where=row.where)
        if not isinstance(row.prompt, str) and any("name" in turn for turn in row.prompt):
            raise DataError("a message has a 'name', which is not sent by chat", where=row.where)
        if row.tools or row.chat_template_kwargs:
            raise DataError("tools and chat_template_kwargs are not sent by chat", where=row.where)
        try:
            conversation(row.prompt)
        except DataError as error:
            raise DataError(error.what, where=row.where, expected=error.expected) from None
