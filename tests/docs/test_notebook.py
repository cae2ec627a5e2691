"""The notebook's cells run in order, on a tiny model and pairs in files, without installation and 4 bits."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from tests.conftest import make_byte_tokenizer, make_tiny_llama

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "free-gpu.ipynb"
STAND_IN = {"MODEL": "tiny", "PAIRS": "pairs.jsonl", "STEPS": 2, "PRECISION": "", "PROMPTS": ["1+1=", "2+2="]}


def cells() -> list[tuple[set[str], str]]:
    """Tags and code of each cell of code."""
    found = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    return [({*cell["metadata"].get("tags", ())}, "".join(cell["source"])) for cell in code]


def as_python(code: str) -> str:
    """The cell with its lines `!srpo …` as calls of `srpo`."""
    return re.sub(r"^!srpo (.*)$", r'srpo(f"""\1""")', code.replace("\\\n", " "), flags=re.MULTILINE)


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    make_tiny_llama(max_position_embeddings=2048).save_pretrained("tiny")
    make_byte_tokenizer().save_pretrained("tiny")
    rows = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": str(2 * n + 1)} for n in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def srpo(command: str) -> None:
        assert run(shlex.split(command)) == 0, command

    names: dict[str, Any] = {"srpo": srpo}
    for tags, code in cells():
        if "install" in tags:
            continue
        exec(as_python(code), names)
        if "parameters" in tags:
            assert STAND_IN.keys() <= names.keys()
            names |= STAND_IN
    printed = capsys.readouterr().out
    assert "### 1+1=" in printed
    assert "revision 2 (p " in printed or "revision 1 (p " in printed
    steps = [row["step"] for row in map(json.loads, Path("run/metrics.jsonl").read_text("utf-8").splitlines())]
    assert {1, 2} <= {*steps}


def test_no_cell_holds_output() -> None:
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs"), cell["id"]
        assert cell.get("execution_count") is None, cell["id"]
