"""A journal of answers on disk, so that a restarted run draws or requests no finished answer again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo.disk import JSONLines
from srpo.generate.engine import Completion, Decoding, Engine, Keep


class Journal:
    """A file of JSON lines that stores finished answers under a hash of their request.

    Args:
        path: The file to read and append to.
        durable: `add` returns only once the disk has the answer (fsync), so that a power cut cannot lose it.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._lines = JSONLines(path, durable=durable)
        self._known: dict[str, Completion] = {}
        for row in self._lines.read():
            try:
                known = Completion(**{**row["completion"], "ids": tuple(row["completion"]["ids"])})
                self._known[row["request"]] = known
            except (KeyError, TypeError):
                continue  # a line of another format: the request is sent again

    def known(self, requests: Sequence[Mapping[str, Any]]) -> dict[int, Completion]:
        """Looks up requests; returns a dict with the stored completion by index in `requests`, without the others."""
        digests = [_digest(request) for request in requests]
        return {i: self._known[digest] for i, digest in enumerate(digests) if digest in self._known}

    def add(self, request: Mapping[str, Any], completion: Completion) -> None:
        """Writes the answer to a request to the file before returning; any thread may call it.

        Raises:
            OutputError: The file cannot be written.
        """
        digest = _digest(request)
        self._lines.append({"request": digest, "completion": asdict(completion)})
        self._known[digest] = completion


class JournaledEngine:
    """An engine in this process that writes each answer to a journal as soon as it is complete.

    A restarted run continues inside a batch: finished answers come from the journal, the others are drawn. They equal
    those of an uninterrupted run up to rounding, as between any two batches.

    Args:
        engine: The engine that draws the answers.
        journal: The journal that keeps the answers.
    """

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine, self.journal = engine, journal
        self.batch_size, self.same_batch_same_bits = engine.batch_size, engine.same_batch_same_bits
        self.pictured = getattr(engine, "pictured", False)  # the key of a request names its prompt's pictures

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of context and answer together; None without a limit."""
        return self.engine.max_length

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one answer per context, in order: from the journal if it is there, otherwise drawn and written to it.

        The arguments are those of `Engine.complete`.
        """
        how = asdict(decoding)
        requests = [{"context": [*context], "key": key, **how} for context, key in zip(contexts, keys, strict=True)]
        done = self.journal.known(requests)
        missing = [i for i in range(len(requests)) if i not in done]

        def write(place: int, completion: Completion) -> None:
            if not completion.failed:
                self.journal.add(requests[missing[place]], completion)
            if keep is not None:
                keep(missing[place], completion)

        if missing:
            drawn = self.engine.complete(
                [contexts[i] for i in missing],
                [keys[i] for i in missing],
                decoding,
                guesses=[guesses[i] for i in missing] if guesses is not None else None,
                keep=write,
            )
            done.update(zip(missing, drawn, strict=True))
        return [done[i] for i in range(len(requests))]


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
