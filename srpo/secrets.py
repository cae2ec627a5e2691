"""Secrets: recognised by their name or their shape, and removed from messages, records and logs.

This file is the only owner of the question "is this a secret?". Errors, run records and model cards call `redacted`;
the command line wraps standard error in `Redacting`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TextIO

HIDDEN = "***"
_SHORTEST = 8  # characters; a shorter value is more likely a word, and hiding it would garble every message
_SAYS_SECRET = {"secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "authorization"}
_KINDS_OF_KEY = {"api", "access", "private", "account", "signing", "encryption", "ssh"}
_TOKENS_OF_TEXT = {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "next", "last", "image"}
_remembered: set[str] = set()

_NAME = (
    r"(?:[\w.-]*(?:secret|passw(?:or)?d|passphrase|credentials?|authorization|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"|(?:[\w.-]*[_-])?(?:hub|hf|api|auth|access|refresh|session|bot)[_-]?token)"
)
# Pattern → replacement. Tokens of known services match by shape; other secrets match by the name before them.
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


def redacted(value: object) -> Any:
    """Returns the same text, mapping or list without its secrets; any other value is returned unchanged.

    Secrets are: values of settings and environment variables with a secret's name, the user and password of a URL, the
    text after `Authorization:` and similar words, and tokens in the shape of a well-known service. The value of a
    setting with a secret's name is remembered, because a library's message may repeat the value without the name.

    Example:
        >>> redacted({"hub_token": "planted-0123", "beta": 0.1, "from": "https://me:planted@host/pairs"})
        {'hub_token': '***', 'beta': 0.1, 'from': 'https://***@host/pairs'}
        >>> redacted("the server wrote: planted-0123 is not valid")
        'the server wrote: *** is not valid'
    """
    if isinstance(value, Mapping):
        return {key: _under(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(each) for each in value]
    if not isinstance(value, str):
        return value
    for secret in sorted(_remembered | _of_environment(), key=len, reverse=True):
        value = value.replace(secret, HIDDEN)
    for pattern, replacement in _LOOKS_SECRET:
        value = pattern.sub(replacement, value)
    return value


def redacted_command(words: Iterable[str]) -> list[str]:
    """Returns the words of a command line with "***" in place of secrets.

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


def _under(name: str, value: object) -> Any:
    """The value of the setting `name`, hidden if the name means a secret; remembers the secret for other texts."""
    if not _names_secret(name) or value is None or isinstance(value, bool):
        return redacted(value)
    if isinstance(value, str) and len(value) >= _SHORTEST:
        _remembered.add(value)
    return HIDDEN if value else value


@lru_cache(4096)  # each line of progress asks about every variable of the environment
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
    """Values of environment variables named like secrets, which includes all names ending in _KEY or _TOKEN."""
    return {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and (_names_secret(name) or name.upper().endswith(("_KEY", "_TOKEN")))
    }


class Redacting:
    """A text stream that removes secrets from everything written to it.

    The command line wraps standard error, where libraries log as well. Standard output carries results and is not
    wrapped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
