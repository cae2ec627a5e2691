"""Pictures of rows: where they may be, and the kinds that are rejected."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from srpo.data.picture import picture_of
from srpo.data.pictures import PICTURE, PicturedPrompt, pictures_of
from srpo.data.read import Pair, Reject, Stream, read_pairs, read_prompts
from srpo.data.rejected import rejected_lines
from srpo.data.values import Unusable
from srpo.errors import DataError, InputError
from tests.sequences.pictured import picture, png

GOOD = png()
TEXT = {"prompt": "What colour?", "chosen": "red", "rejected": "blue"}
HEADER = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 3.6 thousand million pixels."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", HEADER) + GOOD[33:]


def deep_png() -> bytes:
    """A PNG with 16 bits of each colour, which Pillow decodes to 8 without a word."""
    header, rows = struct.pack(">II5B", 4, 4, 16, 2, 0, 0, 0), (b"\0" + b"\x12\x34" * 12) * 4
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff() -> bytes:
    """A TIFF of one pixel with 16 bits of each colour; Pillow keeps the mode of its pixels in a tuple."""
    tags = {256: 1, 257: 1, 258: 122, 259: 1, 262: 2, 273: 128, 277: 3, 278: 1, 279: 6}  # 258: bits, 273: pixels
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(tags)) + b"".join(entries)
    return (b"II*\0\x08\0\0\0" + directory).ljust(122, b"\0") + struct.pack("<6H", 16, 16, 16, 1, 2, 3)


def bmp_565() -> bytes:
    """A red BMP of 4 × 4 pixels with 5, 6 and 5 bits of the three colours."""
    fields = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 14 + len(fields) + 32, 0, 0, 14 + len(fields)) + fields + b"\x00\xf8" * 16


def text_bomb() -> bytes:
    """A PNG whose comment has 16 MB."""
    return GOOD[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**24)) + GOOD[33:]


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("a.png", GOOD)
    return held.getvalue()


def animated(kind: str) -> bytes:
    held = io.BytesIO()
    picture().save(held, kind, save_all=True, append_images=[picture("green"), picture("black")], duration=9)
    return held.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


# a name → the value of the column `image`, given a folder, and words of the reason
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda folder: "none.png", "no file: "),
    "folder": (lambda folder: str(folder), "not a file: "),
    "name with a null": (lambda folder: "a\0.png", "holds a null character"),
    "name too long": (lambda folder: "a" * 5000 + ".png", "cannot be read: File name too long"),
    "empty file": (lambda folder: _file(folder, b""), "is empty; want a picture"),
    "file of text": (lambda folder: _file(folder, b"a red square"), "is not a picture in PNG, JPEG"),
    "SVG": (lambda folder: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture in PNG, JPEG"),
    "PDF": (lambda folder: b"%PDF-1.7\n%%EOF", "is not a picture in PNG, JPEG"),
    "PostScript": (lambda folder: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
    "torn PNG": (lambda folder: _file(folder, png(picture(size=(64, 64)))[:90]), "is torn: "),
    "torn JPEG": (lambda folder: png(_noise(), "JPEG")[:700], "is torn: image file is truncated"),
    "damaged PNG": (lambda folder: GOOD[:45] + b"\xff\xff\xff" + GOOD[48:], "is torn: "),
    "bomb": (lambda folder: bomb(), "has too many pixels"),
    "huge picture": (lambda folder: png(Image.new("1", (9000, 9000))), "9000 × 9000 pixels; want at most 67108864"),
    "huge file": (lambda folder: _sparse(folder), "is a file of 67108865 bytes; want at most 67108864"),
    "animated GIF": (lambda folder: animated("GIF"), "is animated: 3 frames"),
    "animated PNG": (lambda folder: animated("PNG"), "is animated: 3 frames"),
    "animated WebP": (lambda folder: animated("WEBP"), "is animated: 3 frames"),
    "TIFF of pages": (lambda folder: animated("TIFF"), "is animated: 3 frames"),
    "16 bits": (lambda folder: Image.fromarray(np.zeros((4, 4), np.uint16)), "mode I;16; want 8 bits a channel"),
    "16 bits in a file": (lambda folder: png(Image.fromarray(np.zeros((4, 4), np.uint16))), "mode I;16; want 8 bits"),
    "16 bits, PIL": (
        lambda folder: Image.open(io.BytesIO(deep_png())),
        "'image' has pixels of mode RGB;16B; want 8 bits",
    ),
    "La": (lambda folder: Image.new("LA", (4, 4)).convert("La"), "'image' has pixels of mode La; want 8 bits"),
    "long path": (lambda folder: "a/" * 500, "no file: "),
    "data URL of another case": (lambda folder: " DATA:text/plain;base64,aGk=", "is a data: URL of another kind"),
    "16 bits of colour": (lambda folder: deep_png(), "has pixels of mode RGB;16B; want 8 bits a channel"),
    "16 bits of colour, TIFF": (lambda folder: deep_tiff(), "'image' has pixels of mode RGB;16L; want 8 bits"),
    "floats": (lambda folder: png(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "pixels of mode F"),
    "HEIC": (lambda folder: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is not a picture in PNG, JPEG"),
    "icon": (lambda folder: png(picture(), "ICO"), "is not a picture in PNG, JPEG"),
    "picture in a zip": (lambda folder: zipped(), "is not a picture in PNG, JPEG"),
    "null bytes": (lambda folder: b"\0" * 99, "is not a picture in PNG, JPEG"),
    "header alone": (lambda folder: GOOD[:33], "is not a picture in PNG, JPEG"),
    "no rows of pixels": (lambda folder: Image.new("RGB", (0, 0)), "is torn: "),
    "bomb of text": (lambda folder: text_bomb(), "is torn: Decompressed data too large"),
    "EXIF of noise": (lambda folder: png(exif=b"Exif\0\0" + b"\xff" * 50), "is torn: not a TIFF file"),
    "named pipe": (lambda folder: _pipe(folder), "not a file: "),
    "URL": (lambda folder: "https://example.org/a.png", "is a URL, and pictures are not downloaded"),
    "file URL": (lambda folder: "file:///etc/passwd", "is a URL, and pictures are not downloaded"),
    "data URL of text": (lambda folder: "data:text/plain;base64,aGk=", "is a data: URL of another kind"),
    "damaged data URL": (lambda folder: url(GOOD)[:-3] + "!!!", "whose base64 is damaged"),
    "data URL in other letters": (lambda folder: "data:image/png;base64,\u00e9", "whose base64 is damaged"),
    "not a number": (lambda folder: float("nan"), "'image' is a number; want a picture"),
    "list of lists": (lambda folder: [[[1, 2], [3, 4]]], "'image' is a list of lists; want a picture"),
    "PIL without pixels": (lambda folder: PngInfo(), "'image' is PngInfo; want a picture"),
    "number": (lambda folder: 7, "'image' is a number; want a picture"),
    "null in a list": (lambda folder: [GOOD, None], "'image' is null; want a picture"),
    "array": (lambda folder: np.zeros((4, 4, 3), np.uint8), "'image' is ndarray; want a picture"),
    "empty record": (lambda folder: {"bytes": None, "path": ""}, "is an object without bytes or a path"),
}


def _file(folder: Path, data: bytes) -> str:
    (folder / "a.png").write_bytes(data)
    return str(folder / "a.png")


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "a.png")
    return str(folder / "a.png")


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def _sparse(folder: Path) -> str:
    with (folder / "a.png").open("wb") as file:
        file.truncate(2**26 + 1)
    return str(folder / "a.png")


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_rejects_with_a_reason(kind: str, tmp_path: Path) -> None:
    make, words = BAD[kind]
    rejects: list[Reject] = []
    [pair] = read_pairs([{**TEXT, "image": make(tmp_path)}, TEXT], rejects=rejects)
    assert pair.prompt == TEXT["prompt"]
    assert [type(each) for each in rejects] == [Reject]
    assert rejects[0].where == "row 1"
    assert words in rejects[0].reason
    assert len(rejects[0].reason) < 400


GOOD_FORMS: dict[str, Callable[[Path], object]] = {
    "path": lambda folder: _file(folder, GOOD),
    "Path": lambda folder: Path(_file(folder, GOOD)),
    "bytes": lambda folder: GOOD,
    "PIL": lambda folder: Image.open(io.BytesIO(GOOD)),
    "datasets, bytes": lambda folder: {"bytes": GOOD, "path": None},
    "datasets, path": lambda folder: {"bytes": None, "path": _file(folder, GOOD)},
    "data URL": lambda folder: url(GOOD),
    "grey": lambda folder: png(Image.new("L", (4, 4), 200)),
    "palette": lambda folder: png(picture().convert("P")),
    "transparent": lambda folder: png(picture().convert("RGBA")),
    "transparent colour": lambda folder: png(picture().convert("P"), transparency=0),
    "one pixel": lambda folder: png(Image.new("RGB", (1, 1))),
    "one row": lambda folder: png(Image.new("RGB", (60_000, 1))),
    "CMYK": lambda folder: png(picture().convert("CMYK"), "JPEG"),
    "WebP": lambda folder: png(picture(), "WEBP", lossless=True),
    "one frame of GIF": lambda folder: png(picture(), "GIF"),
    "BMP": lambda folder: png(picture(), "BMP"),
    "BMP of 5-6-5 bits": lambda folder: bmp_565(),
    "data URL of another case": lambda folder: "\n DATA:Image/PNG;BASE64," + url(GOOD).partition(",")[2],
}


@pytest.mark.parametrize("form", GOOD_FORMS)
def test_forms_of_good_pictures(form: str, tmp_path: Path) -> None:
    [pair] = read_pairs([{**TEXT, "image": GOOD_FORMS[form](tmp_path)}])
    [shown] = pictures_of(pair.prompt)
    image = shown.image()
    assert image.mode == "RGB"
    if image.size == (8, 8):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(picture())).max() <= (80 if form == "CMYK" else 0)
    assert pair.prompt[0]["content"] == PICTURE + TEXT["prompt"]
    assert pair.prompt[0]["pictures"] == [{"sha256": shown.sha256, "path": shown.path}]
    assert (shown.data is None) == ("path" in form.lower())
    assert "image" not in pair.meta
    assert b"PNG" not in repr(pair).encode()


def test_pictures_in_memory_that_pillow_has_cut_to_8_bits_are_taken() -> None:
    """As docs/pictures.md describes: once decoded, a PIL image does not show how many bits its file had."""
    image = Image.open(io.BytesIO(deep_png()))
    image.load()
    assert picture_of(image).image().size == (4, 4)


def test_checks_of_pictures_are_silent_without_swapping_the_filters_of_the_process(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def swapped(*_: object, **__: object) -> None:
        raise AssertionError("other threads would lose their filters")

    with monkeypatch.context() as patched:  # undone before pytest itself uses it
        patched.setattr(warnings, "catch_warnings", swapped)
        for data in (bomb(), png(Image.new("1", (10_000, 9_000)))):  # Pillow warns above 89 million pixels
            with pytest.raises(Unusable, match="pixels; want at most"):
                picture_of(data)
    assert not recwarn.list


def test_pictures_turn_as_exif_asks() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    wide = picture(size=(16, 8))
    turned = png(wide, "JPEG", exif=exif)
    assert picture_of(turned).image().size == (8, 16)
    assert picture_of(Image.open(io.BytesIO(turned))).image().size == (8, 16)


def test_places_in_messages_follow_parts_and_columns() -> None:
    part = {"type": "image"}
    own = {"type": "image_url", "image_url": {"url": url(png(picture("green")))}}
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [part, {"type": "text", "text": "then"}, own, part]},
    ]
    rows = [{**TEXT, "prompt": turns, "images": [GOOD, png(picture("black"))]}]
    [pair] = read_pairs(rows)
    assert pair.prompt[1]["content"] == f"{PICTURE}then{PICTURE}{PICTURE}"
    assert "pictures" not in pair.prompt[0]
    colours = [each.image().getpixel((6, 6)) for each in pictures_of(pair.prompt)]
    assert colours == [(255, 0, 0), (0, 128, 0), (0, 0, 0)]
    [prompt] = read_prompts([{"prompt": turns, "images": [GOOD, GOOD], "gold": "x"}])
    assert isinstance(prompt.prompt, PicturedPrompt)
    assert prompt.meta == {"gold": "x"}


def test_implicit_prompts_show_their_pictures_once() -> None:
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    chosen, rejected = ([asked, {"role": "assistant", "content": word}] for word in ("red", "blue"))
    [pair] = read_pairs([{"chosen": chosen, "rejected": rejected, "images": [GOOD]}])
    assert (len(pictures_of(pair.prompt)), pair.chosen, pair.rejected) == (1, "red", "blue")
    plain = [[{"role": "user", "content": "?"}, each[1]] for each in (chosen, rejected)]
    [pair] = read_pairs([{"chosen": plain[0], "rejected": plain[1], "image": GOOD}])
    assert pair.prompt[0]["content"] == f"{PICTURE}?"
    marked = [[{"role": "user", "content": "<image>?"}, each[1]] for each in (chosen, rejected)]
    [reject] = Stream([{"chosen": marked[0], "rejected": marked[1], "image": GOOD}])
    assert "holds '<image>' besides a picture" in reject.reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": GOOD, "images": [GOOD]}, "both 'image' and 'images'"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "1 image parts without a picture of their own",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "images": [GOOD] * 2}, "and 2 pictures in"),
        ({"image": GOOD, "prompt": "<image> What?"}, "holds '<image>' besides a picture"),
        ({"prompt": [{"role": "user", "content": "?", "pictures": 5}]}, "'pictures' of a message is a number"),
        ({"image": GOOD, "prompt": f"{PICTURE}?"}, "holds U+FFFC"),
        ({"image": GOOD, "chosen": f"a{PICTURE}"}, "holds U+FFFC"),
        ({"image": GOOD, "video": "a.mp4"}, "'video' is not empty, and no model is shown it"),
        (
            {
                "prompt": [{"role": "user", "content": "?"}],
                "chosen": [{"role": "assistant", "content": [{"type": "image", "image": GOOD}]}],
                "rejected": [{"role": "assistant", "content": "x"}],
            },
            "the prompt shows 0 of 1 pictures",
        ),
    ],
)
def test_pictures_in_the_wrong_places(row: dict[str, Any], words: str) -> None:
    [reject] = Stream([{**TEXT, **row}])
    assert isinstance(reject, Reject)
    assert words in reject.reason


def test_text_without_pictures_keeps_u_fffc() -> None:
    [pair] = read_pairs([{**TEXT, "prompt": f"{PICTURE}?", "images": [], "image": None}])
    assert pair.prompt == f"{PICTURE}?"


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(GOOD)
    file = tmp_path / "data" / "rows.jsonl"
    file.write_text(json.dumps({**TEXT, "image": "a.png"}) + "\n" + json.dumps({**TEXT, "image": "b.png"}) + "\n")
    rejects: list[Reject] = []
    [pair] = read_pairs(file, rejects=rejects)
    assert pictures_of(pair.prompt)[0].path == str(tmp_path / "data" / "a.png")
    assert rejects[0].where == f"{file}:2"
    [prompt, *_] = read_prompts(file, rejects=[])
    assert json.loads(json.dumps(prompt.prompt))[0]["pictures"][0]["path"].endswith("a.png")


def test_prompts_of_trails_open_their_file_again(tmp_path: Path) -> None:
    [first] = read_prompts([{**TEXT, "image": _file(tmp_path, GOOD)}])
    written = json.loads(json.dumps(first.prompt))
    [again] = read_prompts([{"prompt": written}])
    assert again.prompt == first.prompt
    assert pictures_of(again.prompt) == pictures_of(first.prompt)
    _file(tmp_path, png(picture("green")))
    with pytest.raises(DataError, match="has changed since its prompt was written"):
        read_prompts([{"prompt": written}])
    with pytest.raises(InputError, match="changed since its row was read"):
        pictures_of(first.prompt)[0].image()
    [held] = read_prompts([{**TEXT, "image": GOOD}])
    with pytest.raises(DataError, match="had no file, and trails keep a hash alone"):
        read_prompts([{"prompt": json.loads(json.dumps(held.prompt))}])


def test_prompts_of_trails_elsewhere_open_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "out"):
        Path(name).mkdir()
    _file(Path("data"), GOOD)
    Path("data/rows.jsonl").write_text(json.dumps({**TEXT, "image": "a.png"}))
    [first] = read_prompts("data/rows.jsonl")
    Path("out/trails.jsonl").write_text(json.dumps({"prompt": first.prompt}))
    [again] = read_prompts("out/trails.jsonl")
    assert pictures_of(again.prompt) == pictures_of(first.prompt)


def test_without_pillow_rows_with_pictures_are_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    [reject, pair] = Stream([{**TEXT, "image": GOOD}, TEXT])
    assert isinstance(pair, Pair)
    assert "pictures need Pillow; pip install 'srpo[vision]'" in reject.reason


def test_data_sets_with_a_torn_picture_lose_one_row(tmp_path: Path) -> None:
    import datasets

    rows = [
        {**TEXT, "images": [{"bytes": each, "path": None}]} for each in (GOOD, png(picture(size=(64, 64)))[:90], GOOD)
    ]
    features = {key: datasets.Value("string") for key in TEXT} | {"images": datasets.List(datasets.Image())}
    made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    made.save_to_disk(tmp_path / "set")
    made.to_parquet(tmp_path / "set.parquet")
    files = {file for file in tmp_path.rglob("*")}
    for source in (
        made,
        datasets.load_from_disk(tmp_path / "set"),
        str(tmp_path / "set"),
        str(tmp_path / "set.parquet"),
    ):
        rejects: list[Reject] = []
        assert len(read_pairs(source, rejects=rejects)) == 2
        assert "is torn" in rejects[0].reason
        [line] = rejected_lines(source, rejects)
        assert "PNG" not in line
        assert len(line) < 900
    assert {file for file in tmp_path.rglob("*")} == files  # nothing is copied beside the data
    with pytest.raises(OSError, match="image file is truncated"):
        made[1]  # the caller's data set still decodes its pictures


def test_rejected_rows_hold_no_bytes_of_pictures(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for head in ("data:image/png;base64,", "DATA:image/png;Base64,"):
        image = head + base64.b64encode(GOOD).decode()
        file.write_text(json.dumps({**TEXT, "image": image, "chosen": 5}) + "\n" + json.dumps(TEXT) + "\n")
        rejects: list[Reject] = []
        assert [type(each) for each in read_pairs(file, rejects=rejects)] == [Pair]
        [line] = rejected_lines(file, rejects)
        assert f"{head}…" in json.loads(line)["raw"]
        assert base64.b64encode(GOOD).decode()[:64] not in line
    part = {"type": "image", "base64": base64.b64encode(GOOD).decode()}
    row = {**TEXT, "prompt": [{"role": "user", "content": [part]}], "chosen": 5}
    file.write_text(json.dumps(row) + "\n" + json.dumps(TEXT) + "\n")
    for source in (file, [row, TEXT]):
        rejects = []
        read_pairs(source, rejects=rejects)
        [line] = rejected_lines(source, rejects)
        assert json.loads(json.loads(line)["raw"])["prompt"][0]["content"][0] == {"type": "image", "base64": "…"}
