"""Settings of Sphinx for the documentation; `make docs` runs build.py, which gathers the pages first."""

from __future__ import annotations

import os
from typing import Any

import srpo

project = "srpo"
copyright = "The srpo contributors"
release = version = srpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["site"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "tasklist"]
myst_heading_anchors = 4
# Links to headings are checked by tests/docs/test_pages.py with the anchors of the forge.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = False

html_theme = "furo"
html_title = f"srpo {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
    "source_repository": os.environ.get("SRPO_PROJECT_URL", ""),
}
if not html_theme_options["source_repository"]:
    del html_theme_options["source_repository"]


def plain(app: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Escapes signs of docstrings that mean something else in reStructuredText, such as π(y|x)."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Registers `plain`."""
    app.connect("autodoc-process-docstring", plain)
