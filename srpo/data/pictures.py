"""Pictures of a row: from columns, message parts and earlier trails to checked pictures (picture.py).

A prompt holds U+FFFC, the Unicode character that stands for an object in text, at the place of each picture. Its
message lists their hashes and paths under "pictures", so that prompts with different pictures differ everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from srpo.data.picture import Picture, picture_of
from srpo.data.values import Message, Prompt, Row, Unusable, kind
from srpo.errors import DataError

PICTURE = "\ufffc"  # OBJECT REPLACEMENT CHARACTER
COLUMNS = ("image", "images")
RECORD = "pictures"  # key of a message: its pictures' hashes and paths
SHOWING = ("prompt", "conversations", "chosen", "rejected")  # columns whose messages may show pictures, in this order
MARKED = "<image>"  # how some data sets write the place of a picture; it would be read as letters


class PicturedPrompt(list[Message]):
    """A prompt as a list of messages that also carries its pictures.

    Attributes:
        pictures: the pictures, in the order of their places (U+FFFC) in the text.
    """

    def __init__(self, messages: Iterable[Message], pictures: Iterable[Picture] = ()) -> None:
        super().__init__(messages)
        self.pictures = tuple(pictures)


def pictures_of(prompt: Prompt) -> tuple[Picture, ...]:
    """Returns the pictures that a prompt carries, in the order of its text; () for a prompt without pictures."""
    return prompt.pictures if isinstance(prompt, PicturedPrompt) else ()


def refuse_pictures(prompt: Prompt, who: str, where: str = "") -> None:
    """Raises DataError if a prompt, also one from a trail, has pictures that `who` cannot see; `where` is its place."""
    if not isinstance(prompt, str) and any(message.get(RECORD) for message in prompt):
        raise DataError(
            f"the prompt has pictures, and {who} is not shown pictures", where=where, fix="leave such prompts out"
        )


def with_pictures(prompt: Prompt, pictures: tuple[Picture, ...], answers: Iterable[str] = ()) -> Prompt:
    """Returns the prompt as a `PicturedPrompt` that carries these pictures; unchanged without pictures.

    Raises:
        Unusable: the prompt's text has places (U+FFFC) for another number of pictures, or an answer has a place.
    """
    if not pictures:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    shown = sum(turn["content"].count(PICTURE) for turn in turns)
    if shown != len(pictures):
        raise Unusable(f"the prompt shows {shown} of {len(pictures)} pictures")
    if any(PICTURE in answer for answer in answers):
        raise Unusable("an answer shows a picture; want text alone")
    left = iter(pictures)
    found = []
    for turn in turns:
        here = islice(left, turn["content"].count(PICTURE))
        records = [{"sha256": each.sha256, "path": each.path} for each in here]
        found.append({**turn, RECORD: records} if records else turn)
    return PicturedPrompt(found, pictures)


# ---------------------------------------------------------------------- row → row of text, pictures


class _Part(NamedTuple):
    """An image part of a message: the picture inside it, or None if the picture comes from a column of the row."""

    value: object = None


def taken(row: object, folder: Path | None = None) -> tuple[Any, tuple[Picture, ...]]:
    """Takes the pictures out of a row: returns the row with U+FFFC in the place of each, and the checked pictures.

    Args:
        folder: folder that relative paths start from; None takes the working directory.

    Raises:
        Unusable: a picture cannot be shown, or pictures and image parts differ in number.
    """
    if not isinstance(row, Mapping):
        return row, ()
    parts = {key: found for key in SHOWING if (found := _parts(row.get(key)))}
    given = _given(row)
    if not parts and not given:
        return row, ()
    text = {key: value for key, value in row.items() if key not in COLUMNS}
    if any(isinstance(value, str) and PICTURE in value for value in text.values()):
        raise Unusable("the text holds U+FFFC, the place of a picture")
    text |= {key: _replaced(row[key]) for key in parts}
    if not parts:
        text |= _begun(text, len(given))
    column = next((key for key in COLUMNS if not _is_nothing(row.get(key))), "image")
    values = {key: _filled(each, given) for key, each in parts.items()} or {column: given}
    seen: dict[str, tuple[Picture, ...]] = {}
    for key, each in values.items():
        seen[key] = tuple(picture_of(value, column, folder) for value in each)
    first, *others = seen.values()
    if any(other != first for other in others):
        raise Unusable(f"{' and '.join(map(repr, seen))} show different pictures")
    if any(MARKED in each for each in _texts(text)):
        raise Unusable(f"the prompt holds {MARKED!r} besides a picture; want a part of type 'image' in its place")
    return text, first


def _given(row: Row) -> list[object]:
    """The pictures in a row's column `image` or `images`, as a list; raises Unusable if both columns hold some."""
    found = [(key, row[key]) for key in COLUMNS if not _is_nothing(row.get(key))]
    if len(found) > 1:
        raise Unusable("both 'image' and 'images'; want one of them")
    return [each for _, value in found for each in (value if isinstance(value, list | tuple) else [value])]


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str | bytes | list | tuple | dict) and not value)


