"""Pairs + tokenizer + revision template → token ids. The only owner of templates.

Training and revision both ask here, so they can never see different prompts. Answers are tokenised alone and appended
to the context ids, as generation does; the token that ends the model's turn belongs to the answer and is scored. Text
that merely looks like a control token is encoded as text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srpo.errors import DataError, InputError, TemplateError, did_you_mean
from srpo.pairs.read import Message, Pair, Prompt
from srpo.pairs.tree import TokenPair

TEMPLATE_FILE = "revision_template.json"
FORMS = ("text", "quote", "turn")
CHUNK = 512

_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
# Jinja runs a template's expressions as Python, so their errors are Python's.
_TEMPLATE_FAILS = (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError)


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    """Jinja compiles anew at every `from_string`, which takes as long as tokenising a row."""
    return _JINJA.from_string(source)


@dataclass(frozen=True)
class RevisionTemplate:
    """How a prompt is put to the model, alone and together with a draft to revise.

    Attributes:
        name: the preset's name, or the file it came from.
        form: what the Jinja texts make. "text": the whole context, for models without a chat template. "quote": the
            last user turn, the draft quoted inside it. "turn": the user turn that follows the draft, which stands as
            the assistant's own turn before it.
        draft: Jinja over `prompt`.
        revision: Jinja over `prompt` and `draft`.

    Example:
        >>> RevisionTemplate.preset("plain").fill_revision("Q: 2+2? A:", " 5")
        'Q: 2+2? A: 5\\n\\nA better answer:'
    """

    name: str
    form: str
    draft: str
    revision: str

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TemplateError(f"form {self.form!r}", where=self.name, expected="one of " + ", ".join(FORMS))
        for part in ("draft", "revision"):
            try:
                _compiled(getattr(self, part))
            except jinja2.TemplateSyntaxError as error:
                raise TemplateError(f"{part} is not Jinja: {error}", where=self.name) from None

    def fill_draft(self, prompt: str) -> str:
        """The text that asks for a draft."""
        return self._fill(self.draft, prompt=prompt)

    def fill_revision(self, prompt: str, draft: str) -> str:
        """The text that asks for a revision of `draft`."""
        return self._fill(self.revision, prompt=prompt, draft=draft)

    def _fill(self, source: str, **texts: str) -> str:
        try:
            return _compiled(source).render(**texts)
        except _TEMPLATE_FAILS as error:
            raise TemplateError(str(error), where=f"revision template {self.name!r}") from None

    @classmethod
    def preset(cls, name: str) -> RevisionTemplate:
        """A template by name.

        Raises:
            TemplateError: there is no such preset.
        """
        if name not in PRESETS:
            fix = did_you_mean(name, PRESETS)
            raise TemplateError(f"no preset {name!r}", expected="one of " + ", ".join(PRESETS), fix=fix)
        return PRESETS[name]

    @classmethod
    def load(cls, path: str | Path) -> RevisionTemplate:
        """The template in a JSON file, or beside a saved model when `path` is its folder.

        Raises:
            InputError: there is none.
            TemplateError: the file is not a revision template.
        """
        file = Path(path) / TEMPLATE_FILE if Path(path).is_dir() else Path(path)
        try:
            row = json.loads(file.read_text("utf-8"))
            return cls(*(row[key] for key in ("name", "form", "draft", "revision")))
        except FileNotFoundError:
            fix = f"name one with --revision_template ({', '.join(PRESETS)} or a file)"
            raise InputError("no revision template", where=str(file), fix=fix) from None
        except (ValueError, KeyError, TypeError):
            expected = "a JSON object with name, form, draft and revision"
            raise TemplateError("not a revision template", where=str(file), expected=expected) from None

    def save(self, folder: str | Path, fingerprint: str = "") -> None:
        """Writes the template beside a model; `load` reads it back.

        Args:
            fingerprint: the renderer's, so that a later mismatch of tokenizer can be seen.
        """
        text = json.dumps({"format": 1, **asdict(self), "sha256": fingerprint}, ensure_ascii=False, indent=2)
        (Path(folder) / TEMPLATE_FILE).write_text(text + "\n", "utf-8")


PRESETS = {
    template.name: template
    for template in (
        RevisionTemplate(
            "quote",
            "quote",
            "{{ prompt }}",
            "{{ prompt }}\n\nHere is an example of an answer:\n\n{{ draft }}\n\n"
            "Using it as you see fit, write the best answer you can.",
        ),
        RevisionTemplate("turn", "turn", "{{ prompt }}", "Revise your answer. Write the best answer you can."),
        RevisionTemplate("plain", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}\n\nA better answer:"),
    )
}


def template_for(model: str, asked: str | None) -> RevisionTemplate | None:
    """The template to use with a model: the one asked for by preset or file name, else the one saved with it, else
    None, which leaves the choice to `Renderer`.

    Raises:
        TemplateError: neither a preset nor a file.
    """
    if asked is not None:
        return RevisionTemplate.load(asked) if Path(asked).exists() else RevisionTemplate.preset(asked)
    return RevisionTemplate.load(model) if model and (Path(model) / TEMPLATE_FILE).is_file() else None


class Renderer:
    """Turns prompts, drafts and answers into token ids with one tokenizer and one revision template.

    Args:
        tokenizer: a transformers tokenizer; with a chat template prompts become turns, without one they stay text.
        template: how a draft is shown; None takes `quote` for a tokenizer with a chat template and `plain` without,
            and `renderer.template.name` says which.

    Raises:
        TemplateError: the template's form does not fit the tokenizer, or the tokenizer has no token to end an answer.

    Example:
        >>> from srpo.tasks.carry import TEMPLATE, carry_tokenizer
        >>> renderer = Renderer(carry_tokenizer(), TEMPLATE)
        >>> renderer.tokenizer.decode(renderer.revision("12+34=", "046"))
        '<bos>12+34=046?'
    """

    def __init__(self, tokenizer: Any, template: RevisionTemplate | None = None) -> None:
        self.tokenizer = tokenizer
        chat = bool(tokenizer.chat_template)
        self.template = template or RevisionTemplate.preset("quote" if chat else "plain")
        if (self.template.form == "text") == chat:
            has = "a" if chat else "no"
            fix = "use --revision_template " + ("quote or turn" if chat else "plain")
            raise TemplateError(
                f"its form is {self.template.form!r} but the tokenizer has {has} chat template",
                where=f"revision template {self.template.name!r}",
                fix=fix,
            )
        self.terminator = self._terminator()

    # ------------------------------------------------------------------ contexts and answers

    def draft(self, prompt: Prompt) -> list[int]:
        """Ids the model drafts from."""
        return self._encode([self._draft_text(prompt)])[0]

    def revision(self, prompt: Prompt, draft: str) -> list[int]:
        """Ids the model revises `draft` from."""
        return self._encode([self._revision_text(prompt, draft)])[0]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer, its terminator included."""
        return self._encode_alone([text])[0]

    def drafts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """`draft` for many prompts at once."""
        return self._encode([self._draft_text(prompt) for prompt in prompts])

    def revisions(self, prompts: Sequence[Prompt], drafts: Sequence[str]) -> list[list[int]]:
        """`revision` for many prompts at once."""
        return self._encode([self._revision_text(p, draft) for p, draft in zip(prompts, drafts, strict=True)])

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """`answer` for many texts at once."""
        return self._encode_alone(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer ids, up to where the model ended its turn."""
        ids = list(ids)
        stops = [i for i, token in enumerate(ids) if token in self.stop_ids]
        return self.tokenizer.decode(ids[: stops[0]] if stops else ids, skip_special_tokens=True)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends: the terminator and the tokenizer's end-of-sequence token."""
        return tuple(dict.fromkeys(t for t in (self.terminator, self.tokenizer.eos_token_id) if t is not None))

    def six(self, pair: Pair) -> list[TokenPair]:
        """The six (context ids, answer ids) of a pair, in the order of `SixLogps`."""
        return next(self.sixes([pair]))

    def sixes(self, pairs: Sequence[Pair]) -> Iterator[list[TokenPair]]:
        """`six` for many pairs, tokenised in batches."""
        remaining = iter(pairs)
        while chunk := list(islice(remaining, CHUNK)):
            prompts, w, l = ([getattr(p, part) for p in chunk] for part in ("prompt", "chosen", "rejected"))
            answers_w, answers_l = self.answers(w), self.answers(l)
            drafts, after_w, after_l = self.drafts(prompts), self.revisions(prompts, w), self.revisions(prompts, l)
            for pair, x, xw, xl, aw, al in zip(chunk, drafts, after_w, after_l, answers_w, answers_l, strict=True):
                if not x:
                    raise DataError("the prompt is empty and the tokenizer has no BOS token", where=pair.where)
                pieces = ((x, aw), (x, al), (xw, aw), (xw, al), (xl, aw), (xl, al))
                yield [TokenPair(context, answer) for context, answer in pieces]

    # ------------------------------------------------------------------ identity

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides which ids a row becomes: template, tokenizer, chat template."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            state = sorted(self.tokenizer.get_vocab().items())
        else:  # padding and truncation are left over from the tokenizer's last call, and have no part in ours
            state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        special = [str(token) for token in self._control_tokens]
        ends = [self._text_bos, self._lone_bos, *self.stop_ids]
        parts = [asdict(self.template), self.tokenizer.chat_template, state, special, ends]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    # ------------------------------------------------------------------ text

    def _draft_text(self, prompt: Prompt) -> str:
        if self.template.form == "text":
            return self.template.fill_draft(self._guard(as_text(prompt)))
        turns = self._turns(prompt)
        if self.template.form == "quote":
            turns[-1]["content"] = self.template.fill_draft(turns[-1]["content"])
        return self._chat(turns)

    def _revision_text(self, prompt: Prompt, draft: str) -> str:
        draft = self._guard(draft)
        if self.template.form == "text":
            return self.template.fill_revision(self._guard(as_text(prompt)), draft)
        turns = self._turns(prompt)
        if self.template.form == "quote":
            turns[-1]["content"] = self.template.fill_revision(turns[-1]["content"], draft)
            return self._chat(turns)
        asked = self.template.fill_revision(turns[-1]["content"], draft)
        return self._chat([*turns, {"role": "assistant", "content": draft}, {"role": "user", "content": asked}])

    def _turns(self, prompt: Prompt) -> list[Message]:
        """The prompt as messages of our own to change, ending in a user turn."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not turns or turns[-1]["role"] != "user":
            last = f"ends in a {turns[-1]['role']} message" if turns else "has no message"
            raise DataError(f"the prompt {last}", expected="a user message last")
        return [{part: self._guard(text) for part, text in turn.items()} for turn in turns]

    def _chat(self, turns: list[Message], *, add_generation_prompt: bool = True) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except _TEMPLATE_FAILS as error:
            raise TemplateError(f"the tokenizer's chat template refuses this conversation: {error}") from None

    # ------------------------------------------------------------------ ids

    def _guard(self, text: str) -> str:
        """Content with a mark inside everything that looks like a control token, so that it stays text, and after the
        beginning of one at its end, which whatever follows could complete.

        Encoding with the tokenizer's own "split specials" switch would also split those of the chat template.
        """
        for token in (_MARK, *self._control_tokens):  # a mark that stands in the content is split by one as well
            if token in text:
                text = text.replace(token, token[:1] + _MARK + token[1:])
        return text + _MARK if text.endswith(self._beginnings) else text

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return tuple({token[:i] for token in (_MARK, *self._control_tokens) for i in range(1, len(token))})

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        named = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return tuple(sorted((token for token in named if len(token) > 1), key=len, reverse=True))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of contexts; text marked by `_guard` goes in pieces, so that none holds a whole control token."""
        bos = self._text_bos
        rows = self._ids(texts)
        if self.template.form == "text":
            rows = [bos + row for row in rows]
        return [row or list(bos) or self._lone_bos for row in rows]

    def _encode_alone(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*row, self.terminator] for row in self._ids([self._guard(text) for text in texts])]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        pieces = [text.split(_MARK) for text in texts]
        flat = [piece for row in pieces for piece in row]
        encoded = iter(self.tokenizer(flat, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        return [[token for _ in row for token in next(encoded)] for row in pieces]

    @cached_property
    def _text_bos(self) -> list[int]:
        """[BOS] when the tokenizer itself starts a text with one, else []; chat templates bring their own."""
        first = self.tokenizer("a")["input_ids"][:1]
        return first if first and first[0] == self.tokenizer.bos_token_id else []

    @property
    def _lone_bos(self) -> list[int]:
        return [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]

    def _terminator(self) -> int:
        """The id that ends an answer: what the chat template puts after one, else the end-of-sequence token."""
        if self.tokenizer.chat_template:
            turns = [{"role": role, "content": f"srpo probe {role}"} for role in ("user", "assistant")]
            text = self._chat(turns, add_generation_prompt=False)
            if lost := [turn["role"] for turn in turns if turn["content"] not in text]:
                problem = f"the tokenizer's chat template leaves out what the {lost[0]} says"
                raise TemplateError(problem, expected="one that takes a message's content as a string")
            tail = text.rpartition(turns[-1]["content"])[2].lstrip()
            for token in self._control_tokens:
                if tail.startswith(token):
                    return int(self.tokenizer.convert_tokens_to_ids(token))
        if self.tokenizer.eos_token_id is None:
            fix = "set tokenizer.eos_token"
            raise TemplateError("the tokenizer has no token that ends an answer", where="tokenizer", fix=fix)
        return int(self.tokenizer.eos_token_id)


_MARK = (
    "\ufdd0\ufdef"  # two noncharacters; they stand inside control tokens written as text and are gone before encoding
)


def as_text(prompt: Prompt) -> str:
    """A prompt for a model without a chat template: text as it is, messages as a transcript that awaits its answer."""
    if isinstance(prompt, str):
        return prompt
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in prompt]
    return "\n\n".join([*turns, "Assistant:"])
