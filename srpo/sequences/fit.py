"""Makes six sequences of each pair (two drafts, four revisions) within a length limit, or the reason for a reject.

With `truncate="prompt"` the oldest part of a prompt is cut, and nothing else. System messages, answers and their
terminators stay whole, and all six sequences come from the same shortened prompt, as generation would make them.

`StoredPairs` keeps rendered pairs on disk, so that each pair is tokenised once for `srpo check` and training.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from srpo.data.pictures import pictures_of
from srpo.data.read import REJECTS, Pair, Prompt, Reject, TooLong, Undecided
from srpo.errors import ConfigError
from srpo.sequences.parallel import mapped
from srpo.sequences.protocols import Tokenizer
from srpo.sequences.render import Renderer
from srpo.sequences.tree import PrefixTree, TokenPair
from srpo.sequences.tree_store import PairStore, RenderedPair

TRUNCATE = ("none", "prompt")
SAME_TOKENS = "chosen and rejected become the same tokens, so neither is preferred"
VERSION = 3  # version of the file of stored pairs; other versions are not read


def expect_truncate(renderer: Renderer, truncate: str) -> None:
    """Checks that `truncate` is "none" or "prompt", and that the renderer's tokenizer can cut prompts for "prompt".

    Raises:
        ConfigError: another value, or a tokenizer that does not map tokens to places in the text.
    """
    if truncate not in TRUNCATE:
        raise ConfigError(f"{truncate!r}", where="truncate", expected="one of " + ", ".join(TRUNCATE))
    if truncate == "prompt" and not renderer.tokenizer.is_fast:
        raise ConfigError("'prompt' needs a fast tokenizer", where="truncate", fix="use truncate none")


def longest_of(six: list[TokenPair]) -> int:
    """Returns the number of tokens in the longest of a pair's six sequences: drafts and revisions."""
    return max(_lengths(six))


def _lengths(six: list[TokenPair]) -> list[int]:
    return [len(context) + len(answer) for context, answer in six]


def too_long(where: str, lengths: tuple[int, ...], limit: int, why: str = "") -> TooLong:
    """Returns the reject of a pair that has a sequence over the limit of `limit` tokens.

    Args:
        where: place of the pair.
        lengths: the pair's lengths in the order of `RenderedPair.lengths`.
        why: words to append to the reason.
    """
    drafts, revisions = list(lengths[3:5]), list(lengths[5:9])
    reason = f"{lengths[-1]} tokens, over the limit of {limit} (as drafts {drafts}, as revisions {revisions})"
    return TooLong(where, reason + why)


def fitted(renderer: Renderer, pairs: Iterable[Pair], limit: int | None) -> Iterator[RenderedPair]:
    """Tokenises pairs and yields them in order; a pair that cannot be used has a reason instead of token ids.

    Args:
        renderer: makes the six sequences of a pair.
        limit: longest sequence in tokens. The prompt of a pair with a longer one is cut until all six fit. None cuts
            nothing.
    """
    for pair, six in renderer.rendered(pairs):
        lengths: tuple[int, ...] = ()
        cut = 0
        if not isinstance(six, Reject):
            longest = longest_of(six)
            lengths = (len(six[0].context), len(six[0].answer), len(six[1].answer), *_lengths(six), longest)
            if six[0].answer == six[1].answer:
                six = Undecided(pair.where, SAME_TOKENS)
            elif limit is not None and longest > limit:
                six = _shortened(renderer, pair, six, limit)
                cut = 0 if isinstance(six, Reject) else longest - longest_of(six)
        if isinstance(six, Reject):
            yield RenderedPair(lengths, 0, 0, array("i"), array("i"), type(six).__name__, six.reason)
        else:
            tree = PrefixTree.pack(six)
            yield RenderedPair(lengths, sum(_lengths(six)), cut, array("i", tree.ids), tree.marks)


def _shortened(renderer: Renderer, pair: Pair, six: list[TokenPair], limit: int) -> list[TokenPair] | Reject:
    """Cuts the oldest part of a pair's prompt until its six sequences have at most `limit` tokens; returns them.

    Returns a reject if no prompt would be left, or if the prompt has pictures.

    Args:
        six: the sequences before the cut, at least one of them over the limit.
    """
    prompt, now = pair.prompt, six
    if pictures_of(prompt):
        lengths = (0, 0, 0, *_lengths(six), longest_of(six))
        return too_long(pair.where, lengths, limit, ", and prompts with pictures are not cut")
    while longest_of(now) > limit:  # repeats if the remaining text has more tokens than it had inside the whole text
        shorter = cut_oldest(renderer.tokenizer, prompt, longest_of(now) - limit)
        if shorter is None:
            lengths = (0, 0, 0, *_lengths(six), longest_of(six))
            return too_long(pair.where, lengths, limit, ", which cutting its prompt does not mend")
        prompt = shorter
        [(_, found)] = renderer.rendered([replace(pair, prompt=prompt)])
        if isinstance(found, Reject):
            return found
        now = found
    return now


