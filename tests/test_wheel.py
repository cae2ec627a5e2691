"""The wheel, installed somewhere else, is the whole package: nothing it needs lies only in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import srpo

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
LOSS = """
import torch
from srpo import SixLogps, srpo_loss
zero = SixLogps(*torch.zeros(6, 2))
print(srpo_loss(zero, zero, beta=0.1, alpha=0.5).loss.item())
"""


def python(*words: str, cwd: Path, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    return folder / python("-c", BUILD, str(folder), cwd=ROOT).split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    info = f"srpo-{srpo.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    checkout = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "srpo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    checkout |= {f"srpo/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    assert {"srpo/py.typed", "srpo/recipes/tldr.yaml"} <= checkout
    assert {name for name in names if not name.startswith(f"{info}/")} == checkout
    assert f"{info}/licenses/LICENSE" in names
    assert "srpo = srpo.cli.main:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata


def test_it_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    path = str(installed)
    where = python("-c", "import srpo; print(srpo.__file__)", cwd=tmp_path, PYTHONPATH=path).strip()
    assert Path(where).resolve() == (installed / "srpo" / "__init__.py").resolve()
    assert "usage: srpo VERB" in python("-m", "srpo", "--help", cwd=tmp_path, PYTHONPATH=path)
    assert "meta-llama/Llama-3.2-1B" in python("-m", "srpo", "recipes", cwd=tmp_path, PYTHONPATH=path)
    python("-m", "srpo", "recipes", "copy", "tldr", cwd=tmp_path, PYTHONPATH=path)
    assert (tmp_path / "tldr.yaml").is_file()
    assert python("-c", LOSS, cwd=tmp_path, PYTHONPATH=path).strip() == "0.75"


def test_the_console_script_is_made(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "srpo"
    assert python(str(script), "--version", cwd=tmp_path, PYTHONPATH=str(installed)).strip() == srpo.__version__
