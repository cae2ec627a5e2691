"""Checks single values from outside, such as text, messages and numbers, and raises `Unusable` with a reason."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Prompt = str | list[Message]
Row = Mapping[str, Any]

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names for roles; other names are roles already
NOT_TEXT = ("video", "videos", "audio", "audios")  # columns that no model is shown
NOT_SHOWN = ("tool_calls", "function_call", "image", "images", "pictures", *NOT_TEXT)  # keys of a message, rejected
NAMES = ("name", "tool_call_id")  # keys of a message that a chat template may show
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a message that hold its thinking
RESERVED = ("tokenize", "add_generation_prompt", "continue_final_message", "return_tensors", "return_dict", "tools")
THINK_START, THINK_END = "<think>", "</think>"
HUGE = 1e300
# The beginning of a list of messages, or of one message, as JSON or as Python writes it.
_MESSAGES = re.compile(r"""\s*(?:\[\s*)?\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Unusable(Exception):
    """Raised with the reason why one row is unusable; becomes a `Reject`.

    Attributes:
        column: suffix for the place of the row: ":42" if the error is in column 42 of its line, "" if unknown.
    """

    def __init__(self, reason: str, column: str = "") -> None:
        super().__init__(reason)
        self.column = column


class NoPreference(Unusable):
    """Raised for a well-formed row that prefers no answer, such as a tie."""


def as_object(row: object, holds: str) -> Row:
    """Returns the row unchanged, after a check that it is an object with text keys and without video or audio.

    Args:
        row: a value from outside, or the `Unusable` of a line that could not be read.
        holds: the wanted columns in words, for the error.

    Raises:
        Unusable: the row fails the check, or is itself an `Unusable`.
    """
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, Mapping):
        raise Unusable(f"expected an object with {holds}, got {kind(row)}")
    for key in row:
        if not isinstance(key, str):
            raise Unusable(f"a column is named by {kind(key)}; want a string")
    for key in NOT_TEXT:
        if not _is_empty(row.get(key)):
            raise Unusable(f"{key!r} is not empty, and no model is shown it")
    return row


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


# ---------------------------------------------------------------------- text and messages


