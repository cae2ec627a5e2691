"""The laws of the source tree, read from its syntax.

Each function takes the folder of the package and returns what breaks one law, as `path:line: what`. Nothing is
imported, so a small fake tree serves as well as the real one, and every law is tried on one that breaks it.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The rooms from the ground up; a room imports only rooms on lower floors. Rooms on one floor do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("secrets", "setting_kinds", "versions"),
    ("errors",),
    ("renamed_settings",),
    ("disk", "progress", "settings", "signals"),
    ("settings_file", "settings_schema"),
    ("data", "maths", "statistics"),
    ("sequences",),
    ("check", "model"),
    ("export", "generate"),
    ("train", "revise"),
    ("judge",),
    ("score",),
    ("report",),
    ("evaluate", "serve"),
    ("tasks", "rounds"),
    ("cli",),
    ("__main__",),
)
MAY_IMPORT: dict[str, set[str]] = {
    room: {lower for below in FLOORS[:level] for lower in below} for level, floor in enumerate(FLOORS) for room in floor
} | {"__init__": set()}
INSIDE_A_FUNCTION = {"peft", "vllm", "datasets", "trl", "fastapi", "starlette", "uvicorn", "prometheus_client", "httpx"}
MAY_LOAD = {"model/weights/load.py", "train/durable/checkpoint.py"}
MAY_IMPORT_BY_NAME = {"__init__.py", "cli/main.py"}
MAY_CATCH_ALL = {"cli/main.py", "model/packed/fused.py"}
LINES = 400


@dataclass(frozen=True)
class Source:
    """One file of the package: its path below the package folder and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        """The folder directly below the package, or the file's own name."""
        return self.path.split("/")[0].removesuffix(".py")

    def at(self, line: int, what: str) -> str:
        return f"{self.path}:{line}: {what}"


@dataclass(frozen=True)
class Import:
    """One imported name; `module` is absolute, `name` is empty for a plain `import module`."""

    line: int
    module: str
    name: str
    at_top: bool  # runs when the file is imported: neither inside a function nor under TYPE_CHECKING
    for_types: bool  # under TYPE_CHECKING

    @property
    def distribution(self) -> str:
        return self.module.split(".")[0]


def sources(package: Path) -> list[Source]:
    """Every Python file below the folder, in path order."""
    files = sorted(package.rglob("*.py"))
    return [_source(f.relative_to(package).as_posix(), f.read_text("utf-8")) for f in files]


@functools.cache
def _source(path: str, text: str) -> Source:
    """A file parsed once for all laws, which only read its tree."""
    return Source(path, text, ast.parse(text))


def imports(source: Source, package: str) -> list[Import]:
    """Every import in the file, wherever it stands, relative ones resolved."""
    return list(_imports(source.tree, f"{package}/{source.path}".split("/")[:-1], in_function=False, for_types=False))


def _imports(node: ast.AST, folder: list[str], *, in_function: bool, for_types: bool) -> Iterator[Import]:
    at_top = not (in_function or for_types)
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield Import(node.lineno, alias.name, "", at_top, for_types)
        case ast.ImportFrom(module=module, names=names, level=level):
            parts = folder[: len(folder) - level + 1] if level else []
            absolute = ".".join([*parts, *([module] if module else [])])
            for alias in names:
                yield Import(node.lineno, absolute, alias.name, at_top, for_types)
        case ast.If(test=test, body=body, orelse=orelse):
            typed = for_types or ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            for branch, under in ((body, typed), (orelse, for_types)):
                for statement in branch:
                    yield from _imports(statement, folder, in_function=in_function, for_types=under)
        case _:
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, folder, in_function=inside, for_types=for_types)


def homes(package: Path) -> dict[str, str]:
    """`_HOME` of the package's `__init__.py`: public name → module; empty where there is none."""
    found: dict[str, str] = literal(package, "_HOME") or {}
    return found


def literal(package: Path, name: str) -> Any:
    """What the package's `__init__.py` assigns to that name, if it is written out; None if it is computed or absent."""
    for source in sources(package):
        for node in source.tree.body if source.path == "__init__.py" else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                try:
                    return ast.literal_eval(node.value)
                except ValueError:
                    return None
    return None


def wrong_directions(package: Path) -> list[str]:
    """Imports that go up or across. One for types alone counts; the public names' own list of them does not."""
    home = homes(package)
    broken = []
    for source in sources(package):
        if source.layer not in MAY_IMPORT:
            broken.append(source.at(1, f"{source.layer!r} has no place in the order of imports"))
            continue
        allowed = MAY_IMPORT[source.layer] | {source.layer}
        for each in imports(source, package.name):
            if each.distribution != package.name or (source.layer == "__init__" and each.for_types):
                continue
            target = _target(each, home)
            if target not in {*allowed, "__version__"}:
                broken.append(source.at(each.line, f"{source.layer} imports {target or 'the whole package'}"))
    return broken


