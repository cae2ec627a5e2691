"""Metadata of the distribution: the README with absolute links, and the project's addresses, from one setting.

`project_url` of `[tool.srpo]` in pyproject.toml, or the variable SRPO_PROJECT_URL, is the address of the repository. On
a package index relative links lead nowhere, so they become links into the repository at the tag of the version.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE, LINK = r"(!\[[^\]]*\]\()(?!\w+:)([^)\s]+)", r"((?<!!)\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)"


def absolute(text: str, url: str, version: str) -> str:
    """The text with relative links to pages and pictures of the repository made absolute."""
    text = re.sub(PICTURE, rf"\g<1>{url}/raw/v{version}/\g<2>", text)
    return re.sub(LINK, rf"\g<1>{url}/blob/v{version}/\g<2>", text)


class Metadata(MetadataHookInterface):
    """The metadata hook that fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["srpo"]
        url = (os.environ.get("SRPO_PROJECT_URL") or settings["project_url"]).rstrip("/")
        text = (root / "README.md").read_text("utf-8")
        if url:
            pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
            links = {name: f"{url}/blob/main/{page}" for name, page in pages.items()}
            metadata["urls"] = {"Homepage": url, "Source": url, "Issues": f"{url}/issues", **links}
            text = absolute(text, url, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
