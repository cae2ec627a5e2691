"""The laws of the source tree hold for srpo, and each one catches a small tree that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import srpo
from tests.house import laws, prose

PACKAGE = Path(srpo.__file__).parent
Law = Callable[[Path], list[str]]

# law → (file, text, what is found there); every file breaks its law in each way the law knows, and nowhere else
BREACHES: dict[Law, list[tuple[str, str, list[str]]]] = {
    laws.wrong_directions: [
        ("errors.py", "import fake.maths.tabular\n", ["errors.py:1: errors imports maths"]),
        ("maths/a.py", "from fake.data.read import Pair\n", ["maths/a.py:1: maths imports data"]),
        ("data/a.py", "from .. import maths\n", ["data/a.py:1: data imports maths"]),
        ("data/b.py", "from ..maths import objective\n", ["data/b.py:1: data imports maths"]),
        ("model/a.py", "def f():\n    from fake.train import trainer\n", ["model/a.py:2: model imports train"]),
        (
            "train/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fake.revise.reviser import Reviser\n",
            ["train/a.py:3: train imports revise"],
        ),
        ("train/b.py", "from fake import Reviser\n", ["train/b.py:1: train imports revise"]),
        ("revise/a.py", "from fake.evaluate import judge\n", ["revise/a.py:1: revise imports evaluate"]),
        ("tasks/a.py", "from fake.cli.main import main\n", ["tasks/a.py:1: tasks imports cli"]),
        ("rounds/a.py", "import fake\n", ["rounds/a.py:1: rounds imports the whole package"]),
        ("misc/a.py", "", ["misc/a.py:1: 'misc' has no place in the order of imports"]),
        ("evaluate/a.py", "from fake.revise.reviser import Reviser\nfrom fake import Reviser, __version__\n", []),
        ("train/c.py", "from .trainer import Trainer\nimport torch\nfrom fake.errors import FakeError\n", []),
        ("__init__.py", "_HOME = {'Reviser': 'fake.revise.reviser'}\n", []),
        ("__main__.py", "from fake.cli.main import main\n", []),
    ],
    laws.circles: [
        ("maths/a.py", "from fake.maths import b\n", ["maths/a.py:1: in a circle with maths/b.py"]),
        ("maths/b.py", "def f():\n    from .c import C\n", ["maths/b.py:1: in a circle with maths/c.py"]),
        ("maths/c.py", "import fake.maths.a\nimport fake.maths.d\n", ["maths/c.py:1: in a circle with maths/a.py"]),
        ("maths/d.py", "import torch\n", []),
        ("maths/e.py", "from fake.maths.a import A\n", []),
        ("revise/reviser.py", "from fake.revise.e import E\n", ["revise/reviser.py:1: in a circle with revise/e.py"]),
        ("revise/e.py", "from fake import Reviser\n", ["revise/e.py:1: in a circle with revise/reviser.py"]),
        ("__init__.py", "_HOME = {'Reviser': 'fake.revise.reviser'}\n", []),
    ],
    laws.imports_by_name: [
        (
            "maths/a.py",
            "import importlib\nx = importlib.import_module('fake.cli')\n",
            ["maths/a.py:2: importlib.import_module"],
        ),
        ("maths/b.py", "x = __import__('fake.cli')\n", ["maths/b.py:1: __import__"]),
        ("cli/main.py", "import importlib\nx = importlib.import_module('fake.cli.env')\n", []),
    ],
    laws.optional_at_top: [
        ("train/a.py", "import peft\n", ["train/a.py:1: imports peft at the top"]),
        (
            "train/b.py",
            "try:\n    import trl.trainer\nexcept ImportError:\n    pass\n",
            ["train/b.py:2: imports trl at the top"],
        ),
        ("train/c.py", "class A:\n    from vllm import LLM\n", ["train/c.py:2: imports vllm at the top"]),
        (
            "train/d.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import datasets\nelse:\n    import fastapi\n"
            "def f():\n    import peft\n",
            ["train/d.py:5: imports fastapi at the top"],
        ),
    ],
    laws.heavy_commands: [
        ("cli/a.py", "import torch\n", ["cli/a.py:1: imports torch at the top"]),
        ("cli/b.py", "from fake.train.config import C\n", ["cli/b.py:1: imports fake.train.config at the top"]),
        (
            "cli/c.py",
            "import os\nfrom fake.errors import E\nfrom fake.cli.parser import P\ndef main():\n    import torch\n",
            [],
        ),
        ("train/a.py", "import torch\n", []),
    ],
    laws.loads: [
        ("train/a.py", "import torch\ntorch.load('x')\n", ["train/a.py:2: torch.load"]),
        ("train/b.py", "import torch as t\nread = t.load\n", ["train/b.py:2: torch.load"]),
        ("train/c.py", "from torch import load as read\n", ["train/c.py:1: torch.load"]),
        ("train/d.py", "def f(P, m):\n    return P.from_pretrained(m)\n", ["train/d.py:2: from_pretrained"]),
        ("train/e.py", "def f(P):\n    return getattr(P, 'from_pretrained')\n", ["train/e.py:2: from_pretrained"]),
        ("train/f.py", "import json\njson.load(open('x'))\n'''says from_pretrained'''\n", []),
        ("train/durable/checkpoint.py", "import torch\ntorch.load('x')\n", []),
        ("model/weights/load.py", "def f(P, m):\n    return P.from_pretrained(m)\n", []),
    ],
    laws.catch_alls: [
        ("maths/a.py", "try:\n    pass\nexcept Exception:\n    pass\n", ["maths/a.py:3: catches everything"]),
        ("maths/b.py", "try:\n    pass\nexcept:\n    pass\n", ["maths/b.py:3: catches everything"]),
        (
            "maths/c.py",
            "try:\n    pass\nexcept (OSError, BaseException):\n    raise\n",
            ["maths/c.py:3: catches everything"],
        ),
        ("maths/d.py", "try:\n    pass\nexcept (OSError, ValueError):\n    pass\n", []),
        ("cli/main.py", "try:\n    pass\nexcept Exception:\n    pass\n", []),
    ],
    laws.long_files: [
        ("maths/a.py", "\n" * 401, ["maths/a.py:401: more than 400 lines"]),
        ("maths/b.py", "\n" * 400, []),
    ],
    prose.docstring_openings: [
        ("maths/a.py", '"""What a loss is."""\n', ["maths/a.py:1: opens with 'What'"]),
        ("maths/b.py", 'def f():\n    """Whoever reads."""\n', ["maths/b.py:1: opens with 'Whoever'"]),
        ("maths/c.py", '"""Whatever the loss, its value."""\n', []),
    ],
    prose.word_rates: [
        (
            "maths/a.py",
            "# what stands here is told\n",
            ["what: 10.0 per 1,000 words", "stand(s): 10.0 per 1,000 words"],
        ),
        ("maths/b.py", f"# {'word ' * 94}None\n", ["say, tell: 10.0 per 1,000 words"]),
    ],
    prose.any_share: [
        ("maths/a.py", "def f(a: Any, b: int, c: list[Any]) -> Any: ...\n", ["maths/a.py:1: Any"]),
        ("maths/b.py", "def f(*a: Any | None, **b: Anyone): ...\n", ["maths/b.py:1: Any | None"]),
    ],
    prose.long_functions: [
        ("maths/a.py", "def f():\n" + "    x\n" * 80, ["maths/a.py:1: f has 81 lines"]),
        ("maths/b.py", "@decorated\ndef f():\n" + "    x\n" * 79, []),
    ],
    prose.crowded_folders: [
        ("maths/a.py", "\n" * 16, ["maths: 16.0 % of all lines"]),
        *((f"{room}/a.py", "\n" * 14, []) for room in ("data", "model", "judge", "score", "train", "tasks")),
    ],
}


@pytest.mark.parametrize("law", BREACHES, ids=lambda law: law.__name__)
def test_srpo_follows_the_law(law: Law) -> None:
    assert law(PACKAGE) == []


@pytest.mark.parametrize("law", BREACHES, ids=lambda law: law.__name__)
def test_a_breach_is_found(law: Law, tmp_path: Path) -> None:
    package = tmp_path / "fake"
    for path, text, _ in BREACHES[law]:
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(text, "utf-8")
    expected = [found for _, _, founds in BREACHES[law] for found in founds]
    assert sorted(law(package)) == sorted(expected)


def test_every_law_is_tried() -> None:
    """A law that is written and never run is no law."""
    written = {
        each
        for name, each in [*vars(laws).items(), *vars(prose).items()]
        if callable(each) and getattr(each, "__annotations__", {}).get("return") == "list[str]"
    }
    assert written == set(BREACHES)


def test_the_whole_package_is_read() -> None:
    read = {source.path for source in laws.sources(PACKAGE)}
    assert {"__init__.py", "errors.py", "cli/main.py", "maths/objective.py"} <= read
