"""The process that runs an answer's code and its tests; `sandbox.py` starts it with a job on standard input.

The process limits itself before it executes the answer. It reports success by writing the job's token to the file on
its standard output, and only after the last test has passed: an exit, a crash, a hang or an exception all report
nothing. The answer's own output is discarded.
"""

from __future__ import annotations

import builtins
import functools
import json
import os
import resource
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # numbers of Linux system calls, the same on every processor
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for every class that Python code makes
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DENIED = (  # beginnings of the names of forbidden audit events
    *("socket.", "subprocess.", "ctypes.", "pty.", "mmap.", "sqlite3.", "resource.setrlimit", "resource.prlimit"),
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "signal.pthread_kill", "shutil."),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.ch", "os.utime"),
)
_DENIED_MODULES = {"ctypes", "_ctypes", "_posixsubprocess", "_posixshmem"}  # they raise no audit events


def limit(seconds: int, wait: float, memory: int, file_size: int, processes: int) -> None:
    """Sets this process's limits in the kernel, before it runs untrusted code.

    Args:
        seconds, wait, memory, file_size, processes: as in `sandbox.Limits`; `wait` has no effect here, and `processes`
            0 sets no limit of processes.
    """
    wanted = {"CPU": seconds, "FSIZE": file_size, "NOFILE": 64, "CORE": 0}
    if sys.platform == "linux":  # macOS rejects a limit of the address space
        wanted["AS"] = memory
    if processes:
        wanted["NPROC"] = processes
    for name, value in wanted.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def forbid_writing() -> bool:
    """Asks the Linux kernel (Landlock) to deny this process changes of files, and TCP if it can; False if it cannot."""
    import ctypes

    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, 0, 1) if sys.platform == "linux" else -1
    if version < 1:
        return False
    # Landlock's rights to write, remove and make files; its later versions add linking, truncating and TCP.
    files = 0b1_1111_1111_0010 | (0b10 << 12) * (version >= 2) | (0b100 << 12) * (version >= 3)
    rights = (ctypes.c_uint64 * 2)(files, 0b11)
    rules = libc.syscall(_CREATE_RULESET, rights, 16 if version >= 4 else 8, 0)
    return bool(rules >= 0 and not libc.prctl(38, 1, 0, 0, 0) and not libc.syscall(_RESTRICT_SELF, rules, 0))


def audit(event: str, args: tuple[Any, ...], denied: tuple[str, ...] = _DENIED, writing: int = _WRITING) -> None:
    """Python audit hook that raises an error on network, processes, native code and every change of a file.

    Code cannot remove an audit hook.

    Args:
        event, args: the audited event, from Python.
        denied: beginnings of the names of forbidden events.
        writing: flags of `open` that mean writing.
    """
    forbidden = event.startswith(denied)
    if event == "open":
        forbidden = args[0] != "/dev/null" and bool(args[2] & writing)
    elif event == "import":
        forbidden = args[0] in _DENIED_MODULES
    if forbidden:
        error = ImportError if event == "import" else PermissionError
        raise error(f"{event} is not allowed here")


def guarded(function: Callable[..., Any], known: frozenset[str]) -> Callable[..., Any]:
    """Wraps a function of the tested answer, so that a result with an object of the answer's own classes is an error.

    Such an object could claim to equal everything. Classes with a name in `known` are allowed.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        result = function(*args, **options)
        _expect_known_types(result, known)
        return result

    return call


def _expect_known_types(result: object, known: frozenset[str]) -> None:
    waiting, seen = [result], set[int]()
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if kind.__flags__ & _HEAP_TYPE and kind.__name__ not in known:
            home = sys.modules.get(kind.__module__)
            if kind.__module__ == "answer" or getattr(home, kind.__name__, None) is not kind:
                raise TypeError(f"the result contains a {kind.__name__}, a class of the answer's own")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


def run(job: Mapping[str, Any]) -> None:
    """Executes an untrusted answer as a module, then its tests in a copy of the module's names.

    `job` has the fields of `sandbox.Job`.
    """
    answer, originals = types.ModuleType("answer"), dict(vars(builtins))
    sys.modules["answer"] = answer  # `dataclass` looks its module up in sys.modules
    exec(compile(job["answer"], "answer.py", "exec"), vars(answer))
    vars(builtins).update(originals)
    scope = dict(vars(answer))
    known = frozenset(job["known"])
    for name in job["functions"]:
        if isinstance(scope.get(name), types.FunctionType):
            scope[name] = guarded(scope[name], known)
    exec(compile(job["tests"], "tests.py", "exec"), scope)
    if job["entry_point"]:
        scope["check"](scope[job["entry_point"]])


def main() -> None:
    """Limits this process, runs the untrusted code that it reads as JSON from standard input, and reports success."""
    job = json.loads(sys.stdin.buffer.read())
    report, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    limit(*job["limits"])
    token = job.pop("token").encode()
    forbid_writing()
    sys.addaudithook(audit)
    for name in ("__main__", "ctypes", "_ctypes"):
        sys.modules.pop(name, None)
    run(job)
    os.write(report, token)
    os._exit(0)  # sys.exit would wait for threads that the answer started


if __name__ == "__main__":
    main()
