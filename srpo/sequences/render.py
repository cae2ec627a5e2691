"""Pairs + tokenizer + revision template → token ids. The only owner of templates.

Training and revision both ask here, so they can never see different prompts. Answers are tokenised alone and appended
to the context ids, as generation does; the token that ends the model's turn belongs to the answer and is scored. Text
that merely looks like a control token is encoded as text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from srpo.data.read import Pair, Prompt, PromptRow, Reject
from srpo.data.values import transcript
from srpo.errors import DataError, TemplateError
from srpo.sequences.chat_template import MARK, ChatTemplate, Guard
from srpo.sequences.templates import PRESETS, TEMPLATE_FILE, RevisionTemplate, template_for
from srpo.sequences.tree import TokenPair

__all__ = ["PRESETS", "TEMPLATE_FILE", "Renderer", "RevisionTemplate", "options_of", "template_for"]

CHUNK = 512
Options = Mapping[str, Any]


class Renderer:
    """Turns prompts, drafts and answers into token ids with one tokenizer and one revision template.

    Args:
        tokenizer: a transformers tokenizer; with a chat template prompts become turns, without one they stay text.
        template: how a draft is shown; None takes `quote` for a tokenizer with a chat template and `plain` without,
            and `renderer.template.name` says which.

    Raises:
        TemplateError: the template's form does not fit the tokenizer, it was saved with another tokenizer, or the
            tokenizer has no token to end an answer.

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
        self._guard = Guard(tokenizer)
        self.chat = self._chat_template() if chat else None
        self.terminator = self._terminator()
        self._expect_what_was_saved()

    def _chat_template(self) -> ChatTemplate:
        try:
            return ChatTemplate(self.tokenizer, self._guard)
        except TemplateError as error:  # which tokenizer it was, it does not know
            where = str(self.tokenizer.name_or_path)
            raise TemplateError(error.what, where=where, expected=error.expected, fix=error.fix) from None

    # ------------------------------------------------------------------ contexts and answers

    def draft(self, prompt: Prompt, options: Options | None = None) -> list[int]:
        """Ids the model drafts from."""
        return self._encode([self._draft_text(prompt, options)])[0]

    def revision(self, prompt: Prompt, draft: str, options: Options | None = None) -> list[int]:
        """Ids the model revises `draft` from."""
        return self._encode([self._revision_text(prompt, draft, options)])[0]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer, its terminator included."""
        return self.answers([text])[0]

    def drafts(self, prompts: Sequence[Prompt], options: Sequence[Options | None] | None = None) -> list[list[int]]:
        """`draft` for many prompts at once.

        Args:
            options: for the chat template, one mapping per prompt: `tools`, and whatever else it reads.
        """
        given = options or [None] * len(prompts)
        return self._encode([self._draft_text(*each) for each in zip(prompts, given, strict=True)])

    def revisions(
        self, prompts: Sequence[Prompt], drafts: Sequence[str], options: Sequence[Options | None] | None = None
    ) -> list[list[int]]:
        """`revision` for many prompts at once."""
        given = options or [None] * len(prompts)
        return self._encode([self._revision_text(*each) for each in zip(prompts, drafts, given, strict=True)])

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """`answer` for many texts at once."""
        return [[*row, self.terminator] for row in self._ids([self._guard.answer(text) for text in texts])]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer ids, up to where the model ended its turn.

        Thinking that ends in a special token leaves no trace of its end in a text, so it goes, as in the template.
        """
        ids = list(ids)
        stops = [i for i, token in enumerate(ids) if token in self.stop_ids]
        ids = ids[: stops[0]] if stops else ids
        thought = [i for i, token in enumerate(ids) if token in self._thinking_ids]
        return self.tokenizer.decode(ids[thought[-1] + 1 :] if thought else ids, skip_special_tokens=True)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends: the terminator and the tokenizer's end-of-sequence token."""
        return tuple(dict.fromkeys(t for t in (self.terminator, self.tokenizer.eos_token_id) if t is not None))

    @cached_property
    def _thinking_ids(self) -> tuple[int, ...]:
        ends = [end for end in self.chat.thinking_ends if end in self._guard.special] if self.chat else []
        return tuple(self.tokenizer.convert_tokens_to_ids(ends))

    def six(self, pair: Pair) -> list[TokenPair]:
        """The six (context ids, answer ids) of a pair, in the order of `SixLogps`."""
        return next(self.sixes([pair]))

    def sixes(self, pairs: Iterable[Pair]) -> Iterator[list[TokenPair]]:
        """`six` for many pairs, tokenised in batches.

        Raises:
            DataError: a pair has no token to score its answer at, or its prompt ends in another turn than the user's.
            TemplateError: the chat template refuses a conversation; says which row it is.
        """
        for pair, six in self.rendered(pairs):
            if isinstance(six, Reject):
                raise (TemplateError if "chat template" in six.reason else DataError)(six.reason, where=pair.where)
            yield six

    def rendered(self, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, list[TokenPair] | Reject]]:
        """Each pair with its six, or with the reason why it has none; reads ahead by one batch."""
        remaining = iter(pairs)
        while chunk := list(islice(remaining, CHUNK)):
            found = [self._texts(pair) for pair in chunk]
            texts = [text for each in found if not isinstance(each, Reject) for text in each]
            contexts = iter(self._encode(texts))
            answers = iter(self.answers([text for pair in chunk for text in (pair.chosen, pair.rejected)]))
            for pair, each in zip(chunk, found, strict=True):
                w, l = next(answers), next(answers)
                if isinstance(each, Reject):
                    yield pair, each
                    continue
                x, xw, xl = next(contexts), next(contexts), next(contexts)
                if not x:
                    yield pair, Reject(pair.where, _NO_BOS)
                else:
                    pieces = ((x, w), (x, l), (xw, w), (xw, l), (xl, w), (xl, l))
                    yield pair, [TokenPair(context, answer) for context, answer in pieces]

    def _texts(self, pair: Pair) -> tuple[str, str, str] | Reject:
        """The draft context, and the revision contexts of the chosen and of the rejected answer."""
        try:
            self.expect_shown(pair)
            options = options_of(pair)
            return (
                self._draft_text(pair.prompt, options),
                self._revision_text(pair.prompt, pair.chosen, options),
                self._revision_text(pair.prompt, pair.rejected, options),
            )
        except (DataError, TemplateError) as error:
            if str(error).startswith("revision template"):  # its own fault, not the row's
                raise
            return Reject(pair.where, str(error).removeprefix(f"{pair.where}: "))

    def expect_shown(self, row: Pair | PromptRow) -> None:
        """Whether the chat template takes the row, and what the row hands to it comes to the model's eyes.

        Raises:
            DataError: there is no chat template, or it shows no tools and the row has some.
            TemplateError: the chat template refuses the prompt.
        """
        options = options_of(row)
        if self.chat is None:
            if options:
                problem = "tools and chat_template_kwargs need a chat template, and the tokenizer has none"
                raise DataError(problem, where=row.where)
            return
        if isinstance(row, Pair) and not row.tools:
            return  # its contexts are rendered next, and tell
        shown = self._shown(row, options)
        if row.tools and shown == self._shown(row, row.chat_template_kwargs):
            raise DataError("the chat template shows no tools, and the row has some", where=row.where)

    def _shown(self, row: Pair | PromptRow, options: Options | None) -> str:
        """The text a draft is made from; whatever refuses the row names it, and whose template it is."""
        try:
            return self._draft_text(row.prompt, options)
        except (DataError, TemplateError) as error:
            if error.where:  # the revision template's own fault, not the row's
                raise
            whose = self.tokenizer.name_or_path
            fix = f"change the row or leave it out; the template is that of {whose}" if whose else error.fix
            raise type(error)(error.what, where=row.where, expected=error.expected, fix=fix) from None

    # ------------------------------------------------------------------ identity

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that decides which ids a row becomes: template, tokenizer, chat template."""
        parts = [self.template.identity(), self.tokenizer.chat_template, *self._vocabulary]
        return _sha256(parts)

    @cached_property
    def tokenizer_hash(self) -> str:
        """sha256 over everything that decides which ids a text becomes."""
        return _sha256(self._vocabulary)

    @cached_property
    def _vocabulary(self) -> list[Any]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            state = sorted(self.tokenizer.get_vocab().items())
        else:  # padding and truncation are left over from the tokenizer's last call, and have no part in ours
            state = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
        return [state, self._guard.control, [self._text_bos, self._lone_bos, *self.stop_ids]]

    def _expect_what_was_saved(self) -> None:
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
        """What the chat template does that one would not expect, a clause each."""
        return self.chat.notes if self.chat else []

    # ------------------------------------------------------------------ text

    def _draft_text(self, prompt: Prompt, options: Options | None = None) -> str:
        if self.chat is None:
            return self._filled(self._guard.content(transcript(prompt)))
        turns = self.chat.turns(prompt)
        if self.template.form == "quote":
            turns[-1]["content"] = self._filled(turns[-1]["content"])
        return self.chat.render(turns, self._options(options))

    def _revision_text(self, prompt: Prompt, draft: str, options: Options | None = None) -> str:
        if self.chat is None:
            return self._filled(self._guard.content(transcript(prompt)), self._guard.answer(draft))
        turns, draft = self.chat.turns(prompt), self.chat.shown(draft)
        asked = turns[-1]["content"]
        if self.template.form == "quote":
            turns[-1]["content"] = self._filled(asked, self._guard.content(draft))
        else:
            turns.append({"role": "assistant", "content": self._guard.answer(draft)})
            turns.append({"role": "user", "content": self._filled(asked, self._guard.content(draft))})
        return self.chat.render(turns, self._options(options))

    def _filled(self, *given: str) -> str:
        """The text of a draft's prompt, or of a revision's where a draft is given too. Where one of them meets the
        other, or the template, they may make a control token that neither holds; then, and only then, marks go between.
        """
        fill = self.template.fill_revision if len(given) > 1 else self.template.fill_draft
        text = fill(*given)
        half = any(each.endswith(MARK[0]) or each.startswith(MARK[1]) for each in given)
        made = [token for token in self._guard.held(text) if token != MARK]
        if not half and not made:
            return text
        if half or any(text.count(token) > self._own[len(given)].count(token) for token in made):
            return fill(*(f"{MARK}{each}{MARK}" for each in given))
        return text

    @cached_property
    def _own(self) -> dict[int, str]:
        """What the template writes around a prompt, and around a prompt and a draft."""
        return {1: self.template.fill_draft("p"), 2: self.template.fill_revision("p", "d")}

    def _options(self, options: Options | None) -> Options:
        found: Options = self._guard.within({**self.template.chat_template_kwargs, **(options or {})})
        return found

    # ------------------------------------------------------------------ ids

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of contexts; text marked by the guard goes in pieces, so that none holds a whole control token."""
        bos = self._text_bos
        rows = self._ids(texts)
        if self.template.form == "text":
            rows = [bos + row for row in rows]
        return [row or list(bos) or self._lone_bos for row in rows]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        pieces = [text.split(MARK) for text in texts]
        flat = [piece for row in pieces for piece in row]
        encoded = iter(self._encoded(flat))
        return [next(encoded) if len(row) == 1 else [id_ for _ in row for id_ in next(encoded)] for row in pieces]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        if not self._plainly_fast:
            return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        self.tokenizer("", add_special_tokens=False)  # takes back padding and truncation that a caller may have set
        quick = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in quick]

    @cached_property
    def _plainly_fast(self) -> bool:
        """Whether the library below may be asked at once, without the offsets that nobody here reads."""
        from transformers import PreTrainedTokenizerFast

        encode = getattr(type(self.tokenizer), "_encode_plus", None)
        return encode is not None and encode is getattr(PreTrainedTokenizerFast, "_encode_plus", None)

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
        if self.chat is not None and self.chat.terminator is not None:
            return int(self.tokenizer.convert_tokens_to_ids(self.chat.terminator))
        if self.tokenizer.eos_token_id is None:
            fix = "set tokenizer.eos_token"
            raise TemplateError("the tokenizer has no token that ends an answer", where="tokenizer", fix=fix)
        return int(self.tokenizer.eos_token_id)


_NO_BOS = "the prompt is empty and the tokenizer has no BOS token"


def options_of(row: Pair | PromptRow) -> Options | None:
    """What a row hands to the chat template beside its messages: `tools`, and its `chat_template_kwargs`."""
    tools = {"tools": row.tools} if row.tools else {}
    return {**tools, **(row.chat_template_kwargs or {})} or None


def _sha256(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
