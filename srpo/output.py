"""Where results go: a folder that can be written to, files that are whole or not there, messages without secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TextIO

from srpo.errors import OutputError, redacted


def writable_folder(folder: Path, flag: str = "--output_dir") -> Path:
    """Makes the folder; a mistake in its name should not cost the user the wait for the numbers.

    Args:
        flag: what names it.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_output(folder, error, flag) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("no permission to write here", where=str(folder), fix=f"name another {flag}")
    return folder


def write_file(path: Path, content: bytes) -> None:
    """Writes a whole file or none: half a report looks like a finished one.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise _no_output(path, error) from None


def _no_output(path: Path, error: OSError, flag: str = "--output_dir") -> OutputError:
    what = f"cannot be written ({error.strerror})"
    return OutputError(what, where=str(path), expected="a folder that can be written", fix=f"name another {flag}")


class Redacting:
    """A stream of messages that leaves secrets out: the command line's standard error, for libraries log there too.

    Not for standard output: results are somebody's data, and stay as they are.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
