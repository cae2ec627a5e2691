"""The study of β: one small cell of a skewed collector, implied rewards by hand, and the tables of made-up journals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import beta_study
from benchmarks.beta_study import GROUPS, HEATS, TRIED, Cell, implied_rewards, measured, still_at, warned_at
from benchmarks.beta_tables import collectors, lights, schedules
from srpo.tasks.carry_run import CarryConfig, StageLog, start_run
from tests.train.plain import ROWS, flat_six, sharp_llama, trainer

TINY = CarryConfig(sampled=60, steps=1, batch=4, prompts=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beta")
    start_run(folder, TINY, 0, StageLog())
    return folder


def test_a_cell_of_a_biased_collector(run: Path, tmp_path: Path) -> None:
    row = measured(Cell(0.1, objective="dpo", collector="biased"), run, tmp_path / "model", TINY)
    assert {len(found["curve"]) for found in row["exact"].values()} == {3}
    assert row["rewards"]["answers"] > 0
    pairs, usual = (
        [json.loads(line) for line in (run / name / "pairs.jsonl").read_text("utf-8").splitlines()]
        for name in ("pairs biased", "pairs")
    )
    begun = [{pair["chosen"][0], pair["rejected"][0]} for pair in pairs]
    assert begun
    assert all(digits == {"0"} for digits in begun)
    assert not all(pair["chosen"][0] == "0" for pair in usual)  # control: the base's own pairs have all sums
    assert {pair["prompt"] for pair in pairs} <= {pair["prompt"] for pair in usual}


def test_implied_rewards_by_hand(tmp_path: Path) -> None:
    run = trainer(tmp_path, ROWS, ref_model=sharp_llama(seed=1), args={"beta": 0.3})
    with torch.no_grad():
        ours, theirs = flat_six(sharp_llama(), ROWS), flat_six(sharp_llama(seed=1), ROWS)
    chosen, rejected = 0.3 * (ours.w - theirs.w), 0.3 * (ours.l - theirs.l)
    mean = (chosen.sum() + rejected.sum()) / (2 * len(ROWS))
    answers = (((chosen - mean) ** 2).sum() + ((rejected - mean) ** 2).sum()) / (2 * len(ROWS))
    margins = ((chosen - rejected) ** 2).mean() - (chosen - rejected).mean() ** 2
    found = implied_rewards(run)
    assert found == pytest.approx({"answers": float(answers), "margins": float(margins)}, rel=1e-4)


def test_keys_of_the_journal_and_groups() -> None:
    old = "beta=0.1 schedule=constant learning_rate=0.0002 alpha=0.5 seed=0 objective=srpo"
    assert Cell(0.1).name == old
    assert Cell(0.1, collector="hot").name == old + " collector=hot"
    assert len(set(GROUPS["seeds"])) == 2 * 2 * len(beta_study.BETAS)
    assert {(cell.objective, cell.collector, cell.beta) for cell in GROUPS["collectors"]} == {
        (name, way, beta) for name, betas in TRIED.items() for way in HEATS for beta in betas
    }


# ---------------------------------------------------------------------- tables


def row(out: float, *, fall: float = 0.0, kl: float = 0.3, validation: float = 0.0, **changes: Any) -> dict[str, Any]:
    """A cell with such a share of right answers out of distribution, whose metrics are the same in all 120 steps."""
    curves = {f"{split} T{heat}": {"curve": [out] * 3} for split in ("in", "out") for heat in (0, 1)}
    validated = {key: {"curve": [validation] * 3} for key in curves}
    entry = {"drift/chosen": fall, "kl/drafts": kl, "entropy/reference": 1.0, "entropy/drafts": 1.0, "beta": 0.1}
    log = [{**entry, "step": step} for step in range(5, 121, 5)]
    return {**vars(Cell(0.1, **changes)), "exact": curves, "validation": validated, "log": log}


def test_steps_of_both_messages() -> None:
    assert (warned_at(row(0.5)), still_at(row(0.5))) == ("–", "–")
    assert warned_at(row(0.5, fall=-1.0)) == "4"  # 1 - 0.8 ** 4 > 0.5
    assert still_at(row(0.5, kl=0.1)) == "48"
    assert still_at(row(0.5, kl=0.1, schedule="budget")) == "–"


def test_trainings_by_message() -> None:
    rows = [
        {**row(share, **changes), "beta": i}
        for i, (share, changes) in enumerate(
            [
                (0.6, {}),
                (0.41, {}),
                (0.39, {"fall": -1.0}),
                (0.3, {"kl": 0.01}),
                (0.2, {}),
                (0.5, {"kl": 0.01}),
            ]
        )
    ]
    assert lights([*rows, row(0.0, seed=1)])[2:] == [
        "| bad | collapsing | 1 | 3 % of the steps |",
        "| bad | hardly moved | 1 | 40 % of the steps |",
        "| bad | none | 1 |  |",
        "| good | hardly moved | 1 | 40 % of the steps |",
        "| good | none | 2 |  |",
    ]


def test_the_best_constant_beta_has_all_seeds() -> None:
    rows = [row(share, seed=seed) for seed, share in enumerate((0.5, 0.6, 0.7))]
    rows += [{**row(0.9), "beta": 0.3}, row(0.58, seed=1, schedule="budget"), {**row(0.9), "learning_rate": 1.0}]
    lines = schedules(rows)
    assert "| sampled | constant | 0.1 | 50.0 | 60.0 | 70.0 | 60.0 | +0.0 |" in lines
    assert "| sampled | budget | 0.1 | – | 58.0 | – | 58.0 | +2.0 |" in lines
    assert "| greedy | best constant with all seeds | 0.1 |  |  |  |  |  |" in lines


def test_each_objective_has_its_own_beta_under_every_collector() -> None:
    rows = [
        {**row(0.1 * i + 0.2 * (way == "hot"), validation=-i, objective="ipo", collector=way), "beta": beta}
        for i, beta in enumerate(TRIED["ipo"], 1)
        for way in HEATS
    ]
    assert collectors(rows)[2:] == ["| ipo | 10.0 (β 0.1) | 30.0 (β 0.1) | 10.0 (β 0.1) | 20.0 |"]
    assert len(collectors(rows[1:])) == 2  # control: one cell is missing
