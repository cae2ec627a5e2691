"""What a folder from somewhere else must not make us do: unpickle, run code that lies in it, read outside of it.

Nothing here loads anything; it looks at names and JSON, before `load.py` does.
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
    """Names of the files in a folder that would have to be unpickled, of those that begin with `stem`."""
    return sorted(each.name for each in folder.glob(f"{stem}*") if each.suffix in PICKLED)


def own_code(folder: Path) -> list[str]:
    """The code a model brings along: the modules that `auto_map` names, each with the file that names it."""
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
    """Refuses what a local folder could make the loading libraries do unasked.

    Raises:
        InputError: an index of weights that leads outside, or attention that is code from the hub.
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
    """The file of that name in a folder, for a name that somebody else wrote down.

    Symlinks are followed: the hub's own cache is made of them. (A manifest of a run may name none, see checkpoint.py.)

    Args:
        where: the file that holds the name.

    Raises:
        InputError: the name is empty or absolute, or leads out of the folder with `..`.

    Example:
        >>> inside(Path("model"), "part-1.safetensors", where="model/index.json").as_posix()
        'model/part-1.safetensors'
    """
    path = PurePosixPath(name)
    # What Windows would take for a drive or a step up is none here, and may be read there.
    foreign = PureWindowsPath(name).anchor or "\\" in name or "\0" in name
    if not path.parts or foreign or path.is_absolute() or ".." in path.parts:
        raise InputError(f"names {name!r}, which is not inside", where=where, expected=f"a file in {folder}")
    return folder / path


def _object(file: Path) -> dict[str, Any]:
    """A JSON object in a file; {} where there is none, which whoever loads it will say better."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
