"""One value from outside → text, messages, a number, or the reason why it is none of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]
Prompt = str | list[Message]
Row = Mapping[str, Any]

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names; any other name is a role already
NOT_TEXT = ("image", "images", "video", "videos", "audio", "audios")  # columns
NOT_SHOWN = ("tool_calls", "function_call", "reasoning_content", "thinking", *NOT_TEXT)  # parts of a message
NOT_THE_USERS = (
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_tensors",
    "return_dict",
    "tools",
)
HUGE = 1e300
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Unusable(Exception):
    """Why one row cannot be used; becomes a `Reject`."""

    def __init__(self, reason: str, column: str = "") -> None:
        super().__init__(reason)
        self.column = column


class NoPreference(Unusable):
    """The row is as it should be, but says of no answer that it is better than another."""


def as_object(row: Any, holds: str) -> Row:
    """The row itself, if it is an object of text.

    Raises:
        Unusable: it is anything else, or stands for a line that could not be read.
    """
    if isinstance(row, Unusable):
        raise row
    if not isinstance(row, Mapping):
        raise Unusable(f"expected an object with {holds}, got {kind(row)}")
    for key in row:
        if not isinstance(key, str):
            raise Unusable(f"a column is named by {kind(key)}; want a string")
    for key in NOT_TEXT:
        if not _nothing(row.get(key)):
            raise Unusable(f"{key!r} is not empty; a text model cannot be shown it")
    return row


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


# ---------------------------------------------------------------------- text and messages


def text(value: Any, key: str) -> str:
    """A string that can be encoded.

    Raises:
        Unusable: it is none.
    """
    if not isinstance(value, str):
        raise Unusable(f"{key!r} is {kind(value)}; want a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"{key!r} holds half of a surrogate pair at character {error.start + 1}") from None
    return value


def joined(parts: list[Any], key: str) -> str:
    """Texts as lines of one, those that are empty left out.

    Raises:
        Unusable: one of them is not text.
    """
    return "\n".join(text(part, key) for part in parts if part not in (None, ""))


def messages(value: Any, key: str) -> list[Message]:
    """Messages as {"role", "content"}, whichever way they are written.

    Raises:
        Unusable: one is not a message, or holds what would be left out.
    """
    if not (isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value)):
        raise Unusable(f"{key!r} is {kind(value)}; want a list of messages")
    return [_message(message, key) for message in value]


def text_or_messages(value: Any, key: str) -> Prompt:
    """Either of the two above.

    Raises:
        Unusable: it is neither.
    """
    if isinstance(value, str):
        return text(value, key)
    if shape(value) != "objects":
        raise Unusable(f"{key!r} is {kind(value)}; want a string or a list of messages")
    return messages(value, key)


def _message(message: Row, key: str) -> Message:
    role, content = ("role", "content") if "from" not in message else ("from", "value")
    for part in (role, content):
        if not isinstance(message.get(part), str):
            raise Unusable(f"a message in {key!r} has no text {part!r}: got {kind(message.get(part))}")
        text(message[part], key)
    for part in NOT_SHOWN:
        if not _nothing(message.get(part)):
            raise Unusable(f"a message in {key!r} has {part!r}, which would be left out; want text alone")
    return {"role": ROLES.get(message[role], message[role]), "content": message[content]}


def turns(transcript: str, key: str) -> list[Message]:
    """The turns of "\\n\\nHuman: … \\n\\nAssistant: …", without the white space around each.

    Raises:
        Unusable: it does not begin with Human, end with Assistant and alternate between them.
    """
    before, *pieces = _TURN.split("\n\n" + transcript.lstrip())
    speakers = pieces[::2]
    if before.strip() or speakers != ["Human", "Assistant"] * (len(speakers) // 2) or not speakers:
        who = ", ".join(speakers[:8]) or "neither"
        raise Unusable(f"the transcript in {key!r} goes {who}; want Human and Assistant in turn, Assistant last")
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[who], "content": text(said.strip(), key)}
        for who, said in zip(speakers, pieces[1::2], strict=True)
    ]


def is_transcript(value: Any) -> bool:
    """Whether a text has the marks of a transcript."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def number(value: Any, key: str) -> float:
    """A finite number.

    Raises:
        Unusable: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{key!r} is {kind(value)}; want a number")
    if not -HUGE < value < HUGE:  # an integer may be too long for a float, which isfinite would trip over
        raise Unusable(f"{key!r} is not a finite number")
    return float(value)


# ---------------------------------------------------------------------- a prompt as text


def prompt_text(prompt: Prompt) -> str:
    """A prompt for a reader or a judge: text unchanged, messages as `role: content` with a blank line between them.

    Example:
        >>> prompt_text([{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}])
        'system: Add.\\n\\nuser: 2+2?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def last_message(prompt: Prompt) -> str:
    """The text of a prompt's last message; the prompt itself where it is text."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def transcript(prompt: Prompt) -> str:
    """A prompt for a model without a chat template: text unchanged, messages as a transcript awaiting its answer.

    Example:
        >>> transcript([{"role": "user", "content": "2+2?"}])
        'User: 2+2?\\n\\nAssistant:'
    """
    if isinstance(prompt, str):
        return prompt
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in prompt]
    return "\n\n".join([*turns, "Assistant:"])


# ---------------------------------------------------------------------- beside prompt and answers


def with_system(prompt: Prompt, row: Row) -> Prompt:
    """The prompt with the row's `system` before it.

    Raises:
        Unusable: it is not text, or differs from the one the prompt begins with.
    """
    if _nothing(row.get("system")):
        return prompt
    first = {"role": "system", "content": text(row["system"], "system")}
    listed = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if listed[:1] == [first]:
        return listed
    if listed and listed[0]["role"] == "system":
        raise Unusable("'system' differs from the system message that the prompt begins with")
    return [first, *listed]


def template_options(row: Row) -> tuple[list[dict[str, Any]] | None, dict[str, Any] | None]:
    """The row's `tools` and `chat_template_kwargs`, written as values or as JSON text; None where there are none.

    Raises:
        Unusable: they are anything else, or an option is not the user's to set.
    """
    tools, options = (_from_json(row.get(key), key) for key in ("tools", "chat_template_kwargs"))
    if not _nothing(tools) and shape(tools) != "objects":
        raise Unusable(f"'tools' is {kind(tools)}; want a list of objects, or the same as JSON text")
    if not _nothing(options) and not isinstance(options, Mapping):
        raise Unusable(f"'chat_template_kwargs' is {kind(options)}; want an object, or the same as JSON text")
    for key in NOT_THE_USERS:
        if key in (options or ()):
            raise Unusable(f"'chat_template_kwargs' may not set {key!r}")
    return tools or None, options or None


def _from_json(value: Any, key: str) -> Any:
    """JSON text as what it says, and any value without the nulls a table puts where a row has nothing."""
    try:
        if isinstance(value, str) and value:
            value = json.loads(value)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        return _without_nulls(value)
    except (TypeError, ValueError, RecursionError):
        raise Unusable(f"{key!r} is not JSON, nor has JSON a word for it") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------- kinds of value


def shape(value: Any) -> str:
    """What a layout asks of a value: "text", "texts", "objects", "object", "number", "null" or "other"."""
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


def kind(value: Any) -> str:
    """A value's kind in words, for messages."""
    names = {type(None): "null", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    if isinstance(value, list):
        words = dict.fromkeys("list" if isinstance(item, list) else kind(item).split()[-1] for item in value)
        return "a list of " + " and ".join(f"{word}s" for word in words) if words else "an empty list"
    return "an object" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
