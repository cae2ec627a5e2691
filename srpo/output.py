"""Where results go: a folder that can be written to, and files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from srpo.errors import OutputError


def writable_folder(folder: Path) -> Path:
    """Makes the folder; a mistake in its name should not cost the user the wait for the numbers.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_output(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("no permission to write here", where=str(folder), fix="name another --output_dir")
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


def _no_output(path: Path, error: OSError) -> OutputError:
    what = f"cannot be written ({error.strerror})"
    return OutputError(what, where=str(path), expected="a folder that can be written", fix="name another --output_dir")
