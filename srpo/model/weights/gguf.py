"""Finds and reads GGUF files, and makes the options by which transformers dequantises them on load."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srpo.errors import InputError
from srpo.progress import Progress

MAGIC = b"GGUF"
log = logging.getLogger("srpo")


def gguf_file(path: str) -> Path | None:
    """Returns the GGUF file at a path: the file itself, or the only one in a folder without other weights; else None.

    Raises:
        InputError: the file is damaged, the folder holds several, or the package that reads GGUF is missing.
    """
    found = _named(path)
    if found is not None:
        _expect_readable(found)
    return found


def _named(path: str) -> Path | None:
    """Finds the GGUF file at a path like `gguf_file`, by names alone; its content is not checked."""
    at = Path(path)
    if at.suffix == ".gguf":
        if not at.is_file():
            raise InputError("no such GGUF file", where=path)
        found = [at]
    elif at.is_dir() and not any(at.glob("*.safetensors")):
        found = sorted(file for file in at.glob("*.gguf") if not file.name.startswith("mmproj"))  # a vision projector
    else:
        return None
    if not found:
        return None
    if len(found) > 1 and "-of-" not in found[0].stem:
        names = ", ".join(each.name for each in found)
        raise InputError(f"{len(found)} GGUF files: {names}", where=path, fix=f"name one: {found[0]}")
    return found[0]


@contextmanager
def gguf_parsed_once(path: str) -> Iterator[Path | None]:
    """Inside this `with` block, a GGUF file is parsed once, however often libraries ask for it.

    Yields the GGUF file at the path, or None without one. The package gguf parses a vocabulary of 262k words in 19 s,
    and transformers asks for it three times to load a model. A plain array in place of its memory map takes 5 s.

    Raises:
        InputError: the file is damaged, or the folder holds several GGUF files.
    """
    if _named(path) is None or find_spec("gguf") is None:
        yield gguf_file(path)
        return
    import gguf
    import numpy as np

    module: Any = gguf
    original = module.GGUFReader
    parsed: dict[str, Any] = {}

    class Plain(original):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, memory_map: Any) -> None:
            self._plain = memory_map.view(np.ndarray)

    def reader(file: str) -> Any:
        if str(file) not in parsed:
            with Progress(f"reading the vocabulary of {file}"):
                parsed[str(file)] = Plain(file)
        return parsed[str(file)]

    module.GGUFReader = reader
    try:
        yield gguf_file(path)
    finally:
        module.GGUFReader = original


def _expect_readable(file: Path) -> None:
    if re.search(r"-\d{5}-of-\d{5}$", file.stem):
        fix = "join the parts: llama-gguf-split --merge FIRST_PART OUTPUT"
        raise InputError("one part of a GGUF file that is split", where=str(file), fix=fix)
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise InputError("not a GGUF file, whatever its name", where=str(file))
    if find_spec("gguf") is None:
        fix = "pip install gguf, or take the model's safetensors"
        raise InputError("a GGUF file, which needs the package gguf", where=str(file), fix=fix)
    from gguf import GGUFReader

    try:
        fields = GGUFReader(str(file)).fields
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        expected = "a whole GGUF file, or the model's safetensors"
        raise InputError(f"a damaged GGUF file ({error})", where=str(file), expected=expected) from None
    if "general.architecture" not in fields:
        expected = "a language model as GGUF, or the model's safetensors"
        raise InputError("a GGUF file without a model", where=str(file), expected=expected)


def gguf_options(file: Path, *, weights: bool) -> Mapping[str, object]:
    """Returns keyword arguments with which transformers' `from_pretrained` reads a GGUF file in a folder.

    Args:
        weights: True to load a model and dequantise it, False to load a tokenizer.
    """
    options: dict[str, object] = {"gguf_file": file.name}
    if weights:
        import transformers

        log.info("srpo: %s is a GGUF file: its weights are dequantised, and saved models are safetensors", file)
        if hasattr(transformers, "GgufConfig"):  # older releases of transformers always dequantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options
