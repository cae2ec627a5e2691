"""Converts pickled weights to safetensors by PyTorch's restricted unpickler, which reads only tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError, InputError
from srpo.model.weights.load import read_pickled
from srpo.model.weights.untrusted import pickled

# Stem of a pickled file → stem of the safetensors file.
NAMES = {"pytorch_model": "model", "adapter_model": "adapter_model", "model": "model"}
COPIED = (".json", ".txt", ".model", ".jinja", ".md")


def convert(source: str, target: str) -> list[str]:
    """Writes a copy of a model folder with its pickled weights as safetensors, its configuration and its tokenizer.

    Code and other pickles are not copied. A model with code of its own loads with --trust_remote_code only, and its
    code has to be copied by hand.

    Returns:
        Names of the written files of weights.

    Raises:
        InputError: the folder does not exist or has no pickled weights, or a pickle holds more than tensors.
        ConfigError: the target is the source folder.
        OutputError: the target cannot be written.
    """
    from safetensors.torch import save

    folder, out = Path(source), Path(target)
    if not folder.is_dir():
        raise InputError("no such folder", where=source, expected="a folder with pickled weights")
    if out.exists() and out.resolve() == folder.resolve():
        raise ConfigError("the folder that is read", where="output_dir", fix="name another")
    files = [name for name in pickled(folder) if _new_name(name)]
    if not files:
        expected = "pytorch_model.bin, model.pt, adapter_model.bin or numbered parts of them"
        raise InputError("no pickled weights", where=source, expected=expected)
    weights = {}
    for name in files:  # every pickle is read before the first file is written
        state = _tensors(read_pickled(folder / name), f"{source}/{name}")
        weights[_new_name(name)] = {key: value.detach().contiguous().clone() for key, value in state.items()}
    writable_folder(out)
    for name, state in weights.items():
        write_file(out / name, save(state, metadata={"format": "pt"}))
    if len(weights) > 1:
        size = sum(t.numel() * t.element_size() for state in weights.values() for t in state.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": {key: name for name, state in weights.items() for key in state},
        }
        write_file(out / "model.safetensors.index.json", json.dumps(index, indent=2).encode())
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in COPIED and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    return sorted(weights)


def _new_name(name: str) -> str:
    """Returns the name of the safetensors file for a pickled one; "" if `name` is not that of a file of weights.

    For `pytorch_model-00001-of-00002.bin` it is `model-00001-of-00002.safetensors`.
    """
    stem, dash, part = name.rpartition(".")[0].partition("-")
    return f"{NAMES[stem]}{dash}{part}.safetensors" if stem in NAMES else ""


def _tensors(state: object, where: str) -> dict[str, Tensor]:
    """Returns the tensors by name in an unpickled `state`; a training framework may have put them under one more key.

    `where` is the pickled file, for the error.

    Raises:
        InputError: a value is not a tensor.
    """
    for key in ("state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError("not a mapping of names to tensors", where=where)
    return state
