"""Files of trails, as `srpo revise` writes them, by system, seed and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srpo.errors import ConfigError
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails
from srpo.score.scores import Key, TrailsKey

ALL = "all"


def read_systems(
    specs: Sequence[str], *, gold_key: str | None = "gold", split_key: str = "split"
) -> dict[Key, list[Trail]]:
    """Reads the files; which system a file is of is said by its name or before an equals sign.

    Args:
        specs: `path` or `name=path`; a name that stands more than once is one system with several seeds, 0, 1, ….
        gold_key: where in a row's `meta` the gold answer has to stand; None asks for none.
        split_key: where it says which split the row belongs to; rows without it are one split, "all".

    Raises:
        ConfigError: two files of one name and no names given, or a name without a path.
        InputError: a file is missing or unreadable.
        DataError: a line is no trail or has no gold answer, or a file holds no line.
    """
    cells: dict[Key, list[Trail]] = {}
    seeds: dict[str, int] = {}
    for system, path in _named(specs):
        seed = seeds[system] = seeds.get(system, -1) + 1
        for trail in read_trails(path, gold_key=gold_key):
            cells.setdefault(TrailsKey(seed, system, str(trail.meta.get(split_key, ALL)), None), []).append(trail)
    return cells


def _named(specs: Sequence[str]) -> list[tuple[str, Path]]:
    named: list[tuple[str, Path]] = []
    for spec in specs:
        name, equals, path = spec.partition("=")
        # An equals sign behind a slash belongs to the path.
        if not equals or "/" in name:
            name, path = Path(spec).stem, spec
            if any(name == other for other, _ in named):
                raise ConfigError(f"two systems named {name!r}", where=spec, fix="name them: --trails one=… other=…")
        if not name or not path:
            raise ConfigError(f"{spec!r} names no file", where="--trails", expected="path or name=path")
        named.append((name, Path(path)))
    return named
