"""One picture: from a path, bytes, a data: URL or a PIL image to a checked file or bytes.

Each picture is decoded once when its row is read, so a torn or huge one is a reject and never an error in a run.
Pillow is imported at the first picture.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.data.values import Unusable, kind
from srpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 2**26  # of an encoded picture
MOST_PIXELS = 2**26  # 8,192 × 8,192; decoded, some 200 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow runs other programs for some of its other formats
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_DATA = re.compile(r"\s*data:(?:image/[\w.+-]+)?(?:;[\w=.-]+)*;base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt, encoded; it was decoded once without an error.

    Attributes:
        sha256: hash of the encoded picture.
        path: absolute path of its file, or the name that came with its bytes; "" for bytes without a name.
        data: the encoded picture; None if it is read from the file when needed.
    """

    sha256: str
    path: str = ""
    data: bytes | None = field(default=None, repr=False, compare=False)

    def image(self) -> Image:
        """Decodes the picture and returns it in RGB, rotated as its EXIF entry asks.

        Raises:
            InputError: the file has changed since its row was read.
        """
        from PIL import Image, ImageOps

        try:
            data = Path(self.path).read_bytes() if self.data is None else self.data
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=self.path) from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError("the picture has changed since its row was read", where=self.path)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            turned: Image.Image = ImageOps.exif_transpose(image).convert("RGB")
        return turned


def picture_of(
    value: object, key: str = "image", folder: Path | None = None, *, most_pixels: int = MOST_PIXELS
) -> Picture:
    """Returns a checked picture from a path, bytes, a data: URL, a PIL image, or the mapping of `datasets` and trails.

    Args:
        key: name of the value in errors.
        folder: folder that relative paths start from; None takes the working directory.
        most_pixels: largest number of pixels of a data: URL.

    Raises:
        Unusable: the value is no picture, or one that cannot be shown: damaged, animated, too large, of another
            format, or Pillow is not installed.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, Mapping):
        known = {name: each for name, each in value.items() if each is not None and each != ""}
        path = known.get("path", "")
        if isinstance(known.get("bytes"), bytes | bytearray):
            return _checked(bytes(known["bytes"]), key, str(path))
        if "sha256" in known:
            return _again(known, folder)
        value = path or None
        if value is None:
            raise Unusable(f"{key!r} is an object without bytes or a path; want a picture")
    if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
        return _checked(_decoded(value, key), key, "", most_pixels)
    if isinstance(value, str) and _URL.match(value):
        raise Unusable(f"{key!r} is a URL, and pictures are not downloaded; save the picture and give its path")
    if isinstance(value, str | Path):
        return _at(value, key, folder)
    if isinstance(value, bytes | bytearray):
        return _checked(bytes(value), key, "")
    if type(value).__module__.startswith("PIL.") and hasattr(value, "mode"):
        return _encoded(value, key)
    raise Unusable(f"{key!r} is {kind(value)}; want a picture: a path, bytes or a PIL image")


def _at(value: str | Path, key: str, folder: Path | None) -> Picture:
    """The checked picture in a file, which is read again when it is used; relative paths start from `folder`."""
    if "\0" in str(value):
        raise Unusable(f"{key!r} is no path: it holds a null character")
    path = (folder or Path()) / value
    try:
        if not path.is_file():
            problem = "no file" if not path.exists() else "not a file"
            raise Unusable(f"{key!r}: {problem}: {str(path)[:200]}")
        if path.stat().st_size > MOST_BYTES:
            raise Unusable(f"{key!r} is a file of {path.stat().st_size} bytes; want at most {MOST_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(f"{key!r} cannot be read: {error.strerror}: {str(path)[:200]}") from None
    found = _checked(data, key, os.path.abspath(path))
    return Picture(found.sha256, found.path)


def _again(record: Mapping[str, Any], folder: Path | None) -> Picture:
    """The picture of a trail's prompt, by the path in its `record`; raises Unusable if the file has changed since."""
    if not record.get("path"):
        raise Unusable("the picture of this prompt had no file, and trails keep a hash alone")
    found = _at(str(record["path"]), "pictures", folder)
    if found.sha256 != record["sha256"]:
        raise Unusable(f"the picture {str(record['path'])[:200]} has changed since its prompt was written")
    return found


def _decoded(url: str, key: str) -> bytes:
    head = _DATA.match(url)
    if head is None:
        raise Unusable(f"{key!r} is a data: URL of another kind; want data:image/png;base64,…")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError:  # binascii.Error, or a character that is not ASCII
        raise Unusable(f"{key!r} is a data: URL whose base64 is damaged") from None


def _encoded(image: Any, key: str) -> Picture:
    """A checked picture from an image in memory (PIL), encoded as PNG."""
    if getattr(image, "n_frames", 1) > 1:
        raise Unusable(f"{key!r} is animated: {image.n_frames} frames; want one picture")
    if image.mode not in MODES:
        raise Unusable(f"{key!r} has pixels of mode {image.mode}; want 8 bits a channel")
    if deep := _deep(image):
        raise Unusable(f"{key!r} has pixels of mode {deep}; want 8 bits a channel")
    from PIL import ImageOps

    held = io.BytesIO()
    try:
        turned = ImageOps.exif_transpose(image)  # PNG is written without the EXIF entry
        plain = turned if turned.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else turned.convert("RGB")
        plain.save(held, "PNG")
    except _BROKEN as error:
        raise Unusable(f"{key!r} is torn: {error}") from None
    return _checked(held.getvalue(), key, "")


def _deep(image: Any) -> str:
    """The mode of encoded pixels with 16 bits of a colour, which Pillow cuts to 8; "" for other pictures.

    Only a picture that is not decoded yet has it. A BMP packs the three colours of `BGR;16` into 16 bits.
    """
    found = [tile[3] for tile in getattr(image, "tile", None) or ()]
    modes = [str(each[0] if isinstance(each, tuple) and each else each) for each in found]
    return next((mode for mode in modes if ";16" in mode and mode != "BGR;16"), "")


_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error, zlib.error)


def _checked(data: bytes, key: str, path: str, most_pixels: int = MOST_PIXELS) -> Picture:
    """Decodes an encoded picture once and returns it; raises Unusable, which names `key` and `path`, on a failure."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise Unusable(f"{key!r} cannot be read: pictures need Pillow; pip install 'srpo[vision]'") from None
    name = f"{key!r}" + (f" ({path[:200]})" if path else "")
    if not data:
        raise Unusable(f"{name} is empty; want a picture")
    if len(data) > MOST_BYTES:
        raise Unusable(f"{name} is {len(data)} bytes; want at most {MOST_BYTES}")
    # Pillow warns of its own bound on pixels and of damaged EXIF entries. `catch_warnings` would swap the filters of
    # the whole process, also for other threads; the server decodes on a second one.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            wide, high = image.size
            if wide * high > most_pixels:
                raise Unusable(f"{name} is {wide} × {high} pixels; want at most {most_pixels} in all")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise Unusable(f"{name} is animated: {frames} frames; want one picture")
            deep = _deep(image) if image.mode in MODES else image.mode
            if deep:
                raise Unusable(f"{name} has pixels of mode {deep}; want 8 bits a channel")
            image.load()
            ImageOps.exif_transpose(image)  # reads the EXIF entry, which may be damaged
    except UnidentifiedImageError:
        raise Unusable(f"{name} is not a picture in {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Unusable(f"{name} has too many pixels; want at most {most_pixels}") from None
    except _BROKEN as error:
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise Unusable(f"{name} is torn: {words}") from None
    return Picture(hashlib.sha256(data).hexdigest(), path, data)
