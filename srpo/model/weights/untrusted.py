"""Checks a downloaded model folder: it must not unpickle, run its own code, or read files outside the folder.

These checks read file names and JSON only, before `load.py` loads anything.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from srpo.errors import InputError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = "weights must be .safetensors; pickled ones are not read: `srpo convert` makes safetensors of them"
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")


def pickled(folder: Path, stem: str = "") -> list[str]:
    """Returns the names of the pickled files in a folder that begin with `stem`; "" takes all."""
    return sorted(each.name for each in folder.glob(f"{stem}*") if each.suffix in PICKLED)


def own_code(folder: Path) -> list[str]:
    """Returns the Python files that a model's JSON files ask to run, such as "modeling.py (named in config.json)"."""
    found = []
    for config in CONFIGS:
        named = _object(folder / config).get("auto_map")
        values = named.values() if isinstance(named, dict) else [named]
        for value in values:
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    module = reference.rpartition("--")[2].split(".")[0] + ".py"
                    found.append(f"{module} (named in {config})")
    return sorted({*found})


def expect_safe(folder: Path, *, trust_remote_code: bool) -> None:
    """Checks that a model's JSON files name no file outside the folder and, unless allowed, no code on the hub.

    Raises:
        InputError: an index of weights names a file elsewhere, or an attention setting names code.
    """
    for index in folder.glob("*.index.json"):
        names = _object(index).get("weight_map")
        for name in {*names.values()} if isinstance(names, dict) else ():
            inside(folder, str(name), where=str(index))
    settings = _object(folder / "config.json")
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        asked = json.dumps(settings.get(key, ""))
        if "/" in asked and not trust_remote_code:
            fix = f"take {key!r} out, or allow it with --trust_remote_code"
            raise InputError(f"{key} {asked} is code from the hub", where=str(folder / "config.json"), fix=fix)


def inside(folder: Path, name: str, *, where: str) -> Path:
    """Returns the path of the file `name` in a folder, for a name that was read from an untrusted file.

    Symlinks are followed, since the hub's own cache consists of them. (A run's manifest may name no symlink, see
    train/durable/checkpoint.py.)

    Args:
        where: the untrusted file, for the error.

    Raises:
        InputError: the name is empty or absolute, or leads out of the folder with `..`.

    Example:
        >>> inside(Path("model"), "part-1.safetensors", where="model/index.json").as_posix()
        'model/part-1.safetensors'
    """
    path = PurePosixPath(name)
    # A name that is harmless on this system may be a drive or a parent folder on Windows.
    foreign = PureWindowsPath(name).anchor or "\\" in name or "\0" in name
    if not path.parts or foreign or path.is_absolute() or ".." in path.parts:
        raise InputError(f"names {name!r}, which is not inside", where=where, expected=f"a file in {folder}")
    return folder / path


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if unreadable, since the library that loads the file later reports the error."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
