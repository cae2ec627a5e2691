"""Revision templates: the texts that ask a model for a draft, and for a revision of a draft.

A template is a preset by name, a user's own `.jinja` file of two blocks, or the template saved in a model's folder.
`RevisionTemplate.asking` builds the messages of both requests; every renderer takes them from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srpo.data.values import Message, Prompt
from srpo.errors import DataError, InputError, TemplateError, did_you_mean

TEMPLATE_FILE = "revision_template.json"
FORMS = ("text", "quote", "turn")

# Jinja runs a template's expressions as Python, so they raise Python's errors.
TEMPLATE_FAILS = (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError)
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    """The compiled Jinja template, cached: compiling it again would take as long as rendering a row."""
    return _JINJA.from_string(source)


@dataclass(frozen=True)
class RevisionTemplate:
    r"""The request for a draft and the request for a revision of a draft, as Jinja texts.

    Attributes:
        name: the preset's name, or the name of its file.
        form: the part of the context that the Jinja texts make. "text": the whole context, for models without a chat
            template. "quote": the last user turn, with the draft quoted inside it. "turn": the user turn after the
            draft, which is the assistant's own turn.
        draft: Jinja over `prompt`; if it has a block named `draft`, that block alone.
        revision: Jinja over `prompt` and `draft`; if it has a block named `revision`, that block alone.
        chat_template_kwargs: options of the tokenizer's chat template, such as `{"enable_thinking": False}`; a row's
            own options override them.
        show_thinking: whether a draft is shown with its thinking.
        assumes: a sentence on the prompts and models that the template fits; "" for a user's own.
        sha256: the renderer's fingerprint when the template was saved with a model, "" otherwise; ignored by `==`.

    Example:
        >>> RevisionTemplate.preset("plain").fill_revision("Q: 2+2? A:", " 5")
        'Q: 2+2? A: 5\n\nA better answer:'
    """

    name: str
    form: str
    draft: str
    revision: str
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    show_thinking: bool = False
    assumes: str = field(default="", compare=False)
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise TemplateError(f"form {self.form!r}", where=self.name, expected="one of " + ", ".join(FORMS))
        for part in ("draft", "revision"):
            try:
                _compiled(getattr(self, part))
            except jinja2.TemplateSyntaxError as error:
                raise TemplateError(f"{part} is not Jinja: {error}", where=self.name) from None

    def asking(
        self,
        turns: list[Message],
        draft: str | None = None,
        *,
        fill: Callable[..., str] | None = None,
        own: Callable[[str], str] = str,
    ) -> list[Message]:
        """Returns the messages that ask for a draft, or for a revision of `draft`; `turns` stay unchanged.

        Args:
            turns: the prompt, its last message from the user.
            draft: the draft to revise; None asks for a draft.
            fill: makes the request's text from the prompt's last text and the draft; None takes the method `fill`.
            own: makes the text of the assistant's turn from the draft; used by the form "turn" alone.
        """
        given = (turns[-1]["content"],) if draft is None else (turns[-1]["content"], draft)
        if self.form != "turn":
            return [*turns[:-1], {**turns[-1], "content": (fill or self.fill)(*given)}]
        if draft is None:
            return [*turns]
        request = {"role": "user", "content": (fill or self.fill)(*given)}
        return [*turns, {"role": "assistant", "content": own(draft)}, request]

    def fill_draft(self, prompt: str) -> str:
        """Returns the text that asks for a draft of an answer to the prompt."""
        return self.fill(prompt)

    def fill_revision(self, prompt: str, draft: str) -> str:
        """Returns the text that asks for a revision of `draft`, an answer to the prompt."""
        return self.fill(prompt, draft)

    def fill(self, prompt: str, *draft: str) -> str:
        """Returns the text that asks for a draft of an answer to the prompt, or for a revision if a draft is given.

        Raises:
            TemplateError: the Jinja fails on these texts.
        """
        part, texts = ("revision", {"prompt": prompt, "draft": draft[0]}) if draft else ("draft", {"prompt": prompt})
        try:
            template = _compiled(getattr(self, part))
            if block := template.blocks.get(part):
                return "".join(block(template.new_context(texts)))
            return template.render(**texts)
        except TEMPLATE_FAILS as error:
            raise TemplateError(str(error), where=f"revision template {self.name!r}") from None

    def identity(self) -> dict[str, Any]:
        """Returns the template's name and all fields that decide its texts, as name → value, for a fingerprint."""
        parts = ("name", "form", "draft", "revision", "chat_template_kwargs")
        shown = {"show_thinking": True} if self.show_thinking else {}
        return {**{part: getattr(self, part) for part in parts}, **shown}

    def with_options(self, options: Mapping[str, Any]) -> RevisionTemplate:
        """Returns a copy with further options of the chat template, and without the saved fingerprint."""
        return replace(self, chat_template_kwargs={**self.chat_template_kwargs, **options}, sha256="")

    @classmethod
    def preset(cls, name: str) -> RevisionTemplate:
        """Returns the preset of that name, such as "quote", "turn" or "plain".

        Raises:
            TemplateError: no such preset.
        """
        if name not in REVISION_PRESETS:
            fix = did_you_mean(name, REVISION_PRESETS)
            expected = "a file, or one of " + ", ".join(REVISION_PRESETS)
            raise TemplateError(f"no preset {name!r}", expected=expected, fix=fix)
        return REVISION_PRESETS[name]

    @classmethod
    def load(cls, path: str | Path) -> RevisionTemplate:
        """Reads the template from a `.jinja` file of two blocks, a JSON file, or a saved model's folder.

        Raises:
            InputError: no such file, or no permission to read it.
            TemplateError: the file is not a revision template.
        """
        file = Path(path) / TEMPLATE_FILE if Path(path).is_dir() else Path(path)
        try:
            text = file.read_text("utf-8")
            if file.suffix in (".jinja", ".j2"):
                found = _settings(text, file)
                shown = bool(found.get("show_thinking", False))
                return cls(file.name, found["form"], text, text, found.get("chat_template_kwargs", {}), shown)
            row = json.loads(text)
            name, form, draft, revision = (row[key] for key in ("name", "form", "draft", "revision"))
            options, shown = dict(row.get("chat_template_kwargs", {})), bool(row.get("show_thinking", False))
            template = cls(name, form, draft, revision, options, shown)
            return replace(template, assumes=str(row.get("assumes", "")), sha256=str(row.get("sha256", "")))
        except FileNotFoundError:
            fix = f"name one with --revision_template ({', '.join(REVISION_PRESETS)} or a file)"
            raise InputError("no revision template", where=str(file), fix=fix) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(file)) from None
        except (ValueError, KeyError, TypeError):
            expected = "a JSON object with name, form, draft and revision, or a .jinja file"
            raise TemplateError("not a revision template", where=str(file), expected=expected) from None

    def save(self, folder: str | Path, fingerprint: str = "") -> None:
        """Writes the revision template into a model's folder, from which it is loaded with the model.

        Args:
            fingerprint: `Renderer.fingerprint`, which shows later whether the tokenizer has changed.
        """
        row = {"format": 1, **asdict(self), "sha256": fingerprint}
        (Path(folder) / TEMPLATE_FILE).write_text(json.dumps(row, ensure_ascii=False, indent=2) + "\n", "utf-8")


