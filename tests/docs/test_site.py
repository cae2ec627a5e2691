"""The website holds every page once, every public name and every verb; `make docs` builds it."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import srpo
from srpo.cli.main import VERBS
from tests.conftest import module_at

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return module_at(ROOT / "docs/site/build.py")


@pytest.fixture(scope="module")
def pages(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("site") / "source"
    build.gather(folder)
    return folder


def listed(page: Path) -> list[str]:
    """The pages in the tables of contents of a page."""
    found = []
    for names in re.findall(
        r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        found += [(page.parent / f"{name}.md").as_posix() for name in names.split()]
    return found


def test_every_page_is_in_one_table_of_contents(pages: Path) -> None:
    found = sorted(listed(pages / "index.md") + listed(pages / "lab-book/README.md"))
    assert found == sorted(path.as_posix() for path in pages.rglob("*.md") if path != pages / "index.md")


def test_links_to_pages_of_the_root_stay_inside(pages: Path) -> None:
    assert "](SECURITY.md)" in (pages / "export.md").read_text("utf-8")
    assert not [page for page in pages.rglob("*.md") if re.search(r"^<!--", page.read_text("utf-8"), re.MULTILINE)]


def test_names_and_verbs_are_all_there(pages: Path) -> None:
    names = re.findall(r"^## (\w+)$", (pages / "api.md").read_text("utf-8"), re.MULTILINE)
    assert {*names} == {*srpo.__all__} - {"__version__"}
    verbs = re.findall(r"^## srpo ([\w-]+)", (pages / "cli.md").read_text("utf-8"), re.MULTILINE)
    assert {*verbs} == {*VERBS}


def test_help_is_shown_as_text(build: ModuleType, pages: Path) -> None:
    assert build._plain("a|b *c* <d>") == r"a\|b \*c\* \<d\>"
    text = (pages / "cli.md").read_text("utf-8")
    assert "| `--beta` | Weight of the divergence" in text
    assert "%(default)s" not in text
