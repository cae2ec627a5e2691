"""Judges' replies in an append-only file, so that no reply is paid for twice.

Several processes may share the file. A killed process leaves at most a torn last line; its comparison is asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from srpo.data.values import Prompt
from srpo.disk import JSONLines
from srpo.judge.verdict import AnswerPair, OrderVerdict, PairJudge, Verdict

log = logging.getLogger("srpo")


@dataclass(frozen=True)
class CachedReply:
    """One cached reply of a judge, or one cached verdict on a pair.

    Attributes:
        label: the verdict in the judge's own word; empty if the reply has no readable verdict.
        reason: why the reply has no readable verdict.
        reply: the full text of the reply.
        model: the model's name in the server's answer.
        tokens_in, tokens_out: tokens read and written by the server's count; None if it did not count.
        orders: the verdict of each order of showing if a whole `Verdict` is cached, otherwise empty.
    """

    label: str
    reason: str = ""
    reply: str = ""
    model: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    orders: tuple[OrderVerdict, ...] = ()


class VerdictCache:
    """Store of judges' replies by `cache_key`, in memory and in an append-only file.

    Args:
        path: the cache file, made when the first reply is added; None keeps replies in memory only.

    Attributes:
        skipped: number of lines in the file that could not be read.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: str | Path | None) -> None:
        fix = "replies kept so far stay; free some space, or name another file"
        self._lines = JSONLines(Path(path), fix=fix) if path else None
        self._replies: dict[str, CachedReply] = {}
        self.skipped = 0
        for row in self._lines.read() if self._lines else ():
            try:
                key, orders = str(row.pop("key")), row.pop("orders", ())
                self._replies[key] = CachedReply(**row, orders=tuple(OrderVerdict(*each) for each in orders))
            except (KeyError, TypeError):
                self.skipped += 1
        self.skipped += self._lines.skipped if self._lines else 0
        if self.skipped:
            log.warning("srpo: %s: skipped %d unreadable lines", path, self.skipped)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> CachedReply | None:
        """Returns the cached reply with that key, or None."""
        return self._replies.get(key)

    def add(self, key: str, reply: CachedReply) -> None:
        """Adds a judge's reply and writes it to the file; killing the process afterwards does not lose it.

        Raises:
            OutputError: the file cannot be written.
        """
        self._replies[key] = reply
        if self._lines:
            self._lines.append({"key": key, **asdict(reply)})


def cache_key(identity: str, template: str, prompt: Prompt, shown_first: str, shown_second: str) -> str:
    """Returns the SHA-256 of everything that a judge's reply depends on, as hexadecimal digits.

    Args:
        identity: all settings of the judge in one line.
        template: digest of the judge's instructions.
        prompt, shown_first, shown_second: the prompt, and the two answers in the order shown.
    """
    parts = json.dumps([identity, template, prompt, shown_first, shown_second], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class CachingJudge:
    """Wraps a judge and caches its verdicts as they arrive, so that a resumed run does not ask again.

    Unscored pairs are not cached and are asked again, because the server may have failed.

    Args:
        judge: the wrapped judge, asked about pairs that are not cached.
        path: the cache file; see `VerdictCache`.
    """

    def __init__(self, judge: PairJudge, path: str | Path | None) -> None:
        self.judge, self.cache = judge, VerdictCache(path)

    @property
    def identity(self) -> str:
        """Name and settings of the wrapped judge, in one line."""
        return self.judge.identity

    def forecast(self, comparisons: Iterable[AnswerPair]) -> str:
        """Returns one line with the number of pairs not yet judged, and their cost if known; no call is made.

        Example:
            >>> from srpo.judge.load import load_pair_judge
            >>> judge = CachingJudge(load_pair_judge("numeric"), None)
            >>> judge.forecast([AnswerPair("1+1=", "2", "3"), AnswerPair("1+1=", "2", "2")])
            '2 comparisons, 1 of them not yet judged'
        """
        pairs = list(comparisons)
        missing = {self._key(pair): pair for pair in pairs if not pair.identical}
        missing = {key: pair for key, pair in missing.items() if self.cache.get(key) is None}
        line = f"{len(pairs)} comparisons, {len(missing)} of them not yet judged"
        estimate = getattr(self.judge, "estimate", None)
        return f"{line}; {estimate(missing.values()).price}" if estimate is not None else line

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields one verdict per pair, in order; asks the wrapped judge only about pairs that are not cached."""
        pairs = list(comparisons)
        cached = [self.cache.get(self._key(pair)) for pair in pairs]
        fresh = iter(self.judge.compare([pair for pair, reply in zip(pairs, cached, strict=True) if reply is None]))
        for pair, reply in zip(pairs, cached, strict=True):
            if reply is not None:
                yield Verdict(float(reply.label), reply.orders, reply.reason)
                continue
            verdict = next(fresh)
            if verdict.score is not None:
                self.cache.add(self._key(pair), CachedReply(str(verdict.score), verdict.reason, orders=verdict.orders))
            yield verdict
        for _ in fresh:  # runs the wrapped judge to its end: it may raise an error after its last verdict
            pass

    def _key(self, pair: AnswerPair) -> str:
        return cache_key(self.identity, json.dumps(pair.gold, sort_keys=True), pair.prompt, pair.first, pair.second)