def cut_oldest(tokenizer: Tokenizer, prompt: Prompt, tokens: int) -> Prompt | None:
    """Returns the prompt without the first `tokens` tokens of its text; None if nothing would be left.

    More tokens are cut where the cut falls inside a letter of several tokens, or whole messages are dropped.
    System messages stay. A message that is cut whole is dropped together with all messages up to the next user
    message, since a conversation begins with the user.
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


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut_text(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The text without its first `tokens` tokens, "" if only space is left; a letter of several tokens is cut whole."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    left: str = text[spans[tokens - 1][1] :] if tokens < len(spans) else ""
    return left if left.strip() else ""


# ---------------------------------------------------------------------- pairs in store


class StoredPairs:
    """Tokenises pairs and stores the ids on disk; pairs that are stored already are read instead.

    Without truncation one store serves every length limit, for the limit is applied to the stored lengths.

    Args:
        renderer: makes the six sequences.
        max_length: longest sequence allowed, tokens; None allows any.
        truncate: "none" or "prompt".
        cache: folder of the file; None stores nothing.

    Attributes:
        tokenised: pairs rendered so far; a repeated pair may be found in the store instead.
        store: the file of rendered pairs.

    Raises:
        ConfigError: an unknown way to truncate, or a tokenizer that does not map tokens to places in the text.
    """

    def __init__(self, renderer: Renderer, *, max_length: int | None, truncate: str, cache: str | Path | None) -> None:
        expect_truncate(renderer, truncate)
        self.tokenised, self._renderer, self._limit, self._truncate = 0, renderer, max_length, truncate
        cut = [truncate, max_length] if truncate != "none" else []
        key = hashlib.sha256(json.dumps([VERSION, renderer.fingerprint, *cut]).encode()).hexdigest()
        self.store = PairStore(Path(cache) / f"{key}.pairs" if cache else None)

    def all(
        self, pairs: Iterable[Pair], num_proc: int | None = None
    ) -> Iterator[tuple[str, RenderedPair, Reject | None]]:
        """Yields (place, tokenised pair, reject or None) for each pair, in order.

        Args:
            num_proc: number of processes that tokenise; None takes one per core, at most eight.
        """
        waiting: deque[tuple[str, bytes, RenderedPair | None]] = deque()

        def new() -> Iterator[Pair]:
            for pair in pairs:  # another thread consumes this, so it changes only the deque
                # Ids of pictures depend on the processor's settings, which the file's name does not cover.
                digest = b"" if pictures_of(pair.prompt) else digest_of(pair)
                known = self.store.get(digest) if digest else None
                waiting.append((pair.where, digest, known))
                if known is None:
                    yield pair

        def known() -> Iterator[tuple[str, RenderedPair, Reject | None]]:
            while waiting and (found := waiting[0][2]) is not None:
                yield self._limited(waiting.popleft()[0], found)

        try:
            for part in mapped(self._packed, new(), num_proc=num_proc):
                for found in part:
                    yield from known()
                    where, digest, _ = waiting.popleft()
                    self.tokenised += 1
                    if digest:
                        self.store.add(digest, found)
                    yield self._limited(where, found)
            yield from known()
        finally:
            self.store.close()

    def _packed(self, pairs: list[Pair]) -> list[RenderedPair]:
        limit = self._limit if self._truncate != "none" else None
        return list(fitted(self._renderer, pairs, limit))

    def _limited(self, where: str, found: RenderedPair) -> tuple[str, RenderedPair, Reject | None]:
        if found.reason:
            return where, found, REJECTS[found.kind](where, found.reason)
        over = self._limit is not None and found.lengths[-1] - found.cut > self._limit
        return where, found, too_long(where, found.lengths, self._limit) if over and self._limit else None


def digest_of(pair: Pair) -> bytes:
    """Returns a 16-byte hash of all parts of a pair that decide its token ids."""
    rendered = [pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.chat_template_kwargs, pair.reasoned]
    return hashlib.blake2b(json.dumps(rendered, sort_keys=True).encode(), digest_size=16).digest()
