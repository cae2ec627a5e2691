"""Every error srpo raises on purpose, and the exit code each one ends a command with.

    SRPOError                     70  something went wrong inside
    ├── UsageError                64  the command line itself is wrong
    ├── DataError                 65  a file was read, and what stands in it cannot be used
    │   └── LengthError           65  a sequence is longer than the model's context
    ├── InputError                66  a file or model is missing or unreadable
    ├── NonFiniteError            70  a nan or an infinity where a number is needed
    ├── LockedError               73  another process holds the run folder
    ├── OutputError               74  the result cannot be written
    │   └── CheckpointError       74  no checkpoint can be resumed from
    ├── Interrupted               75  stopped from outside; resume with the same command and --resume
    └── ConfigError               78  a setting is wrong; found before any weight is read
        ├── TemplateError         78  a chat or revision template cannot do what is asked
        └── BackendError          78  a named back-end cannot serve this model exactly

Each says where, what was found, what was expected and what to do about it; the command line prints exactly that and no
traceback. No secret is in what it prints: `redacted` below is the one place that knows what a secret looks like.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


class SRPOError(Exception):
    """An error with a place and a remedy.

    Args:
        what: what was found, in words a user can act on.
        where: `file:line`, a key, a path or a step; empty when there is no such place.
        expected: what would have been right.
        fix: what to do.

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
        super().__init__("; ".join(parts))

    def __str__(self) -> str:
        return str(redacted(super().__str__()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class UsageError(SRPOError):
    """The command line itself is wrong: an unknown flag, a missing value."""

    exit_code = 64


class DataError(SRPOError):
    """A file was read, and what stands in it cannot be used."""

    exit_code = 65


class LengthError(DataError):
    """A sequence is longer than the model can take."""


class InputError(SRPOError):
    """A file, folder or model is missing or unreadable, or a server does not answer."""

    exit_code = 66


class NonFiniteError(SRPOError):
    """A nan or an infinity where a number is needed."""

    exit_code = 70


class LockedError(SRPOError):
    """Another process holds the run folder."""

    exit_code = 73


class OutputError(SRPOError):
    """The result cannot be written: no permission, no space, not a folder."""

    exit_code = 74


class CheckpointError(OutputError):
    """There are checkpoints, and none is what was written."""


class Interrupted(SRPOError):
    """Stopped from outside; the same command with --resume goes on."""

    exit_code = 75


class ConfigError(SRPOError):
    """A setting is wrong; found before any weight is read."""

    exit_code = 78


class TemplateError(ConfigError):
    """A chat or revision template cannot do what is asked of it."""


class BackendError(ConfigError):
    """A back-end asked for by name cannot serve this model exactly."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a remedy, or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


# ---------------------------------------------------------------------- secrets

HIDDEN = "***"
_SHORTEST = 8  # a shorter value of a secret's name is more likely a word, and words would vanish from every message
_SAYS_SECRET = {"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "authorization"}
_KINDS_OF_KEY = {"api", "access", "private", "account", "signing", "encryption", "ssh"}
_TOKENS_OF_TEXT = {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "next", "last", "image"}
_remembered: set[str] = set()

_NAME = (
    r"(?:[\w.-]*(?:secret|passw(?:or)?d|passphrase|credentials?|authorization|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"|(?:[\w.-]*[_-])?(?:hub|hf|api|auth|access|refresh|session|bot)[_-]?token)"
)
# Each with what stays of it. A token by its shape, wherever it stands; the rest by what it is introduced with.
_LOOKS_SECRET = [
    (re.compile(r"(?<=://)[^\s/?#'\"<>]+@"), HIDDEN + "@"),
    (
        re.compile(r"([?&;][\w.-]*(?:token|key|secret|password|signature|sig|credential)[\w-]*=)[^&#\s'\"]+", re.I),
        r"\1***",
    ),
    (re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END|$)", re.S), r"\1***\2"),
    (re.compile(r"(\bBearer\s+)(?=[^\s'\"]*\d)[\w.~+/=-]{8,}", re.I), r"\1***"),
    (
        re.compile(rf"""(\b{_NAME}['"]?\s*[:=]\s*['"]?(?:(?:basic|bearer|token)\s+)?)[^\s'",;&}}]+""", re.I),
        r"\1***",
    ),
    (re.compile(rf"""(--{_NAME}\s+['"]?)[^\s'"]+""", re.I), r"\1***"),
    (re.compile(r"""(\btoken['"]?\s*[:=]\s*['"]?)(?=[^\s'"]*\d)[\w.~+/=-]{12,}""", re.I), r"\1***"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
            r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
        ),
        HIDDEN,
    ),
]


def redacted(value: Any) -> Any:
    """The same text, mapping or list without its secrets; anything else is returned as it is.

    A secret is the value of a setting or environment variable that is named like one, a URL's user and password, what
    follows `Authorization:` and its like, and what has the shape of a well-known service's token. The value of a
    setting so named is remembered: a library's message may repeat it without its name.

    Example:
        >>> redacted({"hub_token": "planted-0123", "beta": 0.1, "from": "https://me:planted@host/pairs"})
        {'hub_token': '***', 'beta': 0.1, 'from': 'https://***@host/pairs'}
        >>> redacted("the server said: planted-0123 is not valid")
        'the server said: *** is not valid'
    """
    if isinstance(value, Mapping):
        return {key: _under(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(each) for each in value]
    if not isinstance(value, str):
        return value
    for secret in sorted(_remembered | _of_environment(), key=len, reverse=True):
        value = value.replace(secret, HIDDEN)
    for pattern, stays in _LOOKS_SECRET:
        value = pattern.sub(stays, value)
    return value


def redacted_command(words: Iterable[str]) -> list[str]:
    """A command line without its secrets.

    Example:
        >>> redacted_command(["srpo", "train", "--hub_token", "planted-4567", "--beta", "0.1"])
        ['srpo', 'train', '--hub_token', '***', '--beta', '0.1']
    """
    shown: list[str] = []
    flag = ""
    for word in words:
        shown.append(_under(flag, word))
        flag = word.lstrip("-") if word.startswith("--") and "=" not in word else ""
    return shown


def _under(name: str, value: Any) -> Any:
    """A setting's value as it may be shown."""
    if not _names_secret(name) or value is None or isinstance(value, bool):
        return redacted(value)
    if isinstance(value, str) and len(value) >= _SHORTEST:
        _remembered.add(value)
    return HIDDEN if value else value


def _names_secret(name: str) -> bool:
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    before, last = (["", *words] if len(words) < 2 else words)[-2:] if words else ("", "")
    return (
        bool(_SAYS_SECRET & {*words})
        or last in ("apikey", "pat")
        or (last == "token" and before not in _TOKENS_OF_TEXT)
        or (last == "key" and before in _KINDS_OF_KEY)
    )


def _of_environment() -> set[str]:
    """What the environment holds under a secret's name; there, every key is one."""
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and (_names_secret(name) or name.upper().endswith(("_KEY", "_TOKEN")))
    }
