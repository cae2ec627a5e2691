"""Every error srpo raises on purpose, and the exit code each one ends a command with.

    SRPOError                     70  something went wrong inside
    ├── UsageError                64  the command line itself is wrong
    ├── DataError                 65  a file was read, and its content cannot be used
    │   └── LengthError           65  a sequence is longer than the model's context
    ├── InputError                66  a file or model is missing or unreadable
    ├── NonFiniteError            70  a nan or an infinity where a number is needed
    ├── LockedError               73  another process holds the run folder
    ├── OutputError               74  the result cannot be written
    │   └── CheckpointError       74  no checkpoint can be resumed from
    ├── Interrupted               75  stopped from outside; resume with the same command and --resume
    └── ConfigError               78  a setting is wrong; found before any weight is read
        ├── TemplateError         78  a chat or revision template does not support the request
        └── BackendError          78  a named back-end cannot serve this model exactly

Each error names the place, the finding, the expectation and the remedy. The command line prints exactly that and no
traceback. Messages are printed without secrets (`srpo.secrets`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from srpo.secrets import redacted


class SRPOError(Exception):
    """An error that names the place, the finding, the expected value and the remedy; the base of all errors of srpo.

    Args:
        what: the finding, in words a user can act on.
        where: `file:line`, a key, a path or a step; empty when there is no such place.
        expected: the value or state that is required.
        fix: the remedy, an action for the user.

    Example:
        >>> print(SRPOError("-1", where="beta", expected="a number above 0", fix="try 0.1"))
        beta: -1; expected a number above 0; try 0.1
    """

    exit_code = 70

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = "") -> None:
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        parts = [f"{where}: {what}" if where else what]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        text = "; ".join(parts)
        super().__init__(text.replace("\n; ", "\n"))  # after a list of lines the remedy has a line of its own

    def __str__(self) -> str:
        return str(redacted(super().__str__()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class UsageError(SRPOError):
    """The command line itself is wrong: an unknown flag, a missing value."""

    exit_code = 64


class DataError(SRPOError):
    """A file was read, and its content cannot be used."""

    exit_code = 65


class LengthError(DataError):
    """A sequence is longer than the model's context."""


class InputError(SRPOError):
    """A file, folder or model is missing or unreadable, or a server does not answer."""

    exit_code = 66


class NonFiniteError(SRPOError):
    """A nan or an infinity in a loss, gradient or log-prob, where a finite number is needed."""

    exit_code = 70


class LockedError(SRPOError):
    """Another process is working in the same run folder and has locked it."""

    exit_code = 73


class OutputError(SRPOError):
    """The result cannot be written: no permission, no space, not a folder."""

    exit_code = 74


class CheckpointError(OutputError):
    """No checkpoint can be resumed from: each one differs from its manifest."""


class Interrupted(SRPOError):
    """The work was stopped from outside; the same command with --resume continues it."""

    exit_code = 75


class ConfigError(SRPOError):
    """A setting is wrong; found before any weight is read."""

    exit_code = 78


class TemplateError(ConfigError):
    """A chat or revision template cannot write what the settings or the data ask for."""


class BackendError(ConfigError):
    """The attention back-end that settings name (path, flex, cache or flat) cannot serve the model exactly."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'WORD'?" for the known word nearest to a mistyped word; "" when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
