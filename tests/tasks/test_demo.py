"""The demo from end to end, small: every stage runs, is reused, and what comes out can be reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from srpo.errors import ConfigError, OutputError
from srpo.report.cases import sample_cases
from srpo.report.page import write_evaluation
from srpo.tasks.carry import SPLITS, BaseConfig
from srpo.tasks.carry_run import CHOSEN, CarryConfig, StageLog, cells, evaluation_rows
from srpo.tasks.demo import LABELS, SHORT, SYSTEMS_OF, questions, run_demo, settings_shown, stages_of, verdict
from srpo.tasks.stages import Counts

SMALL = CarryConfig(
    base=BaseConfig(digits=2, hidden=24, layers=1, heads=2, steps=40, batch=16),
    sampled=300,
    steps=2,
    batch=8,
    prompts=40,
    revisions=2,
    methods={name: replace(CHOSEN[name], revisions=min(2, CHOSEN[name].revisions)) for name in SHORT.methods},
)
SYSTEMS = [system for method in (*SMALL.methods, "base") for system in SYSTEMS_OF[method]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder, stages = tmp_path_factory.mktemp("demo"), dict[str, float]()
    home = tmp_path_factory.mktemp("home")
    counts = Counts(stages_of(SMALL, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.delenv("HF_DATASETS_CACHE", raising=False)
        run_demo(str(folder), config=SMALL, log=StageLog(stages.__setitem__, counts), workers=1)
    assert not [*home.rglob("*")]  # the demo writes to its own folder alone
    assert all(0 < done == total for done, total in map(counts.__getitem__, counts.place))
    return folder, stages


def test_every_stage_runs_once_and_is_reused(ran: tuple[Path, dict[str, float]]) -> None:
    folder, stages = ran
    trained = [f"seed 0: train {name}" for name in SMALL.methods]
    drawn = [f"seed 0: draw {system}" for system in SYSTEMS]
    assert sorted(stages) == sorted(["seed 0: base model", "seed 0: pairs", *trained, *drawn])
    assert sorted(stages) == sorted(stages_of(SMALL, 0))
    assert min(stages.values()) > 0
    again: dict[str, float] = {}
    run_demo(str(folder), config=SMALL, log=StageLog(again.__setitem__), workers=1)
    assert again == dict.fromkeys(stages, 0.0)


def test_a_changed_setting_redoes_what_depends_on_it_and_no_more(ran: tuple[Path, dict[str, float]]) -> None:
    folder, _ = ran
    changed = replace(SMALL, methods={**SMALL.methods, "dpo": replace(SMALL.methods["dpo"], beta=0.7)})
    again: dict[str, float] = {}
    run_demo(str(folder), config=changed, log=StageLog(again.__setitem__), workers=1)
    assert {stage for stage, seconds in again.items() if seconds} == {"seed 0: train dpo", "seed 0: draw dpo"}
    run_demo(str(folder), config=SMALL, workers=1)  # as the other tests expect it


def test_every_system_is_scored_on_the_same_sums(ran: tuple[Path, dict[str, float]]) -> None:
    folder, _ = ran
    scored = run_demo(str(folder), config=SMALL, workers=1)
    assert {(cell.system, cell.split, cell.temperature) for cell in scored} == {
        (system, *place) for system in SYSTEMS for place in cells(SMALL, system)
    }
    for cell, found in scored.items():
        golds = sorted(row["gold"] for row in evaluation_rows(SMALL, 0)[cell.split])
        assert sorted(map(str, found.golds)) == golds
        assert found.primary_NR.shape == (SMALL.prompts, SMALL.revisions + 1)
        assert found.tokens is not None
        assert list(found.tokens) == sorted(found.tokens)
    drafts = {split: scored[0, "srpo", split, 1.0].primary_NR[:, 0] for split in SPLITS}
    for split in SPLITS:  # SRPO and the best of its drafts start from the same drafts
        for system in SYSTEMS_OF["srpo"]:
            assert scored[0, system, split, 1.0].primary_NR[:, 0].equal(drafts[split])


@pytest.mark.usefixtures("empty_figures")
def test_the_report_answers_every_question(ran: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, _ = ran
    scored = run_demo(str(folder), config=SMALL, workers=1)
    results = verdict(scored, SMALL)
    assert len(results.verdict) == len(questions(SMALL)) == 2 * 6 + 2 * 4  # no best-of without sampling
    assert results.highlight == "srpo_always"
    samples = sample_cases(scored, results.highlight)
    report = write_evaluation(tmp_path, results, title="carry", samples=samples, run=settings_shown(SMALL))
    assert all(LABELS[system] in report.read_text("utf-8") for system in SYSTEMS)


def test_seeds_and_folder_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        run_demo(str(tmp_path), seeds=0)
    with pytest.raises(ConfigError, match="first_seed"):
        run_demo(str(tmp_path), first_seed=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run_demo(str(tmp_path / "file" / "run"))
