"""Runs untrusted Python code with tests in a process without network, files or other processes, within limits.

The layers are independent: an empty environment and a scratch folder; the kernel's limits on processor time, memory,
file size and processes; Linux namespaces for network and processes, and Landlock against changes of files, where the
kernel allows them; an audit hook that denies sockets, processes, native code and changes of files. Other systems and
many containers have no namespaces; a warning then reports that the hook alone blocks the network.

The tests share an interpreter with the answer. Common tricks fail (exits, objects that equal everything, patched
builtins), but code that inspects the interpreter's own frames can still fake a pass.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from srpo.errors import ConfigError

log = logging.getLogger("srpo")
CHILD = Path(__file__).with_name("sandbox_child.py")
_NAMESPACES = ("--net", "--pid", "--ipc", "--fork", "--kill-child", "--")


class Limits(NamedTuple):
    """Limits for one run of untrusted code.

    Attributes:
        seconds: processor time in seconds.
        wait: elapsed time in seconds, the start of the interpreter included.
        memory: address space in bytes.
        file_size: largest file in bytes; at least 64, which the report of success needs.
        processes: number of processes and threads; ignored on a system without namespaces.
    """

    seconds: int = 5
    wait: float = 15.0
    memory: int = 1 << 30
    file_size: int = 4096
    processes: int = 16


DEFAULT = Limits()


class Job(NamedTuple):
    """Untrusted code and the tests to run on it.

    Attributes:
        answer: the untrusted code, executed first.
        tests: test code, executed after the answer with the names that the answer defines.
        functions: names of the answer's functions that the tests call.
        known: names that occur in the tests; results may be objects of classes with these names.
        entry_point: name of the function passed to `check`, which the tests define; empty for tests without `check`.
    """

    answer: str
    tests: str
    functions: Sequence[str] = ()
    known: Sequence[str] = ()
    entry_point: str = ""


def passes(job: Job, limits: Limits = DEFAULT) -> bool:
    """Runs untrusted code and its tests in a new process; True if all tests end without error within the limits.

    Raises:
        ConfigError: the system is not POSIX, or even a trivial job fails, so that every score would be 0.

    Example:
        >>> passes(Job("def double(x): return 2 * x", "assert double(2) == 4"))
        True
        >>> passes(Job("import sys; sys.exit(0)", "assert double(2) == 4"))
        False
    """
    if os.name != "posix":
        raise ConfigError("unit tests need a POSIX system", where="judge unit_tests")
    _expect_working()
    return _run(job, limits)


@functools.cache
def _expect_working() -> None:
    if not _run(Job("one = 1", "assert one == 1"), DEFAULT):
        fix = "judge on another machine, or with another Python"
        raise ConfigError("the sandbox cannot run any code here", where="judge unit_tests", fix=fix)


def _run(job: Job, limits: Limits) -> bool:
    token, namespaces = secrets.token_hex(16), _namespaces()
    allowed = limits if namespaces else limits._replace(processes=0)  # the limit would count all the user's processes
    content = json.dumps({**job._asdict(), "token": token, "limits": allowed}).encode()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as report:
        process = subprocess.Popen(
            [*namespaces, sys.executable, "-I", "-B", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(content, timeout=limits.wait)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        report.seek(0)
        return report.read(len(token) + 1) == token.encode()


@functools.cache
def _namespaces() -> tuple[str, ...]:
    """Words of a command that starts a process in new Linux namespaces; empty where the system forbids them."""
    for user in (("--user", "--map-root-user"), ()):
        command = ("unshare", *user, *_NAMESPACES)
        try:
            if not subprocess.run([*command, "true"], capture_output=True, timeout=10).returncode:
                return command
        except (OSError, subprocess.TimeoutExpired):
            break
    log.warning("srpo: no Linux namespaces here; unit tests run without a network namespace, behind an audit hook only")
    return ()
