"""A journal of a server's answers, so that a restarted run repeats no answered request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo.disk import JSONLines
from srpo.generate.engine import Completion


class Journal:
    """Completions by request, in a file of JSON lines.

    Args:
        path: The file to read and append to.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JSONLines(path, durable=True)
        self._known: dict[str, Completion] = {}
        for row in self._lines.read():
            try:
                known = Completion(**{**row["completion"], "ids": tuple(row["completion"]["ids"])})
                self._known[row["request"]] = known
            except (KeyError, TypeError):
                continue  # a line of another format: the request is sent again

    def known(self, requests: Sequence[Mapping[str, Any]]) -> dict[int, Completion]:
        """Returns place → completion for the answered requests."""
        digests = [_digest(request) for request in requests]
        return {i: self._known[digest] for i, digest in enumerate(digests) if digest in self._known}

    def add(self, request: Mapping[str, Any], completion: Completion) -> None:
        """Writes a completion to the disk before returning; safe from any thread.

        Raises:
            OutputError: The file cannot be written.
        """
        digest = _digest(request)
        self._lines.append({"request": digest, "completion": asdict(completion)})
        self._known[digest] = completion


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
