"""Rows from outside → `Pair` or `Reject`. The only code that reads untrusted rows.

Two layouts, told apart by their values, with the columns TRL uses: strings (`prompt`, `chosen`, `rejected`) and
message lists (`[{"role": …, "content": …}]`), the prompt explicit or as the messages that chosen and rejected share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from srpo.errors import DataError, InputError

Message = dict[str, str]
Prompt = str | list[Message]

SHOWN_REJECTS = 10


@dataclass(frozen=True)
class Pair:
    """One preference: a prompt and two answers to it.

    Attributes:
        prompt: text, or the messages before the answer.
        chosen: text of the preferred answer.
        rejected: text of the other.
        where: `file:line` or `row n`, for messages about it.
        meta: the row's other columns, untouched.

    Example:
        >>> Pair("2+2=", chosen="4", rejected="5").chosen
        '4'
    """

    prompt: Prompt
    chosen: str
    rejected: str
    where: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


class PromptRow(NamedTuple):
    """A prompt to answer, and the row's other columns."""

    prompt: Prompt
    where: str
    meta: dict[str, Any]


class Reject(NamedTuple):
    """A row that cannot be used, where it stands and why."""

    where: str
    reason: str


def read_pairs(source: str | Path | Iterable[Mapping[str, Any]], *, rejects: list[Reject] | None = None) -> list[Pair]:
    """Preference pairs from a JSONL file or from rows in memory, in their order.

    Args:
        source: path of a JSONL file, or rows with `prompt`, `chosen` and `rejected`.
        rejects: a list that takes the unusable rows; without one, the first unusable row is an error.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: a row cannot be used (the first ten are named) or none is left.

    Example:
        >>> read_pairs([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}])[0].rejected
        '5'
    """
    return _collect(source, _pair_of, rejects, "pairs")


def read_prompts(
    source: str | Path | Iterable[Mapping[str, Any]], *, rejects: list[Reject] | None = None
) -> list[PromptRow]:
    """Prompts from a JSONL file or from rows in memory; every other column is carried along in `meta`.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: a row has no usable prompt (the first ten are named) or none is left.

    Example:
        >>> read_prompts([{"prompt": "2+2=", "gold": "4"}])[0].meta
        {'gold': '4'}
    """
    return _collect(source, _prompt_of, rejects, "prompts")


def _collect(source: Any, build: Any, rejects: list[Reject] | None, noun: str) -> list[Any]:
    kept, bad, name = [], [] if rejects is None else rejects, "rows"
    already = len(bad)
    if isinstance(source, str | Path):
        rows, name = jsonl_rows(source), str(source)
    else:
        rows = ((f"row {i}", row) for i, row in enumerate(source, 1))
    for where, row in rows:
        try:
            kept.append(build(_as_object(row), where))
        except _Unusable as problem:
            bad.append(Reject(where + problem.column, str(problem)))
    if len(bad) > already and (rejects is None or not kept):
        raise _too_bad(bad[already:], len(kept), noun)
    if not kept:
        raise DataError(f"no {noun}", where=name, expected="at least one JSON object per line")
    return kept


def _too_bad(bad: list[Reject], kept: int, noun: str) -> DataError:
    listed = "\n".join(f"  {where}: {reason}" for where, reason in bad[:SHOWN_REJECTS])
    more = f"\n  … and {len(bad) - SHOWN_REJECTS} more" if len(bad) > SHOWN_REJECTS else ""
    total = kept + len(bad)
    fix = "mend these rows, or go on without them with `--bad_rows skip`" if kept else "mend them"
    return DataError(f"{len(bad)} of {total} rows cannot be used as {noun}:\n{listed}{more}\n", fix=fix)


class _Unusable(Exception):
    """Why one row cannot be used; becomes a `Reject`."""

    def __init__(self, reason: str, column: str = "") -> None:
        super().__init__(reason)
        self.column = column


def jsonl_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(`file:line`, value or the `_Unusable` that stands for it) of each line that is not blank.

    A byte-order mark, CRLF and blank lines are accepted; anything that is not one JSON value in UTF-8 is not.

    Raises:
        InputError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield f"{path}:{number}", _parse(raw.rstrip(b"\r\n"))  # else a torn line's error is past its end
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="a JSONL file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None