def text(value: object, key: str) -> str:
    """Returns the value after a check that it is a string that can be encoded; `key` names its column in errors.

    Raises:
        Unusable: the value is not a string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise Unusable(f"{key!r} is {kind(value)}; want a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"{key!r} holds half of a surrogate pair at character {error.start + 1}") from None
    return value


def joined(parts: Sequence[object], key: str) -> str:
    """Returns the parts that are not empty, joined with line breaks; `key` names their column in errors.

    Raises:
        Unusable: a part is not text.
    """
    return "\n".join(text(part, key) for part in parts if part not in (None, ""))


def messages(value: object, key: str) -> list[Message]:
    """Returns messages in the form {"role", "content"}, converted from {"from", "value"} if need be.

    Of a message's other keys, the speaker's name and the message's thinking are kept.

    Args:
        value: a list of messages from outside.
        key: the column of the messages, named in errors.

    Raises:
        Unusable: an element is not a message, or has tool calls or media, which no model would be shown.
    """
    if not (isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value)):
        raise Unusable(f"{key!r} is {kind(value)}; want a list of messages")
    return [_message(message, key) for message in value]


def text_or_messages(value: object, key: str) -> Prompt:
    """Returns the value after a check that it is a string or a list of messages; `key` names its column in errors.

    Raises:
        Unusable: the value is neither a string nor a list of messages.
    """
    if shape(value) not in ("text", "objects"):
        raise Unusable(f"{key!r} is {kind(value)}; want a string or a list of messages")
    return text(value, key) if isinstance(value, str) else messages(value, key)


def _message(message: Row, key: str) -> Message:
    role, content = ("role", "content") if "from" not in message else ("from", "value")
    found = {"role": message.get(role), "content": _joined_parts(message.get(content), key)}
    for part, value in zip((role, content), found.values(), strict=True):
        if not isinstance(value, str):
            raise Unusable(f"a message in {key!r} has no text {part!r}: got {kind(value)}")
        text(value, key)
    for part in NOT_SHOWN:
        if not _is_empty(message.get(part)):
            raise Unusable(f"a message in {key!r} has {part!r}, which would be left out; want text alone")
    names = {part: text(message[part], key) for part in NAMES if not _is_empty(message.get(part))}
    thoughts = [text(message[part], key) for part in REASONING if not _is_empty(message.get(part))]
    if len(set(thoughts)) > 1:
        raise Unusable(f"a message in {key!r} has two texts of thinking; want one of {', '.join(REASONING)}")
    reasoning = dict.fromkeys(("reasoning_content", "thinking"), thoughts[0]) if thoughts else {}
    speaker = str(found["role"])
    return {"role": ROLES.get(speaker, speaker), "content": found["content"], **names, **reasoning}


def _joined_parts(content: object, key: str) -> object:
    """A message's content as one text if it is a list of text parts, joined as chat templates do; else unchanged.

    Raises:
        Unusable: a part is not text.
    """
    if not (isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content)):
        return content
    for part in content:
        other = [name for name, value in part.items() if name not in ("type", "text") and not _is_empty(value)]
        if part.get("type", "text") != "text" or other or not isinstance(part.get("text"), str):
            raise Unusable(f"a message in {key!r} has a part of type {part.get('type')!r}; want text alone")
    return "".join(part["text"] for part in content)


def answer_text(message: Message) -> str:
    """Returns the text of an assistant message, its thinking before its content."""
    thinking = message.get("thinking")
    return with_thinking(thinking, message["content"]) if thinking else str(message["content"])


def turns(transcript: str, key: str) -> list[Message]:
    r"""Returns the trimmed messages of a transcript "\n\nHuman: … \n\nAssistant: …"; `key` names its column in errors.

    Raises:
        Unusable: the text does not begin with Human, end with Assistant and alternate between them.
    """
    before, *pieces = _TURN.split("\n\n" + transcript.lstrip())
    speakers = pieces[::2]
    if before.strip() or speakers != ["Human", "Assistant"] * (len(speakers) // 2) or not speakers:
        order = ", ".join(speakers[:8]) or "neither"
        raise Unusable(f"the transcript in {key!r} goes {order}; want Human and Assistant in turn, Assistant last")
    names = {"Human": "user", "Assistant": "assistant"}
    both = zip(speakers, pieces[1::2], strict=True)
    return [{"role": names[speaker], "content": text(piece.strip(), key)} for speaker, piece in both]


def is_transcript(value: object) -> bool:
    """True if a value is text that begins with "Human:" and has a turn of "Assistant:"."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def number(value: object, key: str) -> float:
    """Returns the value as float after a check that it is a finite number; `key` names its column in errors.

    Raises:
        Unusable: the value is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{key!r} is {kind(value)}; want a number")
    if not -HUGE < value < HUGE:  # math.isfinite fails on an integer too long for a float
        raise Unusable(f"{key!r} is not a finite number")
    return float(value)


# ---------------------------------------------------------------------- thinking


def with_thinking(thinking: str, content: str) -> str:
    r"""Returns an answer as text: its thinking between `<think>` and `</think>`, then its content.

    Example:
        >>> with_thinking("2+2", "4")
        '<think>\n2+2\n</think>\n\n4'
    """
    return f"{THINK_START}\n{thinking}\n{THINK_END}\n\n{content}"


def split_thinking(answer: str, start: str = THINK_START, end: str = THINK_END) -> tuple[str | None, str | None]:
    r"""Returns (thinking, content) of an answer, which are separated by `</think>` or the mark `end`.

    Without thinking the first is None; in an answer cut off while thinking the second is None. The start may be
    missing, as in text generated after a prompt that opens a block of thinking.

    Example:
        >>> split_thinking("<think>\n2+2\n</think>\n\n4"), split_thinking("4"), split_thinking("<think>\n2+")
        (('2+2', '4'), (None, '4'), ('2+', None))
    """
    before, found, content = answer.partition(end)
    begins = before.lstrip().startswith(start)
    if not found and not begins:
        return None, answer
    thinking = before.lstrip().removeprefix(start).strip("\n")
    return (thinking, content.lstrip("\n")) if found else (thinking, None)


# ---------------------------------------------------------------------- a prompt as text


def prompt_text(prompt: Prompt) -> str:
    r"""Returns a prompt as text for a reader or a judge: messages as `role: content` with a blank line between them.

    Example:
        >>> prompt_text([{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}])
        'system: Add.\n\nuser: 2+2?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def last_message(prompt: Prompt) -> str:
    """Returns the text of a prompt's last message; the prompt itself if it is text."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def transcript(prompt: Prompt) -> str:
    r"""Returns a prompt as text for a model without a chat template: messages as a transcript awaiting its answer.

    Example:
        >>> transcript([{"role": "user", "content": "2+2?"}])
        'User: 2+2?\n\nAssistant:'
    """
    if isinstance(prompt, str):
        return prompt
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in prompt]
    return "\n\n".join([*turns, "Assistant:"])


# ---------------------------------------------------------------------- columns beside prompt and answers


def with_system(prompt: Prompt, row: Row) -> Prompt:
    """Returns the prompt with the row's `system` text, if any, as its first message.

    Raises:
        Unusable: `system` is not text, or differs from the prompt's own system message.
    """
    if _is_empty(row.get("system")):
        return prompt
    first = {"role": "system", "content": text(row["system"], "system")}
    listed = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if listed[:1] == [first]:
        return listed
    if listed and listed[0]["role"] == "system":
        raise Unusable("'system' differs from the system message that the prompt begins with")
    return [first, *listed]


def template_options(row: Row) -> tuple[list[dict[str, Any]] | None, dict[str, Any] | None]:
    """Returns the columns `tools` and `chat_template_kwargs` of a row, parsed if they are JSON text.

    An empty or missing column gives None.

    Raises:
        Unusable: a column holds a value of another kind, or an option that srpo itself sets.
    """
    tools, options = (_from_json(row.get(key), key) for key in ("tools", "chat_template_kwargs"))
    if not _is_empty(tools) and shape(tools) != "objects":
        raise Unusable(f"'tools' is {kind(tools)}; want a list of objects, or the same as JSON text")
    if not _is_empty(options) and not isinstance(options, Mapping):
        raise Unusable(f"'chat_template_kwargs' is {kind(options)}; want an object, or the same as JSON text")
    for key in RESERVED:
        if key in (options or ()):
            raise Unusable(f"'chat_template_kwargs' may not set {key!r}")
    return tools or None, options or None


def _from_json(value: object, key: str) -> Any:
    """A value of the column `key` as JSON, parsed if it is text, without the null values that tables add to objects.

    Raises:
        Unusable: the value is not JSON; the reason names `key`.
    """
    try:
        if isinstance(value, str) and value:
            value = json.loads(value)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        return _without_nulls(value)
    except (TypeError, ValueError, RecursionError):
        raise Unusable(f"{key!r} is not a JSON value") from None


def _without_nulls(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------- lists that a table turned into text


def from_text(row: Row, columns: Sequence[str]) -> Row:
    """Returns the row with lists of messages in place of texts that hold such lists.

    Tables often store a list of messages as its JSON text or as Python prints it. Other texts stay unchanged.

    Args:
        columns: names of the columns to look at.

    Raises:
        Unusable: a text begins like a list of messages, and is neither JSON nor Python.
    """
    found = {}
    for key in columns:
        value = row.get(key)
        if isinstance(value, str) and _MESSAGES.match(value):
            found[key] = python_or_json(value)
            if not _is_messages(found[key]):
                raise Unusable(f"{key!r} looks like messages that were written as text; want a list, or its JSON text")
    return {**row, **found} if found else row


def python_or_json(value: str) -> Any:
    """Returns the value of a text that is JSON or a Python literal; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _is_messages(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    keys = ({"role", "content"}, {"from", "value"})
    return all(isinstance(each, Mapping) and any(pair <= each.keys() for pair in keys) for each in listed)


# ---------------------------------------------------------------------- kinds of value


def shape(value: object) -> str:
    """Returns the kind of a value, for layouts: "text", "texts", "objects", "object", "number", "null" or "other"."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value:
        if all(isinstance(item, Mapping) for item in value):
            return "objects"
        return "texts" if all(isinstance(item, str) for item in value) else "other"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return "null" if value is None else "other"


def kind(value: object) -> str:
    """Returns the kind of a value in words for error messages, such as "a string" or "a list of objects"."""
    names = {type(None): "null", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    if isinstance(value, list):
        words = dict.fromkeys("list" if isinstance(item, list) else kind(item).split()[-1] for item in value)
        return "a list of " + " and ".join(f"{word}s" for word in words) if words else "an empty list"
    return "an object" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
