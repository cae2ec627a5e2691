"""Renders conversations by a tokenizer's chat template, and keeps users' text from becoming control tokens.

`MARK`, two characters that no text has, is put inside a control token such as `<|im_end|>` that occurs in a user's
text; it is removed when the text is encoded, and the token is then encoded as letters.

Chat templates differ in more than their marks: some trim messages, some drop the thinking of earlier answers, some
write the date or a system prompt of their own, some reject a role. `ChatTemplate` finds out by rendering probes, never
from the template's name, and lists the findings in `ChatTemplate.notes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from srpo.data.pictures import PICTURE, RECORD
from srpo.data.values import THINK_END, THINK_START, Message, Prompt, split_thinking
from srpo.errors import TemplateError
from srpo.sequences.answer_form import ASK, CONTENT, MARKS, AnswerForm
from srpo.sequences.protocols import Options, Tokenizer
from srpo.sequences.templates import TEMPLATE_FAILS, conversation

MARK = "\ufdd0\ufdef"  # two noncharacters, put inside control tokens that are text, and removed when encoding
FORMS = 64  # largest number of options whose answer forms are held
ROLES = ("system", "user", "assistant", "tool", "developer")  # known besides the roles that a template quotes
# A template that writes today's date would give other token ids after training. So every date is replaced by the one
# that Llama's templates write when they have no clock.
DATE_CALL, DATE = re.compile(r"strftime_now\(\s*(?:\"[^\"]*\"|'[^']*')\s*\)"), "'26 Jul 2024'"


class ControlTokens:
    """Keeps control tokens, such as `<|im_end|>`, that occur in users' text from being encoded as control tokens.

    It puts `MARK`, two characters that no text has, inside each of them. The encoder splits text at `MARK` and removes
    it, so the control token is encoded as letters.

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
        marks = [mark for end, start in MARKS.items() if end in template for mark in (start, end)]
        self._not_spoken = tuple(token for token in self.special if not any(token in mark for mark in marks))
        # A quick test: a text without one of these beginnings holds no control token. A tokenizer may have hundreds.
        self._starts = tuple({token[:2] for token in (MARK, *self.control)})
        self._beginnings = tuple({token[:i] for token in self.control for i in range(1, len(token))})

    def found_in(self, text: str) -> list[str]:
        """Returns the control tokens, such as `<|im_end|>`, that occur in a text, and `MARK` if the text holds it."""
        if not any(start in text for start in self._starts):
            return []
        return [token for token in (MARK, *self.control) if token in text]

    def as_text(self, text: str, *, answer: bool) -> list[str]:
        """Returns those control tokens in a text that srpo will encode as letters; for warnings.

        Args:
            answer: True for a model's answer, in which tokens of thinking and of tool calls stay tokens.
        """
        return [token for token in self.found_in(text) if token in (self._not_spoken if answer else self.control)]

    def sealed(self, text: str) -> str:
        """Returns the text, with `MARK` appended if it ends with the first letters of a control token.

        Without `MARK` the next text could complete the token. `MARK` is removed when the text is encoded.
        """
        return text + MARK if text.endswith(self._beginnings) else text

    def marked_answer(self, text: str) -> str:
        """Returns a model's answer with `MARK` put inside its special tokens, so that they are encoded as letters.

        Tokens of thinking and tool calls stay tokens.
        """
        return self._marked(text, self._not_spoken)

    def marked(self, text: str) -> str:
        """Returns a text that is no model's answer, with `MARK` put inside control tokens, to be encoded as letters."""
        return self._marked(text, self.control)

    def marked_value(self, value: object) -> Any:
        """Returns a JSON value with `MARK` put inside control tokens of all its strings, to be encoded as letters."""
        if isinstance(value, str):
            return self.marked(value)
        if isinstance(value, Mapping):
            return {self.marked_value(key): self.marked_value(each) for key, each in value.items()}
        return [self.marked_value(each) for each in value] if isinstance(value, list | tuple) else value

    def _marked(self, text: str, tokens: tuple[str, ...]) -> str:
        for token in self.found_in(text):  # a `MARK` that the text held before is split as well
            if token == MARK or token in tokens:
                text = text.replace(token, token[:1] + MARK + token[1:])
        return text


