"""`srpo …` in a fork of the test process: exit code and streams of a real process, without a second import of torch.

A new process spends 3 to 8 seconds of processor time on imports before its first line; a fork spends none. Tests of the
start itself (imports, encodings, signals during imports) need a new process.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Mapping
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any


def srpo_in_a_fork(*words: str, input: bytes = b"", env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs the console script in a fork.

    Args:
        words: the command line after `srpo`.
        input: standard input of the command, at most the 64 KiB that a pipe holds.
        env: environment of the command; by default that of this process.
    """
    reader, writer = os.pipe()
    os.write(writer, input)
    os.close(writer)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with TemporaryFile() as out, TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            _run(words, [reader, out.fileno(), err.fileno()], env)
        os.close(reader)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [file.read().decode() for file in (out, err) if file.seek(0) == 0]
    return CompletedProcess(["srpo", *words], code, *texts)


def _run(words: tuple[str, ...], files: list[int], env: Mapping[str, str] | None) -> None:
    """Runs the command on these three files, and ends the fork with its exit code."""
    code: Any = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False), "utf-8")
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), "utf-8", line_buffering=number == 2)
            for number in (1, 2)
        )
        _send_logs_to(sys.stderr)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        sys.argv = ["srpo", *words]
        from srpo.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _send_logs_to(stream: Any) -> None:
    """Points log handlers of this process at the new standard error, and drops those of the test runner."""
    logging.getLogger().handlers.clear()
    for logger in list(logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setStream(stream)
