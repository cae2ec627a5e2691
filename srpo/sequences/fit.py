"""Rendered pairs that fit a length: the six sequences, or the reason why there are none. Nothing is cut unasked.

With `truncate="prompt"` the oldest part of a prompt goes, and nothing else: system messages, answers and their
terminators stay whole, and all six sequences are of the same shortened prompt, as generation would make them from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from srpo.data.read import Pair, Prompt, Reject, Undecided
from srpo.errors import ConfigError
from srpo.sequences.render import Renderer
from srpo.sequences.tree import TokenPair

TRUNCATE = ("none", "prompt")
SAME_TOKENS = "chosen and rejected become the same tokens, so neither is preferred"


class Fitted(NamedTuple):
    """One pair.

    Attributes:
        pair: as it was read.
        six: its six sequences, in the order of `SixLogps`, or why it has none.
        lengths: tokens before anything was cut: of the draft's context, of the chosen and of the rejected answer, of
            the six sequences, of the longest of them; () where they could not be rendered.
        cut: tokens cut from its prompt.
    """

    pair: Pair
    six: list[TokenPair] | Reject
    lengths: tuple[int, ...]
    cut: int


def fitted(
    renderer: Renderer, pairs: Iterable[Pair], *, max_length: int | None, truncate: str = "none"
) -> Iterator[Fitted]:
    """Every pair in its order, those over `max_length` tokens rejected or cut.

    Raises:
        ConfigError: there is no such way to truncate, or the tokenizer cannot say where its tokens stand in a text.
    """
    if truncate not in TRUNCATE:
        raise ConfigError(f"{truncate!r}", where="truncate", expected="one of " + ", ".join(TRUNCATE))
    if truncate == "prompt" and not renderer.tokenizer.is_fast:
        raise ConfigError("'prompt' needs a fast tokenizer", where="truncate", fix="use truncate none")
    for pair, six in renderer.rendered(pairs):
        if isinstance(six, Reject):
            yield Fitted(pair, six, (), 0)
            continue
        longest = longest_of(six)
        lengths = (len(six[0].context), len(six[0].answer), len(six[1].answer), *_lengths(six), longest)
        if six[0].answer == six[1].answer:
            yield Fitted(pair, Undecided(pair.where, SAME_TOKENS), lengths, 0)
        elif max_length is None or longest <= max_length:
            yield Fitted(pair, six, lengths, 0)
        elif truncate == "none":
            yield Fitted(pair, _too_long(pair, six, max_length), lengths, 0)
        else:
            shorter = _shortened(renderer, pair, six, max_length)
            cut = 0 if isinstance(shorter, Reject) else longest - longest_of(shorter)
            yield Fitted(pair, shorter, lengths, cut)


def longest_of(six: list[TokenPair]) -> int:
    """Tokens of the longest of the sequences."""
    return max(_lengths(six))


def _lengths(six: list[TokenPair]) -> list[int]:
    return [len(context) + len(answer) for context, answer in six]


def _too_long(pair: Pair, six: list[TokenPair], limit: int, why: str = "") -> Reject:
    lengths = _lengths(six)
    drafts, revisions = lengths[:2], lengths[2:]
    reason = f"{max(lengths)} tokens, over the limit of {limit} (as drafts {drafts}, as revisions {revisions})"
    return Reject(pair.where, reason + why)


def _shortened(renderer: Renderer, pair: Pair, six: list[TokenPair], limit: int) -> list[TokenPair] | Reject:
    """The six of the pair with as little of its prompt cut as will do."""
    prompt, now = pair.prompt, six
    while longest_of(now) > limit:  # more than once where the cut text is tokenised into more than was left of it
        shorter = cut_oldest(renderer.tokenizer, prompt, longest_of(now) - limit)
        if shorter is None:
            return _too_long(pair, six, limit, ", which cutting its prompt does not mend")
        prompt = shorter
        [(_, found)] = renderer.rendered([replace(pair, prompt=prompt)])
        if isinstance(found, Reject):
            return found
        now = found
    return now


def cut_oldest(tokenizer: Any, prompt: Prompt, tokens: int) -> Prompt | None:
    """The prompt without the first so many tokens of what it says, at least; None if nothing would be left.

    Of messages, system ones stay. One that is cut whole is left out, and so is what follows it up to the next of the
    user's, since a conversation begins with the user.
    """
    if isinstance(prompt, str):
        return _cut_text(tokenizer, prompt, tokens) or None
    system = [message for message in prompt if message["role"] == "system"]
    rest = [message for message in prompt if message["role"] != "system"]
    while tokens > 0 and len(rest) > 1:
        text = _cut_text(tokenizer, rest[0]["content"], tokens)
        if text:
            return [*system, {**rest[0], "content": text}, *rest[1:]]
        tokens -= _count(tokenizer, rest.pop(0)["content"])
        while len(rest) > 1 and rest[0]["role"] != "user":
            tokens -= _count(tokenizer, rest.pop(0)["content"])
    if tokens > 0:
        text = _cut_text(tokenizer, rest[0]["content"], tokens)
        rest = [{**rest[0], "content": text}] if text else []
    return [*system, *rest] if rest else None


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut_text(tokenizer: Any, text: str, tokens: int) -> str:
    """The text after its first so many tokens; a letter that is several tokens goes whole."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    left = text[spans[tokens - 1][1] :] if tokens < len(spans) else ""
    return left if left.strip() else ""
