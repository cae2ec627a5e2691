"""The text that a chat template writes around an answer, its thinking included.

A template that makes a model think writes more than the answer after its generation prompt: Qwen3.5 closes the block of
thinking that the prompt opened, GLM writes an empty block, gpt-oss names a channel. `AnswerForm` finds these texts by
rendering probes, so that an answer is scored as the vendor's own template renders it:

    without thinking   lead + content + tail
    with thinking      opening + thinking + closing + content + tail

Decisions where a rendered conversation does not begin with the generation prompt:

1. Only white space differs (Nemotron): the generation prompt stays, and the rendered rest is scored.
2. The prompt opens a block of thinking that the rendered conversation lacks (DeepSeek): the answer closes the block,
   since a model in use has to close it too.
3. The prompt closes the block (thinking switched off): answers are content alone, and thinking has no place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from srpo.data.values import THINK_END, THINK_START, Message
from srpo.errors import TemplateError

MARKS = {THINK_END: f"{THINK_START}\n", "<channel|>": "<|channel>thought\n"}  # end mark of thinking → start mark
ASK, THOUGHT, CONTENT = "srpo probe user", "srpo probe thought", "srpo probe assistant"
PADDED = f" \n\n {CONTENT} \n\n "
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.rstrip("\n"),
)
Render = Callable[[list[Message], bool], str]  # renders messages; the flag adds the generation prompt


class AnswerForm(NamedTuple):
    """The texts that a chat template writes around an answer, under one set of its options.

    Attributes:
        lead: text before the content of an answer without thinking.
        opening: text before the thinking.
        closing: text between thinking and content.
        tail: text between the content and the terminator.
        thinks: whether an answer can hold thinking.
        opened: whether the generation prompt opens a block of thinking.
        trim: function that trims content as the template does.
    """

    lead: str
    opening: str
    closing: str
    tail: str
    thinks: bool
    opened: bool
    trim: Callable[[str], str]

    @classmethod
    def probed(cls, render: Render, terminator: str | None) -> AnswerForm:
        """Finds the texts that a chat template writes around an answer, by rendering short conversations.

        Args:
            render: renders messages with the chat template.
            terminator: the token that the template writes after an answer, or None.
        """
        prompt = render([_user(ASK)], True)
        ends = [end for end, start in MARKS.items() if prompt.rstrip().endswith(start.rstrip())]
        closing = f"\n{ends[0]}\n\n" if ends else ""

        def rest(message: Message) -> str | None:
            """The text that the template writes for an answer after the generation prompt.

            None if the rendered conversation does not begin with that prompt.
            """
            text = render([_user(ASK), {"role": "assistant", **message}], False)
            begins = prompt if text.startswith(prompt) else prompt.rstrip()
            return text.removeprefix(begins) if text.startswith(begins) else None

        plain = rest({"content": CONTENT}) or CONTENT
        lead, _, tail = plain.partition(CONTENT)
        if closing and ends[0] not in lead:
            lead = closing
        tail = tail.partition(terminator)[0] if terminator and terminator in tail else ""
        padded = rest({"content": PADDED}) or PADDED
        trim = next((each for each in TRIMS if f"{lead}{each(PADDED)}{tail}" in padded), str)
        try:
            thinking = rest({"content": CONTENT, "reasoning_content": THOUGHT, "thinking": THOUGHT}) or ""
        except TemplateError:  # the template rejects message keys that it does not know
            thinking = ""
        opening, shown, after = thinking.partition(THOUGHT)
        if shown:
            closing = after.partition(CONTENT)[0]
        return cls(lead, opening if shown else "", closing, tail, bool(closing), bool(ends), trim)

    def scored(self, thinking: str | None, content: str | None) -> str:
        """Returns the text of an answer as the chat template renders it, without its terminator.

        Args:
            thinking: None for an answer without thinking.
            content: None for an answer that was cut off while thinking.
        """
        if thinking is None:
            return f"{self.lead}{self.trim(content or '')}{self.tail}"
        if content is None:
            return f"{self.opening}{thinking}"
        return f"{self.opening}{thinking}{self.closing}{self.trim(content)}{self.tail}"

    def read(self, text: str) -> str:
        """Returns the answer in a generated text: `<think>`, thinking and `</think>` if there are any, then content."""
        if self.lead and text.startswith(self.lead):
            return text.removeprefix(self.lead).removesuffix(self.tail)
        mark, opening = self.closing.strip(), self.opening.strip()
        before, found, content = text.removesuffix(self.tail).partition(mark) if mark else (text, "", "")
        thinking = before.lstrip().removeprefix(opening).lstrip("\n")
        if not found:
            cut_off = mark and thinking and (self.opened or (opening and before.lstrip().startswith(opening)))
            return f"{THINK_START}\n{thinking}" if cut_off else text
        if not thinking.strip():
            return content.lstrip("\n")
        # White space around `</think>` stays, so that the answer can be scored as it was generated.
        inside = (thinking, content) if mark == THINK_END else (f"{thinking.rstrip()}\n", f"\n\n{content}")
        return f"{THINK_START}\n{inside[0]}{THINK_END}{inside[1]}"


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
