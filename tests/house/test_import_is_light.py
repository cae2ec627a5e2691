"""`import srpo` and `srpo --help` leave the heavy libraries alone. What is loaded is asked, not how long it took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import srpo

PACKAGE = Path(srpo.__file__).parent
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "numpy"}
REPORT = "import json, sys; print(); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
HELP = "import sys; sys.argv = ['srpo', '--help']\ntry: import srpo.__main__\nexcept SystemExit: pass\n"


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import srpo; dir(srpo); srpo.SRPOError", HELP], ids=["import", "help"])
def test_no_large_library_is_loaded(code: str) -> None:
    loaded = loaded_by(code)
    assert "srpo" in loaded
    assert loaded & HEAVY == set()


def test_the_import_of_a_large_library_is_found() -> None:
    assert {"torch", "numpy"} <= loaded_by("import srpo; srpo.srpo_loss")


def test_settings_of_all_rooms_import_no_library() -> None:
    """The command line reads these files before it knows whether a flag is right."""
    modules = [
        ".".join(("srpo", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in PACKAGE.glob("**/settings.py")
    ]
    assert "srpo.judge.settings" in modules
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY
