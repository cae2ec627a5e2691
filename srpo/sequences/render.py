"""Turns pairs into token ids, with a tokenizer and a revision template.

Training and revision both render here, so they never see different prompts. Answers are tokenised alone and appended
to the context ids, as generation does; the token that ends the model's turn belongs to the answer and is scored. Text
that looks like a control token is encoded as text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from srpo.data.read import ERRORS, Pair, Prompt, PromptRow, Refused, Reject
from srpo.data.values import THINK_START, split_thinking, transcript
from srpo.errors import DataError, TemplateError
from srpo.sequences.chat_template import MARK, ChatTemplate, ControlTokens
from srpo.sequences.encoder import Encoder
from srpo.sequences.picture_processor import PictureProcessor, tokenizer_of
from srpo.sequences.protocols import Options, Tokenizer
from srpo.sequences.templates import RevisionTemplate, template_for
from srpo.sequences.tree import TokenPair

__all__ = ["Renderer", "RevisionTemplate", "options_of", "template_for"]

CHUNK = 512  # number of pairs tokenised in one call


class Renderer:
    """Turns prompts, drafts and answers into token ids with one tokenizer and one revision template.

    Args:
        tokenizer: a transformers tokenizer; with a chat template prompts become turns, without one they stay text.
        template: the request for a revision; None takes `quote` for a tokenizer with a chat template and `plain` for
            one without, and `renderer.template.name` is the choice. A template of form "text" makes plain text with
            any tokenizer, and its chat template is not used.
        chat_template_kwargs: options of the chat template, such as `{"enable_thinking": False}`; they override those of
            the revision template, become part of it and are saved with it.
        no_chat_template: makes plain text although the tokenizer has a chat template.
        processor: the model's processor of pictures, or a function that loads it at the first picture.

    Raises:
        TemplateError: the template's form does not fit the tokenizer, the template was saved with another tokenizer,
            or the tokenizer has no token to end an answer.

    Example:
        >>> from srpo.tasks.carry import TEMPLATE, carry_tokenizer
        >>> renderer = Renderer(carry_tokenizer(), TEMPLATE)
        >>> renderer.tokenizer.decode(renderer.revision("12+34=", "046"))
        '<bos>12+34=046?'
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: RevisionTemplate | None = None,
        *,
        chat_template_kwargs: Options | None = None,
        no_chat_template: bool = False,
        processor: Any = None,
    ) -> None:
        if hasattr(tokenizer, "image_processor"):
            processor, tokenizer = tokenizer, tokenizer_of(tokenizer)
        self.tokenizer, self.pictures = tokenizer, PictureProcessor(processor)
        chat = bool(tokenizer.chat_template) and not no_chat_template
        self.template = template or RevisionTemplate.preset("quote" if chat else "plain")
        if chat_template_kwargs:
            self.template = self.template.with_options(chat_template_kwargs)
        place = f"revision template {self.template.name!r}"
        if self.template.form != "text" and not chat:
            problem = f"its form is {self.template.form!r} but " + (
                "no chat template is used" if no_chat_template else "the tokenizer has no chat template"
            )
            raise TemplateError(problem, where=place, fix="use --revision_template plain")
        if self.template.form == "text" and chat_template_kwargs:
            raise TemplateError(
                "its form is 'text', which uses no chat template", where=place, fix="leave chat_template_kwargs out"
            )
        self._encoder, self._control = Encoder(tokenizer), ControlTokens(tokenizer)
        self.chat = self._chat_template() if self.template.form != "text" else None
        self.terminator = self._terminator()
        self._expect_same_tokenizer()

    def _chat_template(self) -> ChatTemplate:
        try:
            return ChatTemplate(self.tokenizer, self._control)
        except TemplateError as error:
            where = str(self.tokenizer.name_or_path)
            raise TemplateError(error.what, where=where, expected=error.expected, fix=error.fix) from None

    # ------------------------------------------------------------------ contexts and answers

    def draft(self, prompt: Prompt, options: Options | None = None) -> list[int]:
        """Returns the token ids of the context from which the model drafts; `options` go to the chat template."""
        return self.drafts([prompt], [options])[0]

    def revision(self, prompt: Prompt, draft: str, options: Options | None = None) -> list[int]:
        """Returns token ids of the context from which the model revises `draft`; `options` go to the chat template."""
        return self.revisions([prompt], [draft], [options])[0]

    def answer(self, text: str, options: Options | None = None) -> list[int]:
        """Returns the token ids of an answer as the chat template renders it, its terminator included."""
        return self.answers([text], [options])[0]

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Returns for each prompt the token ids of the context from which the model drafts an answer.

        Args:
            options: for the chat template, one mapping per prompt: `tools`, and any other variable that it reads.
        """
        given = options or [None] * len(prompts)
        texts = [self._context(prompt, None, each) for prompt, each in zip(prompts, given, strict=True)]
        return self._pictured(self._encode(texts), texts, prompts)

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[list[int]]:
        """Returns for each prompt the token ids of the context from which the model revises its draft."""
        given = options or [None] * len(prompts)
        texts = [self._context(*each) for each in zip(prompts, drafts, given, strict=True)]
        return self._pictured(self._encode(texts), texts, prompts)

    def answers(self, texts: Sequence[str], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """Returns the token ids of each answer, its terminator included; `options` are those of the chat template."""
        given = options or [None] * len(texts)
        return self._answers([(text, each, False) for text, each in zip(texts, given, strict=True)])

    def _answers(self, given: Sequence[tuple[str, Options | None, bool]]) -> list[list[int]]:
        """Token ids of answers, given as (answer, options, whether thinking had its own key in the message)."""
        texts = [self._control.marked_answer(text) for text, _, _ in given]
        if self.chat is not None:
            chat, rest = self.chat, [(self._options(options), parts) for _, options, parts in given]
            texts = [chat.scored(text, *each) for text, each in zip(texts, rest, strict=True)]
        return [[*row, self.terminator] for row in self._encoder.ids(texts)]

    def decode(self, ids: Sequence[int], options: Options | None = None) -> str:
        """Returns the text of an answer from its token ids, up to the end of the model's turn.

        Thinking comes first, between `<think>` and `</think>`, even if the chat template has other marks for it.

        Args:
            options: the chat template's options for the answer's context.
        """
        stops = [i for i, token in enumerate(ids) if token in self.stop_ids]
        ids = list(ids[: stops[0]] if stops else ids)
        if self.chat is None:
            return self._text(ids)
        form = self.chat.form(self._options(options))
        around = form.lead + form.opening + form.closing
        kept = {
            self.tokenizer.convert_tokens_to_ids(token): token for token in self._control.special if token in around
        }
        text, run = "", list[int]()
        for token in [*ids, None]:  # drops all special tokens except those that the template writes around an answer
            if token is not None and token not in kept:
                run.append(token)
            else:
                text += self._text(run) + kept.get(token, "")
                run = []
        return form.read(text)

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
        return text

    def read(self, text: str, options: Options | None = None) -> str:
        """Returns a server's text as an answer: `<think>`, thinking and `</think>` if there are any, then content."""
        return text if self.chat is None else self.chat.form(self._options(options)).read(text)

    def undecided(self, text: str, options: Options | None = None) -> bool:
        """True if a server's answer of which only `text` has arrived may still turn out to be thinking or a mark."""
        if self.chat is None:
            return False
        form = self.chat.form(self._options(options))
        marks = (form.lead, form.opening, form.closing, THINK_START)
        return bool(form.tail.strip()) or any(mark.strip().startswith(text.strip()) for mark in marks if mark.strip())

    def content_of(self, answer: str) -> str:
        """Returns an answer without its thinking; "" if it was cut off while thinking."""
        return answer if self.chat is None else self.chat.content(answer)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids at which generation ends: the terminator and the tokenizer's end-of-sequence token."""
        return tuple(dict.fromkeys(t for t in (self.terminator, self._encoder.special_id("eos")) if t is not None))

    # ------------------------------------------------------------------ six sequences

    def six(self, pair: Pair) -> list[TokenPair]:
        """Returns six (context ids, answer ids) sequences of a pair: both answers as drafts and as revisions."""
        return next(self.sixes([pair]))

    def sixes(self, pairs: Iterable[Pair]) -> Iterator[list[TokenPair]]:
        """Yields six (context ids, answer ids) sequences of each pair: both answers as drafts and as revisions.

        Raises:
            DataError: a pair has no token to score its answer at, or its prompt does not end with the user's message.
            TemplateError: the chat template rejects a conversation; the error names the row.
        """
        for pair, six in self.rendered(pairs):
            if isinstance(six, Reject):
                raise ERRORS.get(type(six), DataError)(six.reason, where=pair.where)
            yield six

    def rendered(self, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, list[TokenPair] | Reject]]:
        """Yields each pair with its six (context ids, answer ids) sequences, or with the reason why it has none."""
        remaining = iter(pairs)
        while chunk := list(islice(remaining, CHUNK)):
            texts = [self._contexts(pair) for pair in chunk]
            contexts = iter(self._encode([text for each in texts if not isinstance(each, Reject) for text in each]))
            both = [(text, options_of(pair), pair.reasoned) for pair in chunk for text in (pair.chosen, pair.rejected)]
            answers = iter(self._answers(both))
            for pair, each in zip(chunk, texts, strict=True):
                w, l = next(answers), next(answers)
                if isinstance(each, Reject):
                    yield pair, each
                    continue
                x, xw, xl = self._pictured([next(contexts) for _ in each], each, [pair.prompt] * 3)
                if not x:
                    yield pair, Reject(pair.where, "the prompt is empty and the tokenizer has no BOS token")
                else:
                    pieces = ((x, w), (x, l), (xw, w), (xw, l), (xl, w), (xl, l))
                    yield pair, [TokenPair(context, answer) for context, answer in pieces]

    def _contexts(self, pair: Pair) -> list[str] | Reject:
        """A pair's three contexts as text: for a draft, a revision of `chosen` and one of `rejected`; or a reject."""
        try:
            self.expect_shown(pair)
            options = options_of(pair)
            for answer in (pair.chosen, pair.rejected):
                if self.chat is not None and self.chat.thinking:
                    self.chat.expect_answerable(answer, self._options(options))
                elif pair.reasoned and split_thinking(answer)[0] is not None:
                    raise DataError("an answer has thinking, which the chat template would leave out", where=pair.where)
            return [self._context(pair.prompt, draft, options) for draft in (None, pair.chosen, pair.rejected)]
        except (DataError, TemplateError) as error:
            if self._is_ours(error, pair):
                raise
            reject = Refused if isinstance(error, TemplateError) else Reject
            return reject(pair.where, str(error).removeprefix(f"{pair.where}: "))

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Checks that the chat template accepts the row, and that the model sees everything in it.

        Raises:
            DataError: the row has tools or options, and the tokenizer has no chat template or the template no tools.
            TemplateError: the chat template rejects the prompt.
        """
        options = options_of(row)
        self.pictures.expect_served(row.prompt, row.where, chat=self.chat is not None)
        turns = [] if isinstance(row.prompt, str) else row.prompt
        # `tool_call_id` only links two messages and few templates write it, so only a lost `name` is an error.
        named = any("name" in turn for turn in turns)
        if self.chat is None:
            if options:
                problem = "tools and chat_template_kwargs need a chat template, and none is used"
                raise DataError(problem, where=row.where)
            if named:
                raise DataError("a message has a 'name', which plain text does not show", where=row.where)
            return
        if isinstance(row, Pair) and not row.tools and not named:
            return  # rendering its contexts, the next step, raises the same errors
        shown = self._shown(row, options)
        without = [{part: value for part, value in turn.items() if part != "name"} for turn in turns]
        if named and shown == self._context(without, None, options):
            raise DataError("a message has a 'name', which the chat template leaves out", where=row.where)
        if row.tools and shown == self._shown(row, row.chat_template_kwargs):
            raise DataError("the chat template shows no tools, and the row has some", where=row.where)

    def _shown(self, row: Pair | PromptRow, options: Options | None) -> str:
        """The context for a draft as text, to check what the model sees; errors name the row and the tokenizer."""
        try:
            return self._context(row.prompt, None, options)
        except (DataError, TemplateError) as error:
            if self._is_ours(error, row):
                raise
            source = self.tokenizer.name_or_path
            fix = f"change the row or leave it out; the template is that of {source}" if source else error.fix
            raise type(error)(error.what, where=row.where, expected=error.expected, fix=fix) from None

    @staticmethod
    def _is_ours(error: DataError | TemplateError, row: Pair | PromptRow) -> bool:
        """True if the revision template caused the error; an error that the row caused names the row as its place."""
        return error.where not in ("", row.where)

    # ------------------------------------------------------------------ identity

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides a row's token ids: revision template, tokenizer, chat template."""
        thinking = ["thinking"] if self.chat is not None and self.chat.thinking else []
        source = self.tokenizer.chat_template if self.chat is not None else None
        return _sha256([self.template.identity(), source, *self._vocabulary, *thinking])

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 over everything in the tokenizer that decides a text's token ids."""
        return _sha256(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> list[Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            state: Any = sorted(self.tokenizer.get_vocab().items())
        else:  # padding and truncation remain from the tokenizer's last call; no token id depends on them
            state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        return [state, self._control.control, [self._encoder.text_bos, self._encoder.lone_bos, *self.stop_ids]]

    def _expect_same_tokenizer(self) -> None:
        saved = self.template.sha256
        if saved and saved != self.fingerprint:
            raise TemplateError(
                f"was saved with a tokenizer or chat template of sha256 {saved}, and this one makes {self.fingerprint}",
                where=f"revision template {self.template.name!r}",
                expected="the tokenizer that the model was trained with",
                fix="restore it, or name the template with --revision_template to take it as it is",
            )

    @cached_property
    def notes(self) -> list[str]:
        """Unexpected habits of the chat template, such as "refuses a system message"; [] without any."""
        return self.chat.notes if self.chat else []

    # ------------------------------------------------------------------ text

    def _context(self, prompt: Prompt, draft: str | None, options: Options | None = None) -> str:
        """The text of the context for revising `draft`, or for a first draft if `draft` is None."""
        marked = self._control.marked
        if self.chat is None:  # a prompt with pictures was refused by `expect_shown`
            text = marked(transcript(prompt))
            return self._filled(text) if draft is None else self._filled(text, draft)
        turns = self.template.asking(
            self.chat.turns(prompt),
            draft if draft is None or self.template.show_thinking else self.chat.content(draft),
            fill=self._filled,
            own=self._control.marked_answer,
        )
        return self.chat.render(turns, self._options(options))

    def _options(self, options: Options | None) -> Options:
        given: Options = self._control.marked_value({**self.template.chat_template_kwargs, **(options or {})})
        return given

    def _filled(self, prompt: str, *draft: str) -> str:
        """The request for a draft, or for a revision if a draft is given, filled in from the revision template.

        Args:
            prompt: the prompt with `MARK` inside its control tokens.
            draft: the draft without any `MARK`, or nothing.

        Where prompt, draft and template meet, their letters may form a control token. Then `MARK` separates them. It
        does so only then, because it would also split ordinary tokens at these places.
        """
        given = (prompt, *map(self._control.marked, draft))
        text = self.template.fill(*given)
        half = any(each.endswith(MARK[0]) or each.startswith(MARK[1]) for each in given)
        made = [token for token in self._control.found_in(text) if token != MARK]
        if half or any(text.count(token) > self._own[len(given)].count(token) for token in made):
            return self.template.fill(*(f"{MARK}{each}{MARK}" for each in given))
        return text

    @cached_property
    def _own(self) -> dict[int, str]:
        """Requests for a draft (key 1) and a revision (2) of single letters: they show the template's own tokens."""
        return {1: self.template.fill("p"), 2: self.template.fill("p", "d")}

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each context; plain text begins with BOS if the tokenizer writes one."""
        bos = self._encoder.text_bos
        rows = self._encoder.ids(texts)
        if self.template.form == "text":
            rows = [bos + row for row in rows]
        return [row or list(bos) or self._encoder.lone_bos for row in rows]

    def _pictured(self, rows: list[list[int]], texts: Sequence[str], prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of contexts (`rows`) with those of the pictures in place of their placeholders."""
        return [self.pictures.expanded(*each, self._encode) for each in zip(rows, texts, prompts, strict=True)]

    def _terminator(self) -> int:
        """The token id that ends an answer: the chat template's token after an answer, else the EOS token."""
        if self.chat is not None and self.chat.terminator is not None:
            return int(self.tokenizer.convert_tokens_to_ids(self.chat.terminator))
        eos = self._encoder.special_id("eos")
        if eos is None:
            fix = "set tokenizer.eos_token"
            raise TemplateError("the tokenizer has no token that ends an answer", where="tokenizer", fix=fix)
        return eos


def options_of(row: Pair | PromptRow) -> Options | None:
    """Returns the row's variables for the chat template: `tools` and its `chat_template_kwargs`; None without any."""
    tools = {"tools": row.tools} if row.tools else {}
    return {**tools, **(row.chat_template_kwargs or {})} or None


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