def _parse(raw: bytes) -> Any:
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if b"\\ud" in raw.lower():  # in any column: what is carried along is written again
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeDecodeError as error:
        return _Unusable(f"not UTF-8: byte {raw[error.start]:#04x} at column {error.start + 1}", f":{error.start + 1}")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at").removesuffix(" starting")  # the column is said before it
        return _Unusable(f"not JSON: {what}", f":{error.colno}")
    except RecursionError:
        return _Unusable("not usable: nested too deeply")
    except UnicodeEncodeError as error:
        return _Unusable(f"holds half of a surrogate pair, {error.object[error.start]!r}")
    except ValueError:  # all that is left of it: Python converts no integer this long
        return _Unusable("not usable: a number of thousands of digits")
    except _Unusable as problem:
        return problem


def _no_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(items)
    if len(row) < len(items):
        [(twice, _)] = Counter(key for key, _ in items).most_common(1)
        raise _Unusable(f"key {twice!r} stands twice")
    return row


def _no_constant(word: str) -> Any:
    raise _Unusable(f"not JSON: {word} is not a JSON number")


def _as_object(row: Any) -> Mapping[str, Any]:
    if isinstance(row, _Unusable):
        raise row
    if not isinstance(row, Mapping):
        raise _Unusable(f"expected an object with prompt, chosen and rejected, got {_kind(row)}")
    return row


def _pair_of(row: Mapping[str, Any], where: str) -> Pair:
    for key in ("chosen", "rejected"):
        if key not in row:
            raise _Unusable(f"no {key!r}; this row has {', '.join(map(repr, row)) or 'no keys'}")
    sides = {key: _text_or_messages(row[key], key) for key in ("chosen", "rejected")}
    prompt = _text_or_messages(row["prompt"], "prompt") if "prompt" in row else None
    chosen, rejected = sides["chosen"], sides["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise _Unusable("no 'prompt'; strings need one beside chosen and rejected")
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, chosen, rejected = _split_messages(prompt, chosen, rejected)
    else:
        raise _Unusable(f"chosen is {_kind(row['chosen'])} but rejected is {_kind(row['rejected'])}; want two alike")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer.strip():
            raise _Unusable(f"{key!r} is empty")
    if chosen == rejected:
        raise _Unusable("chosen and rejected are identical, so neither is preferred")
    meta = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected")}
    return Pair(prompt, chosen, rejected, where, meta)


def _prompt_of(row: Mapping[str, Any], where: str) -> PromptRow:
    if "prompt" in row:
        prompt = _text_or_messages(row["prompt"], "prompt")
    elif "chosen" in row and "rejected" in row:
        prompt = _pair_of(row, where).prompt
    else:
        raise _Unusable(f"no 'prompt'; this row has {', '.join(map(repr, row)) or 'no keys'}")
    if not prompt:
        raise _Unusable("'prompt' is empty")
    return PromptRow(prompt, where, {key: value for key, value in row.items() if key != "prompt"})


def _split_messages(
    prompt: Prompt | None, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    """The messages before the answers, and the two answers' texts."""
    if prompt is None:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt = chosen[:shared]
        if not prompt:
            raise _Unusable("no 'prompt', and chosen and rejected share no message to take it from")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt, _answer_of(prompt, chosen, "chosen"), _answer_of(prompt, rejected, "rejected")


def _answer_of(prompt: list[Message], messages: list[Message], key: str) -> str:
    """The one assistant message after the prompt, whether or not the prompt is repeated before it."""
    if len(messages) > len(prompt) and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "nothing"
        raise _Unusable(f"{key!r} must be one assistant message after the prompt, got {roles}")
    return messages[0]["content"]


def _text_or_messages(value: Any, key: str) -> Prompt:
    if isinstance(value, str):
        _encodable(value, key)
        return value
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        return [_message(message, key) for message in value]
    raise _Unusable(f"{key!r} is {_kind(value)}; want a string or a list of messages")


def _message(message: Mapping[str, Any], key: str) -> Message:
    for part in ("role", "content"):
        if not isinstance(message.get(part), str):
            raise _Unusable(f"a message in {key!r} has no text {part!r}: got {_kind(message.get(part))}")
        _encodable(message[part], key)
    return {"role": message["role"], "content": message["content"]}


def _encodable(text: str, key: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable(f"{key!r} holds half of a surrogate pair at character {error.start + 1}") from None


def _kind(value: Any) -> str:
    names = {type(None): "null", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    if isinstance(value, list):
        words = dict.fromkeys("list" if isinstance(item, list) else _kind(item).split()[-1] for item in value)
        return "a list of " + " and ".join(f"{word}s" for word in words) if words else "an empty list"
    return "an object" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
