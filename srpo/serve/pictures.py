"""Pictures of a request: data: URLs alone, so that no request names a file or an address, decoded within limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from srpo.data.picture import picture_of
from srpo.data.pictures import RECORD, is_image
from srpo.data.values import Unusable
from srpo.serve.problems import invalid, unsupported

FORM = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
_WITHOUT_EFFECT = (None, "auto")  # values of `detail`


@dataclass(frozen=True)
class PictureLimits:
    """Limits of the pictures in one request.

    Attributes:
        most: largest number of pictures; 0 refuses requests with pictures.
        pixels: largest number of pixels of a picture, compared with its header before it is decoded.
    """

    most: int = 0
    pixels: int = 2**24


NO_PICTURES = PictureLimits()


def shows(messages: object) -> bool:
    """Whether messages of a request have pictures, in any form."""
    return isinstance(messages, list) and any(_count(each) or _has_record(each) for each in messages)


def with_decoded(messages: list[Any], limits: PictureLimits) -> list[Any]:
    """Returns messages whose image parts hold checked pictures; messages without pictures are returned as they are.

    Raises:
        Problem: a picture is not a data: URL, is unusable, has too many pixels, or there are too many pictures.
    """
    if not shows(messages):
        return messages
    if any(map(_has_record, messages)):
        raise invalid("messages", f"{RECORD!r} of a message is not taken; a picture is a part {FORM}")
    if not limits.most:
        raise invalid("messages", "text is expected; this model or server takes no pictures")
    if (count := sum(map(_count, messages))) > limits.most:
        raise invalid("messages", f"{count} pictures in one request; this server allows {limits.most}")
    found = []
    for message in messages:
        if _count(message):
            parts = [_decoded(part, limits) if is_image(part) else part for part in message["content"]]
            message = {**message, "content": parts}
        found.append(message)
    return found


def _decoded(part: Mapping[str, Any], limits: PictureLimits) -> dict[str, Any]:
    source = part.get("image_url")
    if {*part} != {"type", "image_url"} or not isinstance(source, dict) or {*source} - {"url", "detail"}:
        raise invalid("messages", f"a picture is a part {FORM}")
    url = source.get("url")
    if not isinstance(url, str) or not url.startswith("data:"):
        raise invalid("messages", f"a picture of a request is a data: URL, never a file or an address: {FORM}")
    if source.get("detail") not in _WITHOUT_EFFECT:
        raise unsupported("messages", "'detail' is not honoured; leave it out")
    try:
        return {"type": "image", "image": picture_of(url, "image_url", most_pixels=limits.pixels)}
    except Unusable as problem:
        raise invalid("messages", str(problem)) from None


def _count(message: object) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    return sum(map(is_image, content)) if isinstance(content, list) else 0


def _has_record(message: object) -> bool:
    return isinstance(message, dict) and RECORD in message
