"""What has been paid for: replies of judges, kept in a file that is only ever appended to.

One JSON object per line, each written whole by one call, so that two processes may share a file and a killed one leaves
at most its last line torn. Such a line is passed over: what it held is asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo.data.values import Prompt
from srpo.errors import InputError, OutputError
from srpo.judge.verdict import AnswerPair, OrderVerdict, PairJudge, Verdict

log = logging.getLogger("srpo")


@dataclass(frozen=True)
class CachedReply:
    """One reply.

    Attributes:
        label: the verdict as the judge said it; empty where it gave none that can be read.
        reason: why there is none.
        reply: all that it said.
        model: what the server says answered.
        tokens_in, tokens_out: as the server counts them; None where it does not.
        orders: of a whole verdict, what each order said; see `Verdict`.
    """

    label: str
    reason: str = ""
    reply: str = ""
    model: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    orders: tuple[OrderVerdict, ...] = ()


class VerdictCache:
    """Replies by key.

    Args:
        path: the file, made when the first reply is kept; None keeps them in memory alone.

    Raises:
        InputError: the file cannot be read.

    Example:
        >>> cache = VerdictCache(None)
        >>> cache.add("k", CachedReply("A"))
        >>> cache.get("k").label, len(cache)
        ('A', 1)
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = Path(path) if path else None
        self.passed_over = 0  # lines that could not be read
        self._kept: dict[str, CachedReply] = {}
        self._file: int | None = None
        self._lock = threading.Lock()
        if self.path:
            self._load(self.path)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> CachedReply | None:
        """The reply; None if there is none."""
        return self._kept.get(key)

    def add(self, key: str, kept: CachedReply) -> None:
        """Keeps a reply; when this returns, killing the process does not lose it.

        Raises:
            OutputError: it cannot be written.
        """
        line = json.dumps({"key": key, **asdict(kept)}, ensure_ascii=True) + "\n"
        with self._lock:
            self._kept[key] = kept
            if self.path:
                self._write(self.path, line.encode())

    def _write(self, path: Path, line: bytes) -> None:
        try:
            if self._file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                size = os.fstat(self._file).st_size
                if size and os.pread(self._file, 1, size - 1) != b"\n":
                    line = b"\n" + line  # ends the torn line rather than going on in it
            written = os.write(self._file, line)
            if written != len(line):
                os.write(self._file, line[written:])
        except OSError as error:
            fix = "replies kept so far stay; free some space, or name another file"
            raise OutputError(f"cannot be written: {error.strerror}", where=str(path), fix=fix) from None

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as lines:
                for line in lines:
                    self._take(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
        if self.passed_over:
            log.warning("srpo: %s: %d lines that cannot be read are passed over", path, self.passed_over)

    def _take(self, line: bytes) -> None:
        try:
            row: dict[str, Any] = json.loads(line)
            key, orders = str(row.pop("key")), row.pop("orders", ())
            self._kept[key] = CachedReply(**row, orders=tuple(OrderVerdict(*each) for each in orders))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.passed_over += bool(line.strip())


def cache_key(identity: str, template: str, prompt: Prompt, shown_first: str, shown_second: str) -> str:
    """What a reply depends on: who was asked, in which words, about what, and which answer was shown first.

    Example:
        >>> cache_key("m", "t", "p", "a", "b") == cache_key("m", "t", "p", "b", "a")
        False
    """
    parts = json.dumps([identity, template, prompt, shown_first, shown_second], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class CachingJudge:
    """A judge whose verdicts are kept as they come, so that a run that is killed asks for none of them again.

    Only verdicts are: what was unscored is asked again, for a server may have failed.

    Args:
        judge: who is asked.
        path: the file; see `VerdictCache`.
    """

    def __init__(self, judge: PairJudge, path: str | Path | None) -> None:
        self.judge, self.cache = judge, VerdictCache(path)

    @property
    def identity(self) -> str:
        """The judge's own."""
        return self.judge.identity

    def forecast(self, comparisons: Iterable[AnswerPair]) -> str:
        """How many of them would be asked about, and at what cost where the judge knows it; nothing is asked.

        Example:
            >>> from srpo.judge.load import load_pair_judge
            >>> judge = CachingJudge(load_pair_judge("numeric"), None)
            >>> judge.forecast([AnswerPair("1+1=", "2", "3"), AnswerPair("1+1=", "2", "2")])
            '2 comparisons, of which 1 is to be asked about'
        """
        asked = list(comparisons)
        fresh = {self._key(each): each for each in asked if not each.identical}
        fresh = {key: each for key, each in fresh.items() if self.cache.get(key) is None}
        said = f"{len(asked)} comparisons, of which {len(fresh)} {'is' if len(fresh) == 1 else 'are'} to be asked about"
        estimate = getattr(self.judge, "estimate", None)
        return f"{said}; {estimate(fresh.values()).price}" if estimate is not None else said

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Verdicts in order, the remembered ones without asking."""
        asked = list(comparisons)
        known = [self.cache.get(self._key(each)) for each in asked]
        fresh = iter(self.judge.compare([each for each, kept in zip(asked, known, strict=True) if kept is None]))
        for each, kept in zip(asked, known, strict=True):
            if kept is not None:
                yield Verdict(float(kept.label), kept.orders, kept.reason)
                continue
            verdict = next(fresh)
            if verdict.score is not None:
                self.cache.add(self._key(each), CachedReply(str(verdict.score), verdict.reason, orders=verdict.orders))
            yield verdict

    def _key(self, comparison: AnswerPair) -> str:
        said = comparison
        return cache_key(self.identity, json.dumps(said.gold, sort_keys=True), said.prompt, said.first, said.second)
