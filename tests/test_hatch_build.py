"""The README of the distribution has absolute links where the address of the repository is known."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import module_at

ROOT = Path(__file__).parents[1]
URL = "https://forge.example/team/srpo"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    return module_at(ROOT / "hatch_build.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/a.md)", f"[a]({URL}/blob/v1/docs/a.md)"),
        ("[a](docs/a.md#b) [c](LICENSE)", f"[a]({URL}/blob/v1/docs/a.md#b) [c]({URL}/blob/v1/LICENSE)"),
        ("![p](docs/images/p.png)", f"![p]({URL}/raw/v1/docs/images/p.png)"),
        ("[a](https://a.b/c) [b](#does-it-help)", "[a](https://a.b/c) [b](#does-it-help)"),
    ],
)
def test_relative_links_become_absolute(hook: ModuleType, text: str, expected: str) -> None:
    assert hook.absolute(text, URL, "1") == expected


def test_the_readme_has_no_other_links(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"version": "1"}
    monkeypatch.setenv("SRPO_PROJECT_URL", URL + "/")
    hook.Metadata(str(ROOT), {}).update(metadata)
    text = dict(metadata)["readme"]["text"]  # type: ignore[index]
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert dict(metadata)["urls"]["Issues"] == f"{URL}/issues"  # type: ignore[index]


def test_without_an_address_nothing_is_changed(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"version": "1"}
    monkeypatch.delenv("SRPO_PROJECT_URL", raising=False)
    hook.Metadata(str(ROOT), {}).update(metadata)
    if "urls" not in metadata:  # project_url is empty
        assert dict(metadata)["readme"]["text"] == (ROOT / "README.md").read_text("utf-8")  # type: ignore[index]
