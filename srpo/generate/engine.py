"""The interface of an engine: it completes contexts with one model, in this process or on a server."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from srpo.errors import ConfigError

ContextAnswer = tuple[tuple[int, ...], tuple[int, ...]]  # context ids, answer ids
Logps = Callable[[Sequence[ContextAnswer]], list[float]]  # log-prob of each answer after its context, nats, summed


@dataclass(frozen=True)
class Completion:
    """A model's answer to one context.

    Attributes:
        ids: Generated token ids, the terminator included if there is one; empty from a server that returns no ids.
        finished: True if the model ended the answer itself.
        seconds: Wall seconds of the batch divided by its number of rows.
        text: The answer from a server that returns no ids; None if `ids` holds the answer.
        tokens: Number of generated tokens as the server counts them.
        read: Number of context tokens as counted by a server that renders chat messages itself.
        failed: Reason why a server gave no completion; empty for a completion.
    """

    ids: tuple[int, ...]
    finished: bool
    seconds: float
    text: str | None = None
    tokens: int | None = None
    read: int | None = None
    failed: str = ""


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: Largest number of new tokens, the terminator included.
        stop_ids: Ids that end an answer.
        temperature: 0 decodes greedily; otherwise the logits are divided by it, with no other change.
        seed: Seed of all random draws.

    Raises:
        ConfigError: A temperature that is negative or not finite, or no new token.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"{self.temperature}", where="temperature", expected="0 (greedy) or more")
        if self.max_new_tokens < 1:
            raise ConfigError(f"{self.max_new_tokens}", where="max_new_tokens", expected="at least 1")


Keep = Callable[[int, Completion], None]  # place of a row among the contexts, its completion
Watch = Callable[[int, list[int]], None]  # place of an unfinished row, its token ids so far


class Engine(Protocol):
    """The protocol of an engine, which completes contexts with one model.

    Attributes:
        batch_size: Number of contexts completed together; callers pass that many at a time.
        same_batch_same_bits: True if equal batches give equal answers, whatever ran before; the other rows of a batch
            may change how a row's numbers are rounded. A resumed run then repeats whole batches. False for a server,
            which forms its own batches; a resumed run sends only the requests that have no answer yet.
    """

    batch_size: int
    same_batch_same_bits: bool

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of context and answer together; None without a limit, or if it is unknown."""
        ...

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one completion per context, in order.

        Args:
            contexts: Token ids to continue, one list per row.
            keys: A name for each row; rows of equal seed and key draw equal random numbers, if the engine can do that.
            decoding: Lengths, ends and randomness of the answers.
            guesses: Ids that each answer probably follows, such as the draft of a revision. Guesses change the speed of
                decoding, never the answer.
            keep: Receives place and completion of each row as soon as the row is complete, possibly on another thread.
        """
        ...


@contextmanager
def reporting(engine: Any, watch: Watch | None) -> Iterator[None]:
    """Inside this `with` block, an engine calls `watch` with the tokens of answers that it is still generating.

    Args:
        engine: an engine; one without an attribute `watch` calls nothing.
        watch: called after each step with index and token ids so far of each unfinished row; None reports nothing.
    """
    reports = watch is not None and hasattr(engine, "watch")
    if reports:
        engine.watch = watch
    try:
        yield
    finally:
        if reports:
            engine.watch = None


def seed_of(seed: int, key: str) -> int:
    """Returns a seed in 0 … 2³¹ − 1 for one row, a hash of the run's seed and the row's key.

    It is for engines that draw with their own random numbers, such as a server.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:4], "big") >> 1
