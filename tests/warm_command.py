"""`srpo …` in a fork of the test process: exit code and streams of a real process, without a second import of torch.

A new process spends 3 to 8 seconds of processor time on imports before its first line; a fork spends none. Tests of the
start itself (imports, encodings, signals during imports) need a new process.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any


class Fork:
    """A command that runs in a fork; standard error is a pipe, so that a test can wait for a line.

    Args:
        words: the command line after `srpo`.
        input: standard input of the command, at most the 64 KiB that a pipe holds.
        env: environment of the command; by default that of this process.
        encoding: of its standard output.
        before: runs in the fork before the command, to change modules there.
        terminal: standard error is a pseudo-terminal.
    """

    def __init__(
        self,
        *words: str,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
        before: Callable[[], object] | None = None,
        terminal: bool = False,
    ) -> None:
        self._terminal = terminal
        reader, writer = os.pipe()
        os.write(writer, input)
        os.close(writer)
        stderr, err = os.openpty() if terminal else os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._out = TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.pid = os.fork()
        if not self.pid:
            os.close(stderr)
            _run(words, [reader, self._out.fileno(), err], env, encoding, before)
        os.close(reader)
        os.close(err)
        self.stderr = os.fdopen(stderr, encoding="utf-8", errors="replace")

    def end(self) -> tuple[int, bytes, str]:
        """Waits for the end of the command: exit code, standard output, and what was not read of standard error."""
        with self._out as out, self.stderr:
            err = _shown_on(self.stderr.fileno()) if self._terminal else self.stderr.read()
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            out.seek(0)
            return code, out.read(), err


def _shown_on(terminal: int) -> str:
    """All output of a pseudo-terminal, until the last process has closed it."""
    blocks = []
    try:
        while block := os.read(terminal, 65536):
            blocks.append(block)
    except OSError:  # Linux's end of a pseudo-terminal
        pass
    return b"".join(blocks).decode(errors="replace")


def srpo_in_a_fork(*words: str, **options: Any) -> CompletedProcess[str]:
    """Runs the console script in a fork; the options are those of `Fork`."""
    code, out, err = Fork(*words, **options).end()
    return CompletedProcess(["srpo", *words], code, out.decode(options.get("encoding", "utf-8")), err)


def _run(
    words: tuple[str, ...],
    files: list[int],
    env: Mapping[str, str] | None,
    encoding: str,
    before: Callable[[], object] | None,
) -> None:
    """Runs the command on these three files, and ends the fork with its exit code."""
    code: Any = 1
    # An exception in a callback of the garbage collection is ignored, so a Ctrl-C during a pass would be lost in the
    # callback that hypothesis sets. A process of its own has none.
    gc.callbacks.clear()
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False), "utf-8")
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), of, line_buffering=number == 2)
            for number, of in ((1, encoding), (2, "utf-8"))
        )
        _send_logs_to(sys.stderr)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if before is not None:
            before()
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
