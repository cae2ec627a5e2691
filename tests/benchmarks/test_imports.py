"""Every benchmark imports, so that a moved name is found without an hour of measuring."""

from __future__ import annotations

import importlib
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
