"""Recipes of CONTRIBUTING.md: a copy of the package gets code at the places that each recipe names, and uses it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.data.values import Unusable
from srpo.errors import SRPOError

ROOT = Path(__file__).parents[2]

# Recipe → (file in srpo/, text that occurs there once, text put before it). A file without such a text is a new one.
EDITS: dict[str, list[tuple[str, str, str]]] = {
    "An objective": [
        (
            "maths/objective.py",
            "@dataclass(frozen=True)\nclass Objective:",
            "def halved_loss(policy, reference, *, beta, alpha):\n"
            "    return dpo_loss(policy, reference, beta=beta / 2, alpha=alpha)\n\n\n",
        ),
        ("maths/objective.py", '    "dpo": Objective(', '    "halved": Objective(halved_loss, drafts_only=True),\n'),
    ],
    "A revision template": [
        (
            "sequences/templates.py",
            '        RevisionTemplate(\n            "turn"',
            '        RevisionTemplate("brief", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}, briefly:"),\n',
        )
    ],
    "A judge of single answers": [
        (
            "judge/single.py",
            "JUDGES: Mapping[",
            "def same_length(prompt, answer, gold):\n    return float(len(answer) == len(_text(gold)))\n\n\n",
        ),
        ("judge/single.py", '    "numeric": numeric,', '    "same_length": same_length,\n'),
    ],
    "A data format": [
        (
            "data/formats.py",
            '    Layout(\n        "transcripts"',
            '    Layout("votes", "ask, up and down are text", dict.fromkeys(["ask", "up", "down"], ("text",)),\n'
            '           lambda row: row["ask"], lambda row, prompt, rankings: [Answers(row["up"], row["down"])]),\n',
        )
    ],
    "An engine": [
        (
            "generate/echo.py",
            "",
            "from srpo.generate.engine import Completion\n\n\nclass EchoEngine:\n"
            "    same_batch_same_bits, max_length, batch_size = True, None, 8\n\n"
            "    def complete(self, contexts, keys, decoding, *, guesses=None, keep=None):\n"
            "        return [Completion((ids[1], decoding.stop_ids[0]), True, 0.0) for ids in contexts]\n",
        ),
        ("revise/settings.py", '"vllm", "openai", "chat")', '"echo", '),
        (
            "revise/engines.py",
            'if settings.engine == "vllm":',
            'if settings.engine == "echo":\n            from srpo.generate.echo import EchoEngine\n\n'
            '            keywords["engine"] = EchoEngine()\n        el',
        ),
    ],
    "A setting": [
        (
            "revise/settings.py",
            "    select: str = shared(",
            '    patience: int = setting(3, "Number of attempts.", least=1)\n',
        )
    ],
    "A verb": [
        (
            "cli/greet.py",
            "",
            "from dataclasses import dataclass\n\nfrom srpo.cli.flags import parse\n"
            "from srpo.settings import setting\n\n\n@dataclass(kw_only=True)\nclass Arguments:\n"
            '    name: str = setting("reader", "Name to greet.")\n\n\ndef main(argv):\n'
            '    print("hello", parse("greet", "Greets.", Arguments, argv).name)\n    return 0\n',
        ),
        ("cli/main.py", '    "train": "train on', '    "greet": "say hello",\n'),
    ],
}


# Each function imports inside, where it finds the copy in the fork and the package itself in the control.


def an_objective(folder: Path) -> Any:
    from srpo.maths.objective import OBJECTIVES, SixLogps
    from srpo.train.config import SRPOConfig

    args = SRPOConfig(output_dir=str(folder), objective="halved", report_to="none", use_cpu=True)
    policy, reference = (
        SixLogps(*torch.tensor(rows, dtype=torch.float64)[:, None]) for rows in ([*range(-6, 0)], [-7.0] * 6)
    )
    ours = OBJECTIVES[args.objective].loss(policy, reference, beta=1.0, alpha=0.0).loss
    return float(ours - OBJECTIVES["dpo"].loss(policy, reference, beta=0.5, alpha=0.0).loss)


def a_template(folder: Path) -> Any:
    from srpo.sequences.templates import RevisionTemplate

    return RevisionTemplate.preset("brief").fill_revision("2+2=", "5")


def a_judge(folder: Path) -> Any:
    from srpo.judge.single import load_judge

    judge = load_judge("same_length")
    return [judge("2+2=", answer, "4") for answer in ("5", "44")]


def a_format(folder: Path) -> Any:
    from srpo.data.formats import convert, layout_of

    row = {"ask": "2+2=", "up": "4", "down": "5"}
    prompt, pairs = convert(row, layout_of(row))
    return prompt, pairs


def an_engine(folder: Path) -> Any:
    from srpo.revise.engines import make_reviser
    from srpo.revise.settings import EngineSettings
    from tests.revise.tiny import carry_llama, saved

    reviser = make_reviser(EngineSettings("echo"), str(saved(folder / "model", carry_llama())))
    [trail] = reviser.revise(["2+2="], revisions=1)
    return trail.answers[0].text


def a_setting(folder: Path) -> Any:
    from srpo.cli.flags import parse
    from srpo.errors import SRPOError
    from srpo.revise.settings import RevisionSettings
    from srpo.settings import build

    found = [parse("revise", "Revises.", RevisionSettings, ["--patience", "5"]).patience]
    for wrong in ({"patience": 0}, {"patiense": 4}):
        try:
            build(RevisionSettings, wrong)
        except SRPOError as error:
            found.append(str(error))
    return found


def a_verb(folder: Path) -> Any:
    from srpo.cli.main import run

    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(["greet", "--name", "you"])
    return code, out.getvalue()


# Recipe → (a use of the addition, its result as JSON)
USES: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "An objective": (an_objective, 0.0),
    "A revision template": (a_template, "2+2=5, briefly:"),
    "A judge of single answers": (a_judge, [1.0, 0.0]),
    "A data format": (a_format, ["2+2=", [["4", "5", ""]]]),
    "An engine": (an_engine, "2"),
    "A setting": (
        a_setting,
        [5, "patience: 0; expected 1 or more", "unknown key 'patiense'; did you mean 'patience'?"],
    ),
    "A verb": (a_verb, [0, "hello you\n"]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recipe → result of its use in a copy of the package with all additions, or the traceback."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "srpo", folder / "srpo", ignore=shutil.ignore_patterns("__pycache__"))
    for edits in EDITS.values():
        for name, place, added in edits:
            file = folder / "srpo" / name
            old = file.read_text("utf-8") if place else ""
            assert old.count(place) == 1 or not place, (name, place, old.count(place))
            file.write_text(old.replace(place, added + place) if place else added, "utf-8")
    process = os.fork()  # a fork has torch and transformers already
    if not process:
        _use_the_copy(folder)
    assert os.waitpid(process, 0)[1] == 0
    found: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return found


def _use_the_copy(folder: Path) -> None:
    """In a fork: imports srpo from the copy, uses every addition, writes the results and ends the process."""
    code = 1
    try:
        for name in [name for name in sys.modules if name.partition(".")[0] == "srpo" or name.startswith("tests.")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        results = {}
        for recipe, (use, _) in USES.items():
            try:
                results[recipe] = use(folder)
            except Exception:
                results[recipe] = traceback.format_exc()
        import srpo

        assert Path(srpo.__file__).is_relative_to(folder)
        (folder / "results.json").write_text(json.dumps(results), "utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.mark.parametrize("recipe", USES)
def test_a_recipe_works_as_written(recipe: str, results: dict[str, Any]) -> None:
    assert results[recipe] == USES[recipe][1], results[recipe]


@pytest.mark.parametrize("recipe", USES)
def test_without_its_addition_a_recipe_fails(recipe: str, tmp_path: Path) -> None:
    with pytest.raises((SRPOError, Unusable)):
        USES[recipe][0](tmp_path)


def test_the_page_names_every_place_that_an_addition_changes() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where to add things")[2]
    recipes = {part.partition(".**")[0]: part for part in page.partition("## Changes")[0].split("\n**")[1:]}
    assert set(recipes) - {"A dependency"} == set(EDITS) == set(USES)
    for recipe, edits in EDITS.items():
        for file in {file for file, place, _ in edits if place} - {"revise/settings.py"}:
            assert f"srpo/{file}" in recipes[recipe], (recipe, file)