class ChatTemplate:
    """Renders conversations and answers by a tokenizer's chat template; finds its marks of thinking and of the end.

    Attributes:
        thinking: pairs (start, end) of texts that enclose thinking in an answer; [] for a template without thinking.
        terminator: the added token that the template writes after an answer, or None.

    Raises:
        TemplateError: the template drops a message's content.
    """

    def __init__(self, tokenizer: Tokenizer, control: ControlTokens) -> None:
        self.tokenizer, self.control = tokenizer, control
        source = tokenizer.chat_template
        self.dated = isinstance(source, str) and DATE_CALL.search(source) is not None
        self._roles = {*ROLES, *re.findall(r"""['"](\w+)['"]""", str(source))}
        self._fixed = {"chat_template": DATE_CALL.sub(DATE, source)} if self.dated else {}
        self._forms: dict[str, AnswerForm] = {}
        self._parts = False  # whether content is always a list of parts, as some vision-language models take it
        try:
            finished = self._finished()
        except TemplateError as error:
            self._parts = True
            try:
                finished = self._finished()
            except TemplateError:
                raise error from None
        self.terminator = self._terminator(finished)
        own = [(start.strip(), end) for end, start in MARKS.items() if end in str(source)]
        canonical = [(THINK_START, THINK_END)] if own or self.form().thinks else []
        self.thinking = list(dict.fromkeys([*canonical, *own]))

    def render(self, turns: list[Message], options: Options | None = None) -> str:
        """Returns the conversation as text, up to the place where the model writes its next answer.

        Args:
            options: `tools`, and any other variable that the template reads.

        Raises:
            TemplateError: the template rejects the conversation.
        """
        turns = [{**turn, "content": self.control.sealed(turn["content"])} for turn in turns]
        return self._apply(turns, {"add_generation_prompt": True, **(options or {})})

    def _apply(self, turns: list[Message], options: Options) -> str:
        turns = [self._written(turn) for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, **self._fixed, **options)
            return text
        except TEMPLATE_FAILS as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from None

    def _written(self, turn: Message) -> Message:
        """The message as the template takes it: a list of parts if it has pictures, or if the template asks for one."""
        if RECORD not in turn and not self._parts:
            return turn
        texts = turn["content"].split(PICTURE) if RECORD in turn else [turn["content"]]
        parts: list[dict[str, str]] = []
        for at, text in enumerate(texts):
            parts += [{"type": "image"}] if at else []
            parts += [{"type": "text", "text": text}] if text else []
        return {**{key: value for key, value in turn.items() if key != RECORD}, "content": parts}

    def turns(self, prompt: Prompt) -> list[Message]:
        """Returns the prompt as messages; control tokens in their text are marked, to be encoded as letters.

        Raises:
            DataError: the last message is not the user's.
        """
        return [self._marked(turn) for turn in conversation(prompt)]

    def _marked(self, turn: Message) -> Message:
        own = self.control.marked_answer if turn["role"] == "assistant" else self.control.marked
        parts = turn.items()
        found = {part: own(each) if isinstance(each, str) else self.control.marked_value(each) for part, each in parts}
        # A template may write a role as a control token, as in <|{{ role }}|>, so unknown roles are rejected.
        return found if turn["role"] in self._roles else {**found, "role": f"{MARK}{found['role']}{MARK}"}

    # ------------------------------------------------------------------ answers

    def form(self, options: Options | None = None) -> AnswerForm:
        """Returns the texts that the chat template writes around an answer, for these options of the template."""
        given = {key: value for key, value in (options or {}).items() if key != "tools"}
        key = json.dumps(given, sort_keys=True, default=str)
        if found := self._forms.pop(key, None):
            self._forms[key] = found  # the newest comes last
            return found

        def render(turns: list[Message], prompt: bool) -> str:
            return self._apply(turns, {"add_generation_prompt": prompt, **given})

        found = AnswerForm.probed(render, self.terminator)
        if len(self._forms) >= FORMS:  # a server's clients may send any number of options
            self._forms.pop(next(iter(self._forms)), None)
        self._forms[key] = found
        return found

    def split(self, answer: str) -> tuple[str | None, str | None]:
        """Returns (thinking, content) of an answer; thinking is None without any, content None if it was cut off."""
        for start, end in self.thinking:
            thinking, content = split_thinking(answer, start, end)
            if thinking is not None:
                return thinking, content
        return None, answer

    def scored(self, answer: str, options: Options | None = None, parts: bool = False) -> str:
        """Returns the text of an answer as the chat template renders it, without its terminator.

        Args:
            answer: the answer with `MARK` inside its control tokens.
            parts: True gives thinking to the template in a key of its own, as a server's message has it; False tries
                first to leave it inside the message's content.
        """
        form = self.form(options)
        thinking, content = self.split(answer)
        if thinking is None or not form.thinks:
            return form.scored(None, answer)
        if not thinking.strip() and content is not None:
            return form.scored(None, content)
        given = {key: value for key, value in (options or {}).items() if key != "tools"}
        raw = None if parts or content is None else self._raw(answer, thinking, content, given)
        return form.scored(thinking, content) if raw is None else raw

    def _raw(self, answer: str, thinking: str, content: str, options: Options) -> str | None:
        """The answer as the template renders a message whose content holds the thinking, too.

        None if the template does not treat that part of the content as thinking.
        """
        ask = {"role": "user", "content": ASK}
        prompt = self._apply([ask], {"add_generation_prompt": True, **options})
        text = self._apply([ask, {"role": "assistant", "content": answer}], options)
        scored = text.removeprefix(prompt)
        if self.terminator:
            scored = scored.rpartition(self.terminator)[0]
        once = sum(scored.count(end) for _, end in self.thinking) == 1 + content.count(THINK_END)
        whole = thinking.strip() in scored and scored.endswith(content.strip())
        read = scored.startswith(self.form(options).opening.rstrip()) and not scored.lstrip().startswith(
            THINK_START * 2
        )
        return scored if text.startswith(prompt) and once and whole and read else None

    def expect_answerable(self, answer: str, options: Options | None = None) -> None:
        """Checks that the chat template has a place for the thinking of an answer.

        Raises:
            TemplateError: the template leaves thinking out, or its generation prompt has closed the block of thinking.
        """
        thinking, _ = self.split(answer)
        if thinking and not self.form(options).thinks:
            raise TemplateError(
                "an answer has thinking, for which the tokenizer's chat template has no place",
                fix="let the template think, as with chat_template_kwargs enable_thinking, or leave thinking out",
            )

    def content(self, answer: str) -> str:
        """Returns an answer without its thinking; "" if it was cut off while thinking."""
        return self.split(answer)[1] or ""

    # ------------------------------------------------------------------ probes

    def _finished(self) -> str:
        """A short test conversation of one question and one answer, as the chat template renders it.

        Raises:
            TemplateError: the template leaves out either text.
        """
        turns = [{"role": "user", "content": ASK}, {"role": "assistant", "content": CONTENT}]
        text = self._apply(turns, {})
        if lost := [turn["role"] for turn in turns if turn["content"] not in text]:
            problem = f"the tokenizer's chat template leaves out the {lost[0]}'s text"
            raise TemplateError(problem, expected="one that takes a message's content as a string")
        return text

    def _terminator(self, finished: str) -> str | None:
        tail = finished.rpartition(CONTENT)[2].lstrip()
        every = _longest_first([str(token) for token in self.tokenizer.added_tokens_decoder.values()])
        return next((token for token in every if tail.startswith(token)), None)

    @cached_property
    def notes(self) -> list[str]:
        """Unexpected habits of the chat template, such as "refuses a system message"; [] if it has no such habits."""
        user = {"role": "user", "content": f" {ASK} "}
        asked, form = self.render([user]), self.form()
        found = []
        if f" {ASK} " not in asked:
            found.append("trims white space around a message")
        if self.thinking:
            found.append("makes the model think; drafts are shown without their thinking")
        if form.opened:
            found.append(f"opens a block of thinking; an answer without thinking begins with {form.lead!r}")
        elif form.lead.strip():
            found.append(f"writes {form.lead!r} before an answer without thinking; it is scored")
        if self.thinking and not form.thinks:
            found.append("has no place for thinking in an answer, with these options")
        if self.dated:
            found.append(f"writes today's date, which is held at {DATE}")
        try:
            system = self.render([{"role": "system", "content": _SYSTEM}, user])
            found += [] if _SYSTEM in system else ["leaves out a system message"]
            before, _, after = system.partition(_SYSTEM)
            if after and asked.startswith(before) and asked.endswith(after) and asked != before + after:
                default = asked.removeprefix(before).removesuffix(after)
                found.append(f"writes a system message of its own where a prompt has none: {default!r}")
        except TemplateError:
            found.append("refuses a system message")
        return found


_SYSTEM = "srpo probe system"


def _longest_first(tokens: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token)))
