"""A tokenizer's chat template, and what stands between text and control tokens.

Chat templates differ in more than their marks: some trim what a message says, some leave thinking out of earlier
answers, some write the date or a system prompt of their own, some refuse a role. What one does is found out by
rendering probes, never from its name, and `ChatTemplate.notes` says it in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from srpo.errors import DataError, TemplateError
from srpo.sequences.templates import TEMPLATE_FAILS

MARK = "\ufdd0\ufdef"  # two noncharacters; they stand inside control tokens written as text and are gone when encoded
THINKING = {"</think>": "<think>\n", "<channel|>": "<|channel>thought\n"}  # how thinking ends and begins
ROLES = ("system", "user", "assistant", "tool", "developer")  # and whatever else a template quotes
# A template that writes today's date makes other ids tomorrow than were trained on. This is the date that Llama's
# templates write where they know of no clock.
DATE_CALL, DATE = re.compile(r"strftime_now\(\s*(?:\"[^\"]*\"|'[^']*')\s*\)"), "'26 Jul 2024'"


class Guard:
    """Keeps text that looks like a control token text.

    Encoding with the tokenizer's own "split specials" switch would also split those of the chat template.

    Attributes:
        special: the tokenizer's special tokens, longest first.
        control: those, and the other added tokens that the chat template writes.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = list(tokenizer.added_tokens_decoder.values())
        special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        template = str(tokenizer.chat_template or "")
        written = {str(token) for token in added if str(token) in template and not str(token).isspace()}
        self.special, self.control = _longest_first(special), _longest_first(special | written)
        # A text without one of these holds no control token; most hold none, and there may be hundreds of tokens.
        self._starts = tuple({token[:2] for token in (MARK, *self.control)})
        self._beginnings = tuple({token[:i] for token in self.control for i in range(1, len(token))})

    def held(self, text: str) -> list[str]:
        """The control tokens that the text holds, the mark among them."""
        if not any(start in text for start in self._starts):
            return []
        return [token for token in (MARK, *self.control) if token in text]

    def sealed(self, text: str) -> str:
        """A text with a mark after the beginning of a control token at its end, which what follows could complete."""
        return text + MARK if text.endswith(self._beginnings) else text

    def answer(self, text: str) -> str:
        """What a model said: its special tokens are marked; those of its thinking or tools are its own words."""
        return self._marked(text, self.special)

    def content(self, text: str) -> str:
        """What anybody else said: every control token is marked."""
        return self._marked(text, self.control)

    def within(self, value: Any) -> Any:
        """The same for every text in a JSON-like value."""
        if isinstance(value, str):
            return self.content(value)
        if isinstance(value, Mapping):
            return {self.within(key): self.within(each) for key, each in value.items()}
        return [self.within(each) for each in value] if isinstance(value, list | tuple) else value

    def _marked(self, text: str, tokens: tuple[str, ...]) -> str:
        for token in self.held(text):  # a mark that stands in the text is split by one as well
            if token == MARK or token in tokens:
                text = text.replace(token, token[:1] + MARK + token[1:])
        return text


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        thinking_ends: marks that end thinking which the template leaves out of earlier answers.
        lead: what it writes between its generation prompt and an answer, if control tokens are in it and no thinking;
            contexts end in it.

    Raises:
        TemplateError: it leaves out what a message says.
    """

    def __init__(self, tokenizer: Any, guard: Guard) -> None:
        self.tokenizer, self.guard = tokenizer, guard
        source = tokenizer.chat_template
        self.dated = isinstance(source, str) and DATE_CALL.search(source) is not None
        self._roles = {*ROLES, *re.findall(r"""['"](\w+)['"]""", str(source))}
        self._options = {"chat_template": DATE_CALL.sub(DATE, source)} if self.dated else {}
        self.lead = ""
        self._finished = self._probed()
        self.lead = self._lead()
        self.thinking_ends = tuple(end for end in THINKING if self._hides(end))

    def render(self, turns: list[dict[str, Any]], options: Mapping[str, Any] | None = None) -> str:
        """The conversation as text, awaiting an answer.

        Args:
            options: for the template: `tools`, and whatever else it reads.

        Raises:
            TemplateError: the template refuses it.
        """
        turns = [{**turn, "content": self.guard.sealed(turn["content"])} for turn in turns]
        return self._apply(turns, {"add_generation_prompt": True, **(options or {})}) + self.lead

    def _apply(self, turns: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, **self._options, **options)
            return text
        except TEMPLATE_FAILS as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from None

    def turns(self, prompt: Any) -> list[dict[str, Any]]:
        """The prompt as messages of our own to change, ending in a user turn, control tokens marked.

        Raises:
            DataError: it ends in another turn.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not turns or turns[-1]["role"] != "user":
            last = f"ends in a {turns[-1]['role']} message" if turns else "has no message"
            raise DataError(f"the prompt {last}", expected="a user message last")
        return [self._guarded(turn) for turn in turns]

    def _guarded(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        own = self.guard.answer if turn["role"] == "assistant" else self.guard.content
        found = {part: own(each) if isinstance(each, str) else self.guard.within(each) for part, each in turn.items()}
        # A template may make a control token of a role, as in <|{{ role }}|>; only those it knows may become one.
        return found if turn["role"] in self._roles else {**found, "role": f"{MARK}{found['role']}{MARK}"}

    def shown(self, draft: str) -> str:
        """A draft as the template shows an earlier answer: without its thinking, where it leaves that out."""
        for end in self.thinking_ends:
            if end in draft:
                draft = draft.rpartition(end)[2].lstrip()
        return draft

    @cached_property
    def terminator(self) -> str | None:
        """The added token that the template puts after an answer, if it puts one."""
        tail = self._finished.rpartition(_PROBES[1])[2].lstrip()
        every = _longest_first([str(token) for token in self.tokenizer.added_tokens_decoder.values()])
        return next((token for token in every if tail.startswith(token)), None)

    @cached_property
    def notes(self) -> list[str]:
        """What the template does that one would not expect, a clause each; [] for a plain one."""
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
            said = self.render([{"role": "system", "content": "srpo probe system"}, user])
            found += [] if "srpo probe system" in said else ["leaves out a system message"]
        except TemplateError:
            found.append("refuses a system message")
        return found

    # ------------------------------------------------------------------ probes

    def _probed(self) -> str:
        """A finished conversation of one question and one answer."""
        turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), _PROBES, strict=True)]
        text = self._apply(turns, {})
        if lost := [turn["role"] for turn in turns if turn["content"] not in text]:
            problem = f"the tokenizer's chat template leaves out what the {lost[0]} says"
            raise TemplateError(problem, expected="one that takes a message's content as a string")
        return text

    def _lead(self) -> str:
        asked = self.render([{"role": "user", "content": _PROBES[0]}])
        before = self._finished.rpartition(_PROBES[1])[0]
        lead = before.removeprefix(asked) if before.startswith(asked) else ""
        written = any(token in lead for token in self.guard.special)
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
        except TemplateError:  # it refuses thinking in an answer, or a second question
            return False
        return thought not in text and _PROBES[1] in text


_PROBES = ("srpo probe user", "srpo probe assistant")


def _longest_first(tokens: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token)))
