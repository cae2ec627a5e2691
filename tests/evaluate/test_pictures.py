"""Prompts with pictures in evaluations, calibrations and evaluations during training."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging import version

from srpo.cli.main import run
from srpo.data.read import read_prompts
from srpo.evaluate.calibrate import calibrate
from srpo.evaluate.callback import RevisionEvaluation, Watch
from srpo.evaluate.plan import Plan
from srpo.evaluate.run import evaluate
from srpo.judge.single import exact_match
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.sequences.templates import RevisionTemplate
from tests.sequences.pictured import idefics_processor, model_for, picture, png
from tests.train.test_pictures import trained

COLOURS = ("red", "green", "black", "white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its processor, four pictures, and prompts of equal text that show them."""
    if find_spec("torchvision") is None and version.parse(transformers.__version__) < version.parse("5.18"):
        pytest.skip("loading a saved processor of pictures needs torchvision with this transformers")
    found, processor = tmp_path_factory.mktemp("pictured"), idefics_processor()
    for part in (model_for(processor), processor):
        part.save_pretrained(found / "model")
    RevisionTemplate.preset("quote").save(found / "model")
    for colour in COLOURS:
        (found / f"{colour}.png").write_bytes(png(picture(colour)))
    rows = [{"prompt": "What?", "image": f"{colour}.png", "gold": colour} for colour in COLOURS]
    (found / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_an_evaluation_draws_answers_to_what_each_picture_shows(folder: Path, tmp_path: Path) -> None:
    plan = Plan.of(
        {
            "models": {"own": str(folder / "model")},
            "revisions": 1,
            "temperature": [0.0],
            "max_new_tokens": 3,
            "prompts": str(folder / "prompts.jsonl"),
            "output_dir": str(tmp_path),
        }
    )
    plan.check()
    results, report = evaluate(plan, {"exact_match": exact_match})
    assert results.curve("own", "all", 0.0)[1]["n"] == len(COLOURS)
    assert "base64,iVBOR" not in report.read_text("utf-8")
    [drawn] = tmp_path.glob("**/own*.jsonl")
    texts = [json.loads(line)["answers"][0]["text"] for line in drawn.open(encoding="utf-8")]
    rows = read_prompts(str(folder / "prompts.jsonl"))
    alone = Reviser(str(folder / "model")).trails(rows, RevisionSettings(0, 0.0, max_new_tokens=3))
    assert texts == [trail.answers[0].text for trail in alone]
    assert len(set(texts)) > 1


def test_a_calibration_answers_prompts_with_pictures(folder: Path) -> None:
    reviser = Reviser(str(folder / "model"))
    rows = read_prompts(str(folder / "prompts.jsonl")) * 10
    found = calibrate(reviser, rows, lambda prompt, answer, gold: 0.0, RevisionSettings(1, 1.0, 0, 2))
    assert (found.choice.policy, found.prompts) == ("drafts", 40)


def test_the_gate_of_the_command_drafts_what_each_picture_shows(folder: Path, tmp_path: Path) -> None:
    own = Reviser(str(folder / "model")).trails(
        read_prompts(str(folder / "prompts.jsonl")), RevisionSettings(0, 0.0, max_new_tokens=3)
    )
    drafts = [trail.answers[0].text for trail in own]
    others = [*drafts[1:], drafts[0]]  # half of the gold answers are drafts of another picture
    golds = zip(COLOURS * 2, [*drafts, *others], strict=True)
    rows = [{"prompt": "What?", "image": str(folder / f"{colour}.png"), "gold": gold} for colour, gold in golds]
    (file := tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 5))
    given = ["--before", "--model_name_or_path", str(folder / "model"), "--input", str(file), "--revisions", "1"]
    (out := tmp_path / "gate").mkdir()
    assert run(["calibrate", *given, "--max_new_tokens", "3", "--output_dir", str(out)]) == 0
    found = json.loads((out / "srpo_gate.json").read_text("utf-8"))["rates"]["greedy"][0]
    same = [draft == gold for draft, gold in zip(drafts * 2, [*drafts, *others], strict=True)]
    assert found == pytest.approx(sum(same) / 8)
    assert found < 1


def test_an_evaluation_during_training_answers_prompts_with_pictures(tmp_path: Path) -> None:
    trainer = trained(tmp_path, idefics_processor(), max_steps=1)
    rows: list[dict[str, Any]] = [
        {"prompt": "What?", "image": picture(colour), "chosen": colour, "rejected": "blue"} for colour in COLOURS
    ]
    watching = RevisionEvaluation(trainer, rows, exact_match, Watch(1, prompts=4, temperature=0.0, max_new_tokens=3))
    drafts = [trail.answers[0].text for trail in watching.draw()]
    assert len(drafts) == 4
    assert len(set(drafts)) > 1
