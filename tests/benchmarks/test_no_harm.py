"""The harm of the calibrated default: what is tried, and which differences count as missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import no_harm
from benchmarks.no_harm import TASKS, line, ways
from benchmarks.tasks import orders
from srpo import Reviser
from srpo.data.read import read_prompts
from srpo.errors import ConfigError
from srpo.evaluate.calibrate import calibrate
from srpo.judge.single import exact_match
from srpo.revise.loading import TRAINING_FILE
from srpo.revise.policy import NAMES
from srpo.revise.settings import LAST, SELECTORS, RevisionSettings
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.revise.tiny import Scripted, carry_llama


def scores(**right: int) -> dict[str, torch.Tensor]:
    """Scores of 200 prompts, the first `right` ones of each way right."""
    return {name: (torch.arange(200) < count).double() for name, count in right.items()}


@pytest.mark.parametrize(
    ("split", "found", "missed"),
    [
        ("in", scores(auto=100, draft=101, greedy=104), False),  # half a point, two points
        ("in", scores(auto=100, draft=104, greedy=90), True),
        ("in", scores(auto=100, draft=50, greedy=106), True),
        ("out", scores(auto=100, draft=50, greedy=150), False),  # the best choice binds in distribution alone
        ("out", scores(auto=100, draft=104, greedy=150), True),
    ],
)
def test_a_loss_beyond_its_bound_is_a_miss(split: str, found: dict[str, torch.Tensor], missed: bool) -> None:
    assert line(found, split).endswith(" MISS") == missed


def test_the_best_other_way_is_named() -> None:
    text = line(scores(auto=100, draft=50, vote=120, greedy=110), "in")
    assert text.startswith("auto 50.0, draft 25.0: +25.0 (")
    assert ", vote 60.0: -10.0 (" in text


class Longest:
    """A scorer whose log-ratio in nats is the number of tokens."""

    def log_ratios(self, sequences: Any) -> torch.Tensor:
        return torch.tensor([[float(len(answer)) for _, answer in each] for each in sequences])


@pytest.mark.parametrize("heat", [1.0, 0.0])
def test_every_policy_and_selector_answers(heat: float) -> None:
    reviser = Reviser(carry_llama(), carry_tokenizer(), TEMPLATE, scorer=Longest(), beta=0.1)
    Scripted(reviser, lambda context: "59" if context.endswith("?") else "5")
    rows = [{"prompt": f"{n}+1=", "gold": "59"} for n in range(10, 50)]
    settings = RevisionSettings(3, heat, 0, 4)
    reviser.calibration = calibrate(reviser, read_prompts(rows), exact_match, settings)
    found = ways(reviser, rows, settings)
    chosen = [by for by in SELECTORS if by != LAST]
    wanted = {"draft", "auto", "fixed:1", "fixed:2", *NAMES, *(f"if_preferred + {by}" for by in chosen)}
    wanted -= {"drafts", "fixed:K"}  # the draft; three revisions are `always`
    if heat:
        wanted |= {"drafts + majority", *(f"drafts + {by}" for by in chosen)}
    else:
        wanted -= {"greedy", "vote"}
    assert set(found) == wanted
    assert {name: set(texts) for name, texts in found.items() if name in ("draft", "always", "fixed:1")} == {
        "draft": {"5"},
        "always": {"59"},
        "fixed:1": {"59"},
    }
    assert all(len(texts) == len(rows) for texts in found.values())


@pytest.mark.parametrize("name", TASKS)
def test_every_split_of_a_task_is_tried(name: str) -> None:
    task = TASKS[name]
    assert all(len(task.rows(2, split, seed=1)) == 2 for split in task.splits)
    with pytest.raises(ConfigError) as error:
        task.rows(1, "unheard of")
    assert all(split in str(error.value) for split in task.splits)
    assert str(error.value).count(" or ") == len(task.splits) - 1


def test_the_command_runs_every_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    config = orders.OrdersConfig(hidden=24, layers=1, heads=2, steps=1, batch=2)
    for _, _, trained in orders.train_base(config):
        for each in (trained, orders.orders_tokenizer()):
            each.save_pretrained(model)
    orders.LETTERS.template.save(model)
    (model / TRAINING_FILE).write_text('{"beta": 0.1}', "utf-8")
    sizes = ["--labelled", "40", "--prompts", "2", "--revisions", "1", "--temperature", "0"]
    monkeypatch.setattr("sys.argv", ["no_harm", "--task", "orders", "--models", str(model), str(model), *sizes])
    no_harm.main()
    told = [text.partition(":")[0].strip() for text in capsys.readouterr().out.splitlines()]
    assert told == ["orders, seed 0, T = 0", *orders.SPLITS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "b", "m", "--output_dir", "o"], "--output_dir: --models makes no models"),
        (["--models", "b", "m", "--base_steps", "1600"], "--base_steps: --models makes no models"),
        (["--models", "b", "m", "--steps", "0"], "--steps: --models makes no models"),
        (["--models", "b", "m", "--seeds", "0", "1"], "--seeds: --models are the models of one seed"),
        (["--task", "orders", "--output_dir", "o"], "expected --output_dir for the columns task, or --models"),
    ],
)
def test_settings_without_effect_are_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["no_harm", *words])
    with pytest.raises(SystemExit) as stopped:
        no_harm.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
