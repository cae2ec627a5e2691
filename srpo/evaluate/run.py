"""The work of `srpo evaluate`: from a plan to answers, scores, intervals and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from srpo import __version__
from srpo.disk import writable_folder
from srpo.evaluate.answers import Prompts, draw_all, read_prompt_files, read_systems, without_failed
from srpo.evaluate.plan import BOUNDS, Plan
from srpo.judge.load import compares, expect_judge_sees
from srpo.report.cases import sample_cases
from srpo.report.page import write_evaluation
from srpo.revise.trail import Trail
from srpo.score.matches import Judges, tallies
from srpo.score.pooling import RESAMPLINGS, grouped
from srpo.score.results import Results
from srpo.score.scores import Key, score
from srpo.score.summary import summarise, usual_questions
from srpo.secrets import redacted

TITLED = 4  # largest number of systems that a report's title names


def evaluate(plan: Plan, judges: Judges, command: str = "") -> tuple[Results, Path]:
    """Reads or draws the answers of every system, judges and averages them, and writes the report.

    Args:
        plan: the settings of the evaluation, checked by `Plan.check` before.
        judges: judges by name, the primary one first.
        command: the command line, which the report shows.

    Returns:
        The results and the path of the report.

    Raises:
        SRPOError: a mistake in the plan, a file or a model, found before a model is loaded wherever possible.
    """
    primary = next(iter(judges.values()))
    folder = writable_folder(Path(str(plan.output_dir)))
    given = read_systems(
        plan.trails,
        gold_key=plan.gold_key if plan.against == "gold" or not compares(primary) else None,
        split_key=plan.split_key,
        temperature=plan.temperature[0] if plan.models else None,
    )
    prompts = read_prompt_files(plan)
    splits = [split for by_split in prompts.values() for split in by_split]
    plan.check_labels([*judges, *splits, *(key[2] for key in given)])
    _expect_text(judges, prompts, given)
    drawn = draw_all(plan, prompts, primary)
    trails, failures = without_failed(drawn.trails | given)
    labels = drawn.labels | plan.labels
    highlight = plan.highlight or next(iter(trails))[1]
    scored = score(
        trails,
        judges,
        gold_key=plan.gold_key,
        revisions=plan.revisions if plan.models else None,
        against=plan.against,
        versus=plan.versus,
        highlight=highlight,
    )
    judging, groups = tallies(scored, judges, plan.against), grouped(scored)
    results = summarise(
        groups,
        usual_questions(groups, highlight),
        highlight=highlight,
        labels=labels,
        curves=plan.curves,
        resampling=RESAMPLINGS[plan.resampling]._replace(seed=plan.seed),
        judging=judging,
        notes=failures,
        bounds=[name for name in drawn.labels if name.rpartition("/")[2] in BOUNDS],
    )
    asked = {name: judge.record() if hasattr(judge, "record") else "" for name, judge in judges.items()}
    own = dict.fromkeys(key[1] for key in trails if key[1] not in {*drawn.labels, highlight})
    report = write_evaluation(
        folder,
        results,
        title=_title([labels.get(name, name) for name in [highlight, *own]]),
        samples=sample_cases(scored, highlight, others=True, seed=plan.seed),
        run=redacted({"command": command, "judge": asked, "settings": plan.record, "srpo": __version__}),
    )
    return results, report


def _expect_text(judges: Judges, prompts: Prompts, given: Mapping[Key, Sequence[Trail]]) -> None:
    """Raises DataError if a judge that reads prompts would be asked about one with pictures."""
    asked = [row.prompt for splits in prompts.values() for rows in splits.values() for row in rows]
    asked += [trail.prompt for trails in given.values() for trail in trails]
    for name in judges:
        expect_judge_sees(name, asked)


def _title(names: list[str]) -> str:
    shown = ", ".join(names) if len(names) <= TITLED else f"{names[0]} and {len(names) - 1} other systems"
    return f"Drafts and revisions of {shown}"