def _target(each: Import, home: dict[str, str]) -> str:
    """The layer an import of the package reaches; a public name is followed to where it lives."""
    parts = [*each.module.split("."), each.name]
    if len(parts) == 2 and each.name in home:
        parts = home[each.name].split(".")
    return parts[1]


def circles(package: Path) -> list[str]:
    """Files that import each other in a loop, wherever the imports stand and types included; one line a loop."""
    home, read = homes(package), sources(package)
    modules = {f"{package.name}.{source.path.removesuffix('.py').replace('/', '.')}": source.path for source in read}
    reached: dict[str, set[str]] = {}
    for source in read:
        named = [(each.module, each.name) for each in imports(source, package.name)]
        named = [(home[name], "") if name in home else (module, name) for module, name in named]
        found = {modules.get(f"{module}.{name}", modules.get(module, "")) for module, name in named}
        reached[source.path] = found - {"", source.path} if source.path != "__init__.py" else set()
    while True:  # files that import none of the files left, or are imported by none of them, are in no circle
        imported = set[str]().union(*reached.values())
        free = {path for path, found in reached.items() if not found & reached.keys() or path not in imported}
        if not free:
            break
        reached = {path: found - free for path, found in reached.items() if path not in free}
    return [f"{path}:1: in a circle with {', '.join(sorted(found))}" for path, found in sorted(reached.items())]


def imports_by_name(package: Path) -> list[str]:
    """`import_module` and `__import__` outside the two files that need them: they would hide from every other law."""
    return [
        source.at(node.lineno, ast.unparse(node))
        for source in sources(package)
        if source.path not in MAY_IMPORT_BY_NAME
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name | ast.Attribute) and _last(node) in ("import_module", "__import__")
    ]


def optional_at_top(package: Path) -> list[str]:
    """Heavy or optional libraries imported when a file is, instead of inside the function that needs them."""
    return [
        source.at(each.line, f"imports {each.distribution} at the top")
        for source in sources(package)
        for each in imports(source, package.name)
        if each.at_top and each.distribution in INSIDE_A_FUNCTION
    ]


def heavy_commands(package: Path) -> list[str]:
    """Imports at the top of a command's file beyond the standard library, the command line, light files and settings.

    Files called `settings` declare flags; test_import_is_light.py checks that they import no large library.
    """
    light = {package.name, *(f"{package.name}.{each}" for each in ("errors", "secrets", "signals"))}
    return [
        source.at(each.line, f"imports {each.module} at the top")
        for source in sources(package)
        if source.layer == "cli"
        for each in imports(source, package.name)
        if each.at_top
        and each.distribution not in sys.stdlib_module_names
        and each.module not in light
        and not each.module.startswith(f"{package.name}.cli")
        and not re.fullmatch(rf"{package.name}\.(\w+\.)?(renamed_)?settings(_file)?", each.module)
    ]


def loads(package: Path) -> list[str]:
    """`from_pretrained` in any form and `torch.load` outside the two files that may read weights."""
    broken = []
    for source in sources(package):
        if source.path in MAY_LOAD:
            continue
        torches = {"torch"}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                torches |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
        for node in ast.walk(source.tree):
            loaded = ""
            match node:
                case ast.Attribute(value=ast.Name(id=owner), attr="load") if owner in torches:
                    loaded = "torch.load"
                case ast.ImportFrom(module="torch", names=names) if any(alias.name == "load" for alias in names):
                    loaded = "torch.load"
                case ast.Attribute(attr="from_pretrained") | ast.Constant(value="from_pretrained"):
                    loaded = "from_pretrained"
            if loaded:
                broken.append(source.at(getattr(node, "lineno", 0), loaded))
    return broken


def catch_alls(package: Path) -> list[str]:
    """`except:`, `except Exception` and `except BaseException`, alone or in a tuple."""
    broken = []
    for source in sources(package):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and source.path not in MAY_CATCH_ALL:
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(each is None or _last(each) in ("Exception", "BaseException") for each in caught):
                    broken.append(source.at(node.lineno, "catches everything"))
    return broken


def long_files(package: Path) -> list[str]:
    """Files one can no longer hold in one hand."""
    counts = {source.path: len(source.text.splitlines()) for source in sources(package)}
    return [f"{path}:{count}: more than {LINES} lines" for path, count in counts.items() if count > LINES]


def _last(node: ast.AST | None) -> str:
    """The last word of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
