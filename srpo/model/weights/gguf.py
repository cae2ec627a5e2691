"""GGUF files: the file at a path, and the options that make transformers dequantise it on load."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from srpo.errors import InputError

MAGIC = b"GGUF"
log = logging.getLogger("srpo")


def gguf_file(path: str) -> Path | None:
    """The GGUF file at a path: the file itself, or the only one in a folder without other weights; else None.

    Raises:
        InputError: the file is damaged, the folder holds several, or the package that reads GGUF is missing.
    """
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
    _expect_readable(found[0])
    return found[0]


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
    """Returns the keyword arguments with which `from_pretrained` reads a GGUF file.

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
