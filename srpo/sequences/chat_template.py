"""A tokenizer's chat template, and the marks that keep text from becoming control tokens.

Chat templates differ in more than their marks: some trim messages, some drop the thinking of earlier answers, some
write the date or a system prompt of their own, some reject a role. `ChatTemplate` finds out by rendering probes, never
from the template's name, and lists the findings in `ChatTemplate.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from srpo.data.values import Message, Prompt
from srpo.errors import TemplateError
from srpo.sequences.protocols import Options, Tokenizer
from srpo.sequences.templates import TEMPLATE_FAILS, conversation

MARK = "\ufdd0\ufdef"  # two noncharacters, put inside control tokens that are text, and removed when encoding
THINKING = {"</think>": "<think>\n", "<channel|>": "<|channel>thought\n"}  # end of thinking → its beginning
ROLES = ("system", "user", "assistant", "tool", "developer")  # known besides the roles that a template quotes
# A template that writes today's date would make other ids tomorrow than those trained on. This is the date that
# Llama's templates write when they have no clock.
DATE_CALL, DATE = re.compile(r"strftime_now\(\s*(?:\"[^\"]*\"|'[^']*')\s*\)"), "'26 Jul 2024'"


class ControlTokens:
    """Marks the control tokens in text from outside, so that they are encoded as text.

    The tokenizer's own "split specials" switch would also split the control tokens of the chat template.

    Attributes:
        special: the tokenizer's special tokens, longest first.
        control: the special tokens and the other added tokens that the chat template writes, longest first.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = list(tokenizer.added_tokens_decoder.values())
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        template = str(tokenizer.chat_template or "")
        written = {str(token) for token in added if str(token) in template and not str(token).isspace()}
        self.special, self.control = _longest_first(special), _longest_first(special | written)
        # A text without one of these beginnings holds no control token; there may be hundreds of tokens to look for.
        self._starts = tuple({token[:2] for token in (MARK, *self.control)})
        self._beginnings = tuple({token[:i] for token in self.control for i in range(1, len(token))})

    def found_in(self, text: str) -> list[str]:
        """The control tokens in the text, `MARK` among them."""
        if not any(start in text for start in self._starts):
            return []
        return [token for token in (MARK, *self.control) if token in text]

    def sealed(self, text: str) -> str:
        """The text, with a mark at its end if following text could complete a control token there."""
        return text + MARK if text.endswith(self._beginnings) else text

    def marked_answer(self, text: str) -> str:
        """A model's answer with its special tokens marked; tokens of thinking and tools are its own words."""
        return self._marked(text, self.special)

    def marked(self, text: str) -> str:
        """Any other text with every control token marked."""
        return self._marked(text, self.control)

    def marked_value(self, value: object) -> Any:
        """A JSON value with every control token marked in every text."""
        if isinstance(value, str):
            return self.marked(value)
        if isinstance(value, Mapping):
            return {self.marked_value(key): self.marked_value(each) for key, each in value.items()}
        return [self.marked_value(each) for each in value] if isinstance(value, list | tuple) else value

    def _marked(self, text: str, tokens: tuple[str, ...]) -> str:
        for token in self.found_in(text):  # a `MARK` in the text is split by another
            if token == MARK or token in tokens:
                text = text.replace(token, token[:1] + MARK + token[1:])
        return text


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        thinking_ends: marks at the end of thinking that the template drops from earlier answers.
        lead: text that the template writes between its generation prompt and an answer, if it holds control tokens
            and no thinking; contexts end with it.

    Raises:
        TemplateError: the template drops a message's content.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self.tokenizer, self.control = tokenizer, control
        source = tokenizer.chat_template
        self.dated = isinstance(source, str) and DATE_CALL.search(source) is not None
        self._roles = {*ROLES, *re.findall(r"""['"](\w+)['"]""", str(source))}
        self._fixed = {"chat_template": DATE_CALL.sub(DATE, source)} if self.dated else {}
        self.lead = ""
        self._finished = self._probed()
        self.lead = self._lead()
        self.thinking_ends = tuple(end for end in THINKING if self._hides(end))

    def render(self, turns: list[Message], options: Options | None = None) -> str:
        """The conversation as text, up to the answer that the model writes next.

        Args:
            options: `tools`, and any other variable that the template reads.

        Raises:
            TemplateError: the template rejects the conversation.
        """
        turns = [{**turn, "content": self.control.sealed(turn["content"])} for turn in turns]
        return self._apply(turns, {"add_generation_prompt": True, **(options or {})}) + self.lead

    def _apply(self, turns: list[Message], options: Options) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, **self._fixed, **options)
            return text
        except TEMPLATE_FAILS as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from None

    def turns(self, prompt: Prompt) -> list[Message]:
        """The prompt as messages, control tokens marked.

        Raises:
            DataError: the last message is not the user's.
        """
        return [self._marked(turn) for turn in conversation(prompt)]

    def _marked(self, turn: Message) -> Message:
        own = self.control.marked_answer if turn["role"] == "assistant" else self.control.marked
        parts = turn.items()
        found = {part: own(each) if isinstance(each, str) else self.control.marked_value(each) for part, each in parts}
        # A template may make a control token of a role, as in <|{{ role }}|>: only for roles that it knows.
        return found if turn["role"] in self._roles else {**found, "role": f"{MARK}{found['role']}{MARK}"}

    def shown(self, draft: str) -> str:
        """A draft as the template shows an earlier answer: without its thinking if the template drops it."""
        for end in self.thinking_ends:
            if end in draft:
                draft = draft.rpartition(end)[2].lstrip()
        return draft

    @cached_property
    def terminator(self) -> str | None:
        """The added token that the template writes after an answer, or None."""
        tail = self._finished.rpartition(_PROBES[1])[2].lstrip()
        every = _longest_first([str(token) for token in self.tokenizer.added_tokens_decoder.values()])
        return next((token for token in every if tail.startswith(token)), None)

    @cached_property
    def notes(self) -> list[str]:
        """Unexpected habits of the template, a clause each; [] for a plain one."""
        user = {"role": "user", "content": f" {_PROBES[0]} "}
        asked = self.render([user])
        tail = asked.rpartition(_PROBES[0])[2]
        found = []
        if f" {_PROBES[0]} " not in asked:
            found.append("trims white space around a message")
        if self.thinking_ends:
            found.append("leaves thinking out of earlier answers, so drafts are shown without theirs")
        if any(tail.rstrip().endswith(start.rstrip()) for start in THINKING.values()):
            found.append("opens a block of thinking that the answer continues")
        if self.lead:
            found.append(f"writes {self.lead!r} before an answer, which is given and not scored")
        if self.dated:
            found.append(f"writes today's date, which is held at {DATE}")
        try:
            with_system = self.render([{"role": "system", "content": "srpo probe system"}, user])
            found += [] if "srpo probe system" in with_system else ["leaves out a system message"]
        except TemplateError:
            found.append("refuses a system message")
        return found

    # ------------------------------------------------------------------ probes

    def _probed(self) -> str:
        """A finished conversation of one question and one answer."""
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), _PROBES, strict=True)]
        text = self._apply(turns, {})
        if lost := [turn["role"] for turn in turns if turn["content"] not in text]:
            problem = f"the tokenizer's chat template leaves out the {lost[0]}'s text"
            raise TemplateError(problem, expected="one that takes a message's content as a string")
        return text

    def _lead(self) -> str:
        asked = self.render([{"role": "user", "content": _PROBES[0]}])
        before = self._finished.rpartition(_PROBES[1])[0]
        lead = before.removeprefix(asked) if before.startswith(asked) else ""
        written = any(token in lead for token in self.control.special)
        return lead if written and not any(mark in lead for mark in THINKING) else ""

    def _hides(self, end: str) -> bool:
        thought = "srpo probe thought"
        draft = f"{THINKING[end]}{thought}\n{end}\n\n{_PROBES[1]}"
        turns = [
            {"role": role, "content": text}
            for role, text in (("user", _PROBES[0]), ("assistant", draft), ("user", _PROBES[0]))
        ]
        try:
            text = self.render(turns)
        except TemplateError:  # the template rejects thinking in an answer, or a second question
            return False
        return thought not in text and _PROBES[1] in text


_PROBES = ("srpo probe user", "srpo probe assistant")


def _longest_first(tokens: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token)))
