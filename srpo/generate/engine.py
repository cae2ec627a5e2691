"""What completes a context: one small interface, whatever runs behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from srpo.errors import ConfigError


@dataclass(frozen=True)
class Completion:
    """What the model wrote after one context.

    Attributes:
        ids: generated token ids, the terminator included when there is one; empty where a server tells none.
        finished: the model ended the answer itself.
        seconds: wall seconds of the batch divided by its rows.
        text: the answer, from a server that tells no ids; None where the ids say it.
        tokens: generated, as such a server counts them.
        read: tokens of the context, as a server that was given messages counts them.
        failed: why there is no completion, from a server that could give none; empty where there is one.
    """

    ids: tuple[int, ...]
    finished: bool
    seconds: float
    text: str | None = None
    tokens: int | None = None
    read: int | None = None
    failed: str = ""


class Engine(Protocol):
    """Completes contexts with one model.

    Attributes:
        batch_size: rows completed together; a caller that hands over as many at a time wastes nothing.
        max_length: tokens of context and answer that fit; None where there is no limit, or nobody knows it.
        same_batch_same_bits: a row's last bits hang on the rows beside it and on nothing else, so a run that is
            resumed asks for a whole batch again to end as if it had not been interrupted. False for a server, which
            makes batches as it likes: what it answered once is not asked again.
    """

    batch_size: int
    same_batch_same_bits: bool

    @property
    def max_length(self) -> int | None: ...

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        seed: int = 0,
        guesses: Sequence[Sequence[int]] | None = None,
    ) -> list[Completion]:
        """One completion per context, in order.

        Args:
            contexts: token ids to go on from.
            keys: a name for each row; equal (seed, key) draws equally, as far as the engine can promise it.
            max_new_tokens: tokens at most, the terminator included.
            stop_ids: ids that end an answer.
            temperature: 0 is greedy; otherwise logits are divided by it, and nothing else shapes the distribution.
            guesses: ids that each answer is likely to follow, the draft of a revision say. A hint: it changes how fast
                an answer comes, never which.

        Raises:
            ConfigError: a negative temperature.
        """
        ...


def expect_temperature(temperature: float) -> None:
    """What every engine asks of a temperature; written so that nan is none either.

    Raises:
        ConfigError: it is negative or nan.
    """
    if not temperature >= 0:
        raise ConfigError(f"{temperature}", where="temperature", expected="0 (greedy) or more")


def seed_of(seed: int, key: str) -> int:
    """The seed of one request, for engines that draw numbers of their own; below 2³¹, for some take no larger one."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{key}".encode()).digest()[:4], "big") >> 1
