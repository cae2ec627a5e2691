"""Thumbnails of `srpo check`: every pixel in a terminal with colours, nothing anywhere else."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from srpo.check.inspection import Example, Inspection, inspect
from srpo.check.inspection_print import _shown, print_inspection
from srpo.check.thumbnail import HALF, MOST, thumbnail
from srpo.data.picture import Picture, picture_of
from srpo.errors import InputError
from srpo.sequences.render import Renderer
from tests.conftest import make_byte_tokenizer

ESCAPE = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+)(?:;48;2;(\d+);(\d+);(\d+))?m" + HALF)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def pattern(wide: int, high: int) -> Image.Image:
    """A picture whose pixels all differ."""
    image = Image.new("RGB", (wide, high))
    for x in range(wide):
        for y in range(high):
            image.putpixel((x, y), (7 * x, 11 * y, x + y))
    return image


@pytest.fixture(scope="module")
def found() -> Inspection:
    rows = [{"prompt": "p", "chosen": "yes", "rejected": "no"}]
    plain = inspect(rows, Renderer(make_byte_tokenizer()), num_proc=1)
    plain.examples[0] = plain.examples[0]._replace(pictures=(picture_of(pattern(5, 3)),))
    return plain


def printed(found: Inspection, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream)
    print_inspection(found)
    return stream.getvalue()


def test_a_terminal_with_colours_shows_each_pixel(found: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = printed(found, Terminal(), monkeypatch), pattern(5, 3)
    lines = [line for line in text.splitlines() if HALF in line]
    assert len(lines) == 2
    for row, line in enumerate(lines):
        cells = [tuple(int(value) for value in each if value) for each in ESCAPE.findall(line)]
        wanted = [image.getpixel((x, 2 * row)) for x in range(5)]
        assert [cell[:3] for cell in cells] == wanted
        lower = (
            [image.getpixel((x, 1)) for x in range(5)] if row == 0 else [()] * 5
        )  # three rows: the last has no lower
        assert [cell[3:] for cell in cells] == lower


@pytest.mark.parametrize(
    ("stream", "environment"),
    [
        (io.StringIO, {}),
        (io.StringIO, {"FORCE_COLOR": "1"}),
        (Terminal, {"NO_COLOR": "1"}),
        (Terminal, {"TERM": "dumb"}),
    ],
)
def test_nothing_is_shown_in_files_and_without_colours(
    found: Inspection, stream: type[io.StringIO], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(found, stream(), monkeypatch, **environment)
    assert "draft" in text
    assert HALF not in text


def test_large_pictures_are_made_smaller_and_keep_their_shape() -> None:
    shown = thumbnail(picture_of(pattern(20, 36).resize((400, 720)))).plain.splitlines()
    assert len(shown) == MOST // 2
    assert {len(line) for line in shown} == {round(MOST * 20 / 36)}


def test_no_picture_is_in_the_page_or_in_json(found: Inspection) -> None:
    (encoded,) = found.examples[0].pictures
    assert encoded.data
    assert all(set(each) == {"where", "role", "context", "answer"} for each in json.loads(found.to_json())["examples"])
    assert encoded.sha256 not in found.to_html()
    assert Example("row 1", "draft", "c", "a").pictures == ()


def test_a_changed_file_is_an_error(tmp_path: Path) -> None:
    (file := tmp_path / "a.png").write_bytes(b"other")
    with pytest.raises(InputError, match="the picture has changed since its row was read"):
        thumbnail(Picture("0" * 64, str(file)))


def test_a_picture_that_is_lost_does_not_end_the_report() -> None:
    class Lost:
        def image(self) -> None:
            raise InputError("[a].png: cannot be read")

    assert str(_shown(Lost())) == r"\[a].png: cannot be read"  # type: ignore[arg-type]
