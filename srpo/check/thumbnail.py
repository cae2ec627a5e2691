"""A picture in a terminal: half-block characters, each of which shows two pixels, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srpo.data.picture import Picture

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

MOST = 32  # pixels along the longer side
HALF = "\u2580"  # the upper half block: its colour is the upper pixel, its background the lower one


def shows_thumbnails(console: Console) -> bool:
    """Returns True if the console writes to a terminal with colours; False for files, also with FORCE_COLOR."""
    return console.file.isatty() and console.color_system is not None and not console.no_color


def thumbnail(picture: Picture) -> Text:
    """Returns a picture as text of at most 32 columns and 16 lines; a smaller picture keeps its size.

    Raises:
        InputError: the picture's file has changed since its row was read.
    """
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    image = picture.image()
    image.thumbnail((MOST, MOST))
    text = Text()
    for top in range(0, image.height, 2):
        for left in range(image.width):
            upper, *lower = (
                Color.from_rgb(*image.getpixel((left, row))[:3])  # type: ignore[index]
                for row in range(top, min(top + 2, image.height))
            )
            text.append(HALF, Style(color=upper, bgcolor=lower[0] if lower else None))
        text.append("\n")
    return text