def _messages(value: object) -> list[Mapping[str, Any]]:
    listed = value if isinstance(value, list) else [value]
    return [each for each in listed if isinstance(each, Mapping)]


def _parts(value: object) -> list[_Part]:
    """The image parts in the messages of a row's column, in order; [] for a column of any other kind."""
    found: list[_Part] = []
    for message in _messages(value):
        if records := message.get(RECORD):  # a message of an earlier trail
            if not isinstance(records, list):
                raise Unusable(f"{RECORD!r} of a message is {kind(records)}; want a list of pictures")
            found += [_Part(record) for record in records]
        elif isinstance(content := message.get("content"), list):
            found += [_Part(_value_of(part)) for part in content if is_image(part)]
    return found


def is_image(part: object) -> bool:
    """True if one part of a message's content is a picture, by its `type`."""
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def _value_of(part: Mapping[str, Any]) -> object:
    """The picture inside an image part, such as its path; None for a part whose picture is in a column of the row."""
    named = [part[key] for key in ("image", "image_url", "url", "path", "base64") if not _is_nothing(part.get(key))]
    if len(named) > 1:
        raise Unusable("an image part names several pictures; want one")
    found = named[0] if named else None
    if part.get("base64") and isinstance(found, str) and not found.startswith("data:"):
        return f"data:image/png;base64,{found}"
    return found.get("url", found) if isinstance(found, Mapping) else found


def _replaced(value: Any) -> Any:
    """A copy of messages in which each image part is a text part of U+FFFC; raises Unusable if text holds U+FFFC."""
    if isinstance(value, Mapping):
        return _replaced([value])[0]
    found = []
    for message in value:
        if isinstance(message, Mapping) and isinstance(message.get("content"), list):
            parts = [{"type": "text", "text": PICTURE} if is_image(part) else part for part in message["content"]]
            texts = [part["text"] for part in message["content"] if isinstance(part, Mapping) and part.get("text")]
            if any(isinstance(each, str) and PICTURE in each for each in texts):
                raise Unusable("the text holds U+FFFC, the place of a picture")
            found.append({**message, "content": parts})
        else:
            found.append({key: each for key, each in message.items() if key != RECORD})
    return found


def _filled(parts: list[_Part], given: list[object]) -> list[object]:
    empty = sum(part.value is None for part in parts)
    if empty != len(given):
        raise Unusable(f"{empty} image parts without a picture of their own, and {len(given)} pictures in columns")
    left = iter(given)
    return [next(left) if part.value is None else part.value for part in parts]


def _begun(row: Row, count: int) -> dict[str, Any]:
    """The row's columns that hold its prompt, with `count` U+FFFC put before the user's first text in each."""
    keys = [key for key in ("prompt", "conversations", "instruction") if key in row] or ["chosen", "rejected"]
    return {key: _with_places(row.get(key), key, PICTURE * count) for key in keys}


def _with_places(value: object, key: str, places: str) -> object:
    if isinstance(value, str) and key not in ("chosen", "rejected"):
        return places + value
    if isinstance(value, list):
        for at, message in enumerate(value):
            if isinstance(message, Mapping) and message.get("role", message.get("from")) in ("user", "human"):
                name = "content" if "content" in message else "value"
                content = message.get(name)
                before = [{"type": "text", "text": places}]
                shown = [*before, *content] if isinstance(content, list) else f"{places}{content}"
                return [*value[:at], {**message, name: shown}, *value[at + 1 :]]
    raise Unusable("pictures need a 'prompt', or messages with one of the user, to be shown in")


def _texts(row: Row) -> Iterable[str]:
    """Yields the texts of a row's prompt, from every column that may hold it; answers are left out."""
    for key in ("instruction", *SHOWING):
        value, answer = row.get(key), key in ("chosen", "rejected")
        if isinstance(value, str) and not answer:
            yield value
        for message in _messages(value):
            if answer and message.get("role") == "assistant":
                continue
            content = message.get("content", message.get("value"))
            parts = content if isinstance(content, list) else [content]
            yield from (each for part in parts if isinstance(each := _text_of(part), str))


def _text_of(part: object) -> object:
    return part.get("text") if isinstance(part, Mapping) else part
