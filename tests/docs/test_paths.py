"""Every file and module of this repository that a page, a recipe, a benchmark or a docstring names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("srpo", "tests", "benchmarks", "recipes", "docs")
READ = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "recipes/*.yaml", "benchmarks/**/*.py", "srpo/**/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # its old entries name files of their time
)
FILE = re.compile(r"(?<![\w/.-])[\w-]+(?:/[\w.-]+)*/[\w.-]+\.(?:py|md|yaml|csv|png)\b")
MODULE = re.compile(r"(?<![\w/.-])(?:srpo|benchmarks)(?:\.\w+)+(?![\w/.]|\()")
PLACEHOLDER = re.compile(r"[A-Z]{2,}\.\w+$")  # such as cli/NAME.py
# Files that a command in the text makes, or that belong to another tool.
OTHERS = ("runs/", "outputs/", "my-", "site-packages/", "examples/")


def exists(path: str) -> bool:
    """Whether a path names a file here, below the package, the documentation or the tests."""
    return any((ROOT / folder / path).exists() for folder in ("", "srpo", "docs", "tests"))


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or starts with one and goes on with a name inside it."""
    parts = name.split(".")
    if (
        len(parts) == 2
        and parts[0] == "srpo"
        and re.search(rf"\b{parts[1]}\b", (ROOT / "srpo/__init__.py").read_text())
    ):
        return True
    for end in range(len(parts), 1, -1):
        file = ROOT.joinpath(*parts[:end]).with_suffix(".py")
        if file.is_file():
            return all(re.search(rf"\b{part}\b", file.read_text("utf-8")) for part in parts[end : end + 1])
    return ROOT.joinpath(*parts).is_dir()


def missing(text: str, beside: Path = ROOT) -> list[str]:
    """Files and modules in a text that do not exist; links may be relative to the folder `beside`."""
    files = [path for path in FILE.findall(text) if not PLACEHOLDER.search(path) and not path.startswith(OTHERS)]
    modules = [name for name in MODULE.findall(text) if not name.endswith((".jsonl", ".json", ".log"))]
    gone = [path for path in files if not exists(path) and not (beside / path).exists()]
    return [*gone, *(name for name in modules if not is_module(name))]


@pytest.mark.parametrize("name", READ)
def test_every_named_file_and_module_exists(name: str) -> None:
    path = ROOT / name
    assert missing(path.read_text("utf-8"), path.parent) == []


def test_a_missing_file_or_module_is_found() -> None:
    text = "`srpo/maths/objectives.py`, sequences/rendering.py, `srpo.train.trainer.SRPOTrainner`, `srpo.pairs.read`"
    assert missing(text) == [
        "srpo/maths/objectives.py",
        "sequences/rendering.py",
        "srpo.train.trainer.SRPOTrainner",
        "srpo.pairs.read",
    ]
    assert missing("`srpo/maths/objective.py` and `srpo.SixLogps`, srpo.maths.objective, cli/VERB.py") == []
