"""Every benchmark imports, so that a moved name is found without an hour of measuring."""

from __future__ import annotations

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("benchmarks/**/*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_benchmark_imports(file: Path) -> None:
    importlib.import_module(".".join(file.with_suffix("").parts))


def test_a_moved_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stale_benchmark.py").write_text("from srpo.tasks import repair\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError):
        importlib.import_module("stale_benchmark")


def imported(source: str) -> set[str]:
    """Names of the modules that a file imports, at its top or inside functions."""
    nodes = [*ast.walk(ast.parse(source))]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    members = {f"{node.module}.{each.name}" for node in froms for each in node.names}
    plain = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    return {*members, *plain, *(str(node.module) for node in froms)}


def in_order(sources: dict[str, str]) -> list[str]:
    """The modules, each after those that it imports; a circle has no such order."""
    return [
        *TopologicalSorter({name: imported(text) & sources.keys() for name, text in sources.items()}).static_order()
    ]


def test_no_two_benchmarks_import_each_other() -> None:
    names = {".".join(file.with_suffix("").parts): (ROOT / file).read_text("utf-8") for file in FILES}
    order = in_order(names)
    assert order.index("benchmarks.orders_stages") < order.index("benchmarks.orders_tables")
    with pytest.raises(CycleError):
        in_order({"a": "from b import x", "b": "def later():\n    import a"})