def template_for(model: str, asked: str | None) -> RevisionTemplate | None:
    """Returns the revision template for a model: the one asked for, else the one saved with the model, else None.

    For None, `Renderer` chooses a preset. A template that is asked for is used with any tokenizer. A template saved
    with the model holds the renderer's fingerprint, and `Renderer` rejects any other tokenizer.

    Args:
        model: the model's folder.
        asked: name of a preset or path of a file; None asks for none.

    Raises:
        TemplateError: `asked` is neither a preset nor a file.
    """
    if asked is not None:
        if asked not in REVISION_PRESETS and (Path(asked).exists() or Path(asked).suffix):
            return replace(RevisionTemplate.load(asked), sha256="")
        return RevisionTemplate.preset(asked)
    return RevisionTemplate.load(model) if model and (Path(model) / TEMPLATE_FILE).is_file() else None


def conversation(prompt: Prompt) -> list[Message]:
    """Returns the prompt as messages that end with the user's; text becomes one user message.

    Raises:
        DataError: the last message is not the user's, or there is no message.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not turns or turns[-1]["role"] != "user":
        last = f"ends in a message of role {turns[-1]['role']!r}" if turns else "has no message"
        raise DataError(f"the prompt {last}", expected="a user message last")
    return turns


def _settings(source: str, file: Path) -> Mapping[str, Any]:
    """Reads a revision template's settings, such as its form: the constants set outside the blocks of a `.jinja` file.

    Args:
        source: the file's text.
        file: its path, for errors.

    Raises:
        TemplateError: the file is not Jinja, or lacks a block or the form.
    """
    try:
        tree = _JINJA.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"not Jinja: {error}", where=f"{file}:{error.lineno}") from None
    missing = {"draft", "revision"} - {block.name for block in tree.find_all(nodes.Block)}
    if missing:
        expected = "{% block draft %}…{% endblock %} and {% block revision %}…{% endblock %}"
        raise TemplateError(f"no block {min(missing)!r}", where=str(file), expected=expected)
    found: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, nodes.Assign) and isinstance(line.target, nodes.Name) and isinstance(line.node, nodes.Expr):
            try:
                found[line.target.name] = line.node.as_const()
            except nodes.Impossible:  # the value is calculated, not a constant
                continue
    if not isinstance(found.get("form"), str):
        expected = '{% set form = "quote" %}, or "turn" or "text"'
        raise TemplateError("no form is set", where=str(file), expected=expected)
    if not isinstance(found.get("chat_template_kwargs", {}), dict):
        expected = '{% set chat_template_kwargs = {"enable_thinking": false} %}'
        raise TemplateError("chat_template_kwargs is not a mapping", where=str(file), expected=expected)
    return found


def _summary(first: str, fields: str, example: str) -> tuple[str, str]:
    """Builds the paper's requests for a summary, as Jinja texts: one for a draft, one for a revision.

    Args:
        first: the paper's words for the text to summarise.
        fields: names of the text's fields.
        example: the paper's words for the draft.
    """
    source = '{% set given = (prompt | trim).removesuffix("TL;DR:") | trim %}'
    ask = f"Write a both precise and concise summary of the contents of the {first.split()[-1]}."
    head = f"Below is {first} and the corresponding {fields}"
    draft = f"{source}{head.replace(', TITLE', ' and TITLE')}. {ask}\n\n{{{{ given }}}}\n\nTL;DR:"
    shown = "{{ given }}\n\nEXAMPLE SUMMARY: {{ draft | trim }}\n\nTL;DR:"
    return draft, f"{source}{head}, and {example}. {ask}\n\n{shown}"


REVISION_PRESETS = {
    template.name: template
    for template in (
        RevisionTemplate(
            "quote",
            "quote",
            "{{ prompt }}",
            "{{ prompt }}\n\nHere is an example of an answer:\n\n{{ draft }}\n\n"
            "Using it as you see fit, write the best answer you can.",
            assumes="a chat template that shows a user message",
        ),
        RevisionTemplate(
            "turn",
            "turn",
            "{{ prompt }}",
            "Revise your answer. Write the best answer you can.",
            assumes="a chat template that shows an assistant message between two user messages",
        ),
        RevisionTemplate(
            "plain",
            "text",
            "{{ prompt }}",
            "{{ prompt }}{{ draft }}\n\nA better answer:",
            assumes="prompts of plain text that end where the answer begins; no chat template is used",
        ),
        RevisionTemplate(
            "paper-tldr",
            "text",
            *_summary("a reddit POST", "SUBREDDIT, TITLE", "an EXAMPLE SUMMARY"),
            assumes="prompts of plain text, made of SUBREDDIT, TITLE and POST fields, with or without 'TL;DR:' at the "
            "end; the paper gives the words but not the blank lines between them",
        ),
        RevisionTemplate(
            "paper-xsum",
            "text",
            *_summary("an ARTICLE", "ID, TITLE", "an EXAMPLE SUMMARY"),
            assumes="prompts of plain text, made of ARTICLE, ID and TITLE fields, with or without 'TL;DR:' at the end; "
            "the paper says only that it is like paper-tldr",
        ),
    )
}
