"""What pyproject.toml, constraints.txt, CITATION.cff and CHANGELOG.md say agrees with the code and with each other."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import srpo
from tests.house import laws

PACKAGE = Path(srpo.__file__).parent
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text("utf-8")
IMPORTED_AS = {
    "pillow": "PIL",
    **{"pyyaml": "yaml", "huggingface-hub": "huggingface_hub"},
    **{"rouge-score": "rouge_score", "math-verify": "math_verify", "prometheus-client": "prometheus_client"},
}
# Needed although no line of srpo imports them.
NEEDED_BY_OTHERS = {"accelerate": "transformers.Trainer cannot be built without it"}
# Reached only where the user has installed them: `generate/` says so in a typed error, and a run is under DeepSpeed
# only because accelerate was told to use it.
BROUGHT_BY_THE_USER = {"vllm", "deepspeed"}
BROUGHT_BY_TORCH = {"triton"}  # a requirement of torch for CUDA; only the file of the kernels imports it


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = requirements([line for lines in PROJECT["optional-dependencies"].values() for line in lines])
PINS = requirements([line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")])


def imported(package: Path, *, at_top: bool) -> set[str]:
    """Third-party libraries that the package imports, at the top of a file or anywhere in it."""
    return {
        each.distribution
        for source in laws.sources(package)
        for each in laws.imports(source, package.name)
        if (each.at_top or not at_top) and each.distribution not in {package.name, *sys.stdlib_module_names}
    }


def as_imported(names: dict[str, Requirement]) -> set[str]:
    return {IMPORTED_AS.get(name, name) for name in names}


def test_every_imported_library_is_declared() -> None:
    declared = as_imported(CORE) | BROUGHT_BY_TORCH
    assert imported(PACKAGE, at_top=True) - declared == set()
    assert imported(PACKAGE, at_top=False) - declared - as_imported(EXTRAS) - BROUGHT_BY_THE_USER == set()


def test_every_declared_library_is_imported() -> None:
    assert as_imported(CORE) - imported(PACKAGE, at_top=False) - set(NEEDED_BY_OTHERS) == set()


def test_an_undeclared_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "a.py").write_text("import json, scipy.stats\ndef f():\n    from einops import rearrange\n")
    assert imported(tmp_path / "fake", at_top=True) == {"scipy"}
    assert imported(tmp_path / "fake", at_top=False) == {"scipy", "einops"}


@pytest.mark.parametrize("name", sorted(CORE.keys() | EXTRAS.keys()))
def test_every_dependency_is_pinned_within_its_bounds(name: str) -> None:
    (pin,) = PINS[name].specifier
    assert pin.operator == "=="
    for declared in (CORE.get(name), EXTRAS.get(name)):
        assert declared is None or declared.specifier.contains(pin.version)


def test_every_file_names_the_same_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == srpo.__version__
    assert cited["license"] == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = next(iter(re.findall(r"^## (.+)$", changes, flags=re.M)))
    assert newest == "Unreleased" or newest.startswith(srpo.__version__)


def test_the_command_is_a_function_of_no_arguments() -> None:
    module, function = PROJECT["scripts"]["srpo"].split(":")
    main = getattr(importlib.import_module(module), function)
    assert not inspect.signature(main).parameters


def test_the_container_gets_every_file_that_it_copies() -> None:
    copied = [name for line in _lines("Dockerfile") if line.startswith("COPY ") for name in line.split()[1:-1]]
    let_in = [line[1:] for line in _lines(".dockerignore") if line.startswith("!")]
    assert sorted(copied) == sorted(let_in)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    [torch] = [line for line in CONSTRAINTS.splitlines() if line.startswith("torch==")]  # as the Dockerfile finds it
    assert Requirement(torch).name == "torch"


def _lines(name: str) -> list[str]:
    return (ROOT / name).read_text("utf-8").splitlines()
