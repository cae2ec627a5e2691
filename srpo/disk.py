"""Output on disk: folders locked by one process, files written whole or not at all, and append-only JSON lines."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from srpo.errors import ConfigError, InputError, LockedError, OutputError

LOCK_FILE = ".lock"
log = logging.getLogger("srpo")


def writable_folder(folder: Path, flag: str = "--output_dir") -> Path:
    """Creates an output folder before the work starts, so that a wrong name costs no results.

    Args:
        flag: the command-line option that names the folder, for the error.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    with writing(folder, flag):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("no permission to write here", where=str(folder), fix=f"name another {flag}")
    return folder


def expect_writable(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Checks, without touching any file, that every output can be written and overwrites no input or other output.

    Args:
        outputs: command-line option → file to be written; None and "" are skipped.
        inputs: option → file to be read; None and "" are skipped, and names that are not files are allowed.

    Raises:
        ConfigError: an output is the same file as an input or another output.
        OutputError: an output is a folder, or its folder does not exist or cannot be written.

    Example:
        >>> expect_writable({"--output": "pairs.jsonl"}, {"--trails": "./pairs.jsonl"})
        Traceback (most recent call last):
        srpo.errors.ConfigError: --output: pairs.jsonl is the file of --trails; name another file
    """
    written = {name: path for name, path in outputs.items() if path}
    others = [(name, path) for name, path in inputs.items() if path]
    for name, path in written.items():
        for other, its in others:
            if _same(path, its):
                raise ConfigError(f"{path} is the file of {other}", where=name, fix="name another file")
        others.append((name, path))
    for name, path in written.items():
        writable_file(Path(path), name)


def writable_file(path: Path, flag: str = "--output") -> None:
    """Checks that an output file can be written, before the work that fills it starts.

    Args:
        flag: the command-line option that names the file, for the error.

    Raises:
        OutputError: the path is a folder, or its folder does not exist or cannot be written.
    """
    fix = f"name another {flag}" if flag.startswith("-") else ""
    if path.is_dir():
        raise OutputError("cannot be written: it is a folder", where=str(path), expected="a file", fix=fix)
    if not path.parent.is_dir():
        raise OutputError(f"cannot be written: {path.parent} is no folder", where=str(path), fix=fix)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot be written: no permission in {path.parent}", where=str(path), fix=fix)


def _same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name the same file, existing or not."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def write_file(
    path: Path,
    content: bytes | Iterable[bytes],
    *,
    durable: bool = False,
    flag: str = "--output_dir",
    suffix: str = ".partial",
) -> None:
    """Writes a whole file, or leaves the old file unchanged: half a report looks like a finished one.

    Args:
        content: the bytes, or pieces of them in order.
        durable: return only when a power cut can no longer undo the write.
        flag: the command-line option that names the file or its folder, for the error.
        suffix: suffix of the temporary file; processes that may write one file at once need a suffix each.

    Raises:
        OutputError: the file cannot be written.
    """
    partial = path.with_name(path.name + suffix)
    with writing(path, flag):
        with partial.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            sync(path.parent)


def sync(path: Path) -> None:
    """Makes the operating system write a file, or a folder's list of files, to the disk before it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path, flag: str = "--output_dir") -> Iterator[None]:
    """Turns an `OSError` inside a `with` block into an `OutputError` that names the path and its option `flag`."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        fix = f"name another {flag}"
        raise OutputError(problem, where=str(path), expected="a folder that can be written", fix=fix) from None


def expect_room(folder: Path, needed: int, purpose: str) -> None:
    """Checks free space before a write starts.

    Args:
        needed: number of bytes to write.
        purpose: the thing to be written, for the error.

    Raises:
        OutputError: fewer than `needed` bytes are free.
    """
    with writing(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        problem = f"{purpose} needs {_size(needed)}, {_size(free)} free in {folder}"
        raise OutputError(problem, fix="make room there, or name another --output_dir")


def _size(count: int) -> str:
    """A number of bytes as text in GB or kB.

    Example:
        >>> _size(1_234_567_890), _size(300_000_000), _size(4_100)
        ('1.2 GB', '0.3 GB', '4.1 kB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size / 10:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# ---------------------------------------------------------------------- append-only files


class JSONLines:
    """An append-only file of JSON objects, one a line.

    Each line is written by one system call, so that several processes and threads may share the file and a killed
    process leaves at most one torn line, the last one. Readers skip torn lines and lines of another format.

    Args:
        path: the file; made, with its folder, at the first `append`.
        durable: return from `append` only when a power cut can no longer undo it.
        fix: remedy to print in the error of a failed write.

    Attributes:
        skipped: lines that the last `read` could not use.
    """

    def __init__(self, path: Path, *, durable: bool = False, fix: str = "") -> None:
        self.path, self.skipped = path, 0
        self._durable, self._fix = durable, fix
        self._lock = threading.Lock()
        self._handle: int | None = None

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the objects of the file in order; a missing file yields nothing.

        Raises:
            InputError: the file cannot be read.
        """
        self.skipped = 0
        try:
            with self.path.open("rb") as lines:
                for line in lines:
                    row = _json_object(line)
                    if row is not None:
                        yield row
                    elif line.strip():
                        self.skipped += 1
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(self.path)) from None

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds an object as one line; afterwards, killing the process does not lose the line.

        Raises:
            OutputError: the line cannot be written.
        """
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        try:
            with self._lock:
                handle, torn = self._open()
                os_write(handle, b"\n" + line if torn else line)
                if self._durable:
                    os.fsync(handle)
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=str(self.path), fix=self._fix) from None

    def _open(self) -> tuple[int, bool]:
        """Opens the file to append; returns it, and whether it ends in a torn line that needs a newline first."""
        if self._handle is not None:
            return self._handle, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(self._handle).st_size
        return self._handle, bool(size) and os.pread(self._handle, 1, size - 1) != b"\n"


@contextmanager
def appending(path: Path, flag: str = "--output") -> Iterator[BinaryIO]:
    """Locks a file in a `with` block that reads it and appends to it; other processes and threads wait.

    The file is open for reading from its start. If the block fails, the file keeps its old length, so that a full disk
    leaves no torn line. Written bytes are on the disk when the block is left.

    Args:
        flag: the command-line option that names the file, for the error.

    Raises:
        OutputError: the file cannot be written.
    """
    import fcntl

    with writing(path, flag), path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.seek(0, os.SEEK_END)
        torn = before > 0 and os.pread(file.fileno(), 1, before - 1) != b"\n"
        file.seek(0)
        complete = False
        try:
            if torn:
                os_write(file.fileno(), b"\n")
            yield file
            os.fsync(file.fileno())
            complete = True
        finally:
            if not complete:
                os.ftruncate(file.fileno(), before)


def os_write(handle: int, data: bytes) -> None:
    """Writes all bytes of `data` to a file descriptor; one system call may write fewer."""
    while data:
        data = data[os.write(handle, data) :]


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# ---------------------------------------------------------------------- one process a folder

_held: dict[Path, int] = {}  # folders that this process holds → how many times over


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a folder for this process inside a `with` block; the process may enter the lock again.

    The kernel releases the lock when the process ends, however it ends. The lock is a record lock: unlike `flock`, it
    is not inherited by children forked while it is held.

    Raises:
        LockedError: another process holds the folder; the error names that process.
        OutputError: the lock file cannot be written.
    """
    import fcntl  # missing on Windows, where the rest of this file works

    folder = folder.resolve()
    if folder in _held:
        _held[folder] += 1
        try:
            yield
        finally:
            _held[folder] -= 1
        return
    path = folder / LOCK_FILE
    with writing(path):
        file = path.open("a+", encoding="utf-8")
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _locked(folder, _holder(file)) from None
        if left := _holder(file):
            log.warning("srpo: %s was locked by %s, which ended without unlocking it; continuing", folder, left)
        with writing(path):
            _sign(file, {"pid": os.getpid(), "host": socket.gethostname()})
        _held[folder] = 1
        try:
            yield
        finally:
            del _held[folder]
            _sign(file, None)
    finally:
        file.close()


def _sign(file: TextIO, holder: dict[str, object] | None) -> None:
    file.truncate(0)
    file.write(json.dumps(holder) if holder else "")
    file.flush()


def _holder(file: TextIO) -> str:
    """The process that a lock file names as its owner; "" if the file names no process."""
    file.seek(0)
    text = file.read(4096)
    try:
        return "process {pid} on {host}".format(**json.loads(text)) if text else ""
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


def _locked(folder: Path, holder: str) -> LockedError:
    fix = "wait for it, stop it, or name another --output_dir"
    return LockedError(f"held by {holder or 'another process'}", where=str(folder), fix=fix)
