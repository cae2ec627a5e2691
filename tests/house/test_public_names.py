"""Every public name resolves, is documented, and carries an example; every example in the package runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import srpo
from tests.house import laws

PACKAGE = Path(srpo.__file__).parent
WITH_EXAMPLES = [
    ".".join([PACKAGE.name, *Path(source.path).with_suffix("").parts])
    for source in laws.sources(PACKAGE)
    if ">>> " in source.text
]


def gaps(thing: Any) -> list[str]:
    """What a public class or function lacks: a docstring of its own, an example in it or in one of its methods."""
    written = (inspect.getdoc(thing) or "") if thing.__doc__ else ""
    found = doctest.DocTestFinder().find(thing, thing.__name__, module=sys.modules[thing.__module__])
    shown = any(
        "Example:" in (test.docstring or "") and any(not step.options.get(doctest.SKIP) for step in test.examples)
        for test in found
    )
    return [
        *([] if written and not written.startswith(f"{thing.__name__}(") else ["no docstring"]),
        *([] if shown else ["no `Example:` that runs"]),
    ]


def failed_examples(module: Any) -> str:
    """The report of the module's doctests; empty when all of them pass."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", srpo._HOME)
def test_a_public_name_is_documented_with_an_example(name: str) -> None:
    thing = getattr(srpo, name)
    assert thing.__module__ == srpo._HOME[name]
    assert gaps(thing) == []


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_run(module: str) -> None:
    assert failed_examples(importlib.import_module(module)) == ""


def test_public_names_are_in_one_list() -> None:
    assert sorted(srpo.__all__) == sorted(["__version__", *srpo._HOME])
    assert dir(srpo) == sorted(srpo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SRPOTrainner'"):
        _ = srpo.SRPOTrainner


def test_type_checkers_see_the_names_that_run() -> None:
    """The imports under TYPE_CHECKING are the same names from the same modules as `_HOME`."""
    source = next(each for each in laws.sources(PACKAGE) if each.path == "__init__.py")
    seen = {each.name: each.module for each in laws.imports(source, "srpo") if each.for_types}
    assert seen == srpo._HOME
    # A computed __all__ exports nothing: `from srpo import SRPOTrainer` is then an error in a user's strict project.
    assert laws.literal(PACKAGE, "__all__") == srpo.__all__


def test_srpo_uses_no_wildcards() -> None:
    stars = [
        source.at(node.lineno, "import *")
        for source in laws.sources(PACKAGE)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert stars == []


def undocumented(number: int) -> int:
    return number


def without_example(number: int) -> int:
    """The number."""
    return number


def with_skipped_example(number: int) -> int:
    """The number.

    Example:
        >>> with_skipped_example(1)  # doctest: +SKIP
        1
    """
    return number


def with_wrong_example(number: int) -> int:
    """The number.

    Example:
        >>> with_wrong_example(1)
        2
    """
    return number


def test_missing_documentation_is_found() -> None:
    assert gaps(undocumented) == ["no docstring", "no `Example:` that runs"]
    assert gaps(without_example) == ["no `Example:` that runs"]
    assert gaps(with_skipped_example) == ["no `Example:` that runs"]
    assert gaps(with_wrong_example) == []
    assert "Expected:\n    2\nGot:\n    1" in failed_examples(sys.modules[__name__])
