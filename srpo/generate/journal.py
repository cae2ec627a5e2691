"""What a server has answered, kept line by line as it comes, so that a run begun again asks for none of it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo.errors import OutputError
from srpo.generate.engine import Completion


class Journal:
    """Completions by the request they answer.

    Args:
        path: JSONL that is read, and appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._known: dict[str, Completion] = {}
        content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
                known = Completion(**{**row["completion"], "ids": tuple(row["completion"]["ids"])})
                self._known[row["request"]] = known
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill, or not ours: asked for again
        self._torn = bool(content) and not content.endswith(b"\n")

    def among(self, requests: Sequence[Mapping[str, Any]]) -> dict[int, Completion]:
        """Place → completion of those that have been answered."""
        names = [_name(request) for request in requests]
        return {i: self._known[name] for i, name in enumerate(names) if name in self._known}

    def add(self, request: Mapping[str, Any], completion: Completion) -> None:
        """Keeps it, on the disk before it returns; from any thread.

        Raises:
            OutputError: it cannot be written.
        """
        line = json.dumps({"request": _name(request), "completion": asdict(completion)})
        try:
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n" if self._torn else f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
                self._known[_name(request)] = completion
                self._torn = False
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self.path)) from None


def _name(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
