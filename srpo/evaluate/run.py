"""The verb `srpo evaluate` between its flags and its printed table: plan, answers, scores, intervals, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo import __version__
from srpo.disk import writable_folder
from srpo.errors import ConfigError
from srpo.evaluate.answers import draw_all, read_prompt_files, read_systems
from srpo.evaluate.plan import Plan
from srpo.judge.load import judge_from
from srpo.judge.settings import LLM, JudgeSettings, LLMSettings
from srpo.judge.single import JUDGES, import_judge, load_judge
from srpo.report.cases import sample_cases
from srpo.report.page import write_evaluation
from srpo.score.matches import AnyJudge, compares, tallies
from srpo.score.pooling import RESAMPLINGS, grouped
from srpo.score.results import Results
from srpo.score.scores import score
from srpo.score.summary import summarise, usual_questions
from srpo.secrets import redacted
from srpo.settings import options, values_of

TITLED = 4  # systems that a title names, at most


def evaluate(plan: Plan, command: str = "") -> tuple[Results, Path]:
    """Checks the plan, reads or draws the answers, judges and averages them, and writes the report.

    Args:
        command: the command line, for the report.

    Returns:
        The results and the path of the report.

    Raises:
        SRPOError: a mistake in the plan, a file or a model, found before a model is loaded wherever possible.
    """
    plan.check()
    judges = judges_of(plan)
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
    drawn = draw_all(plan, prompts, primary)
    trails, labels = drawn.trails | given, drawn.labels | plan.labels
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
    )
    own = dict.fromkeys(key[1] for key in trails if key[1] not in {*drawn.labels, highlight})
    report = write_evaluation(
        folder,
        results,
        title=_title([labels.get(name, name) for name in [highlight, *own]]),
        samples=sample_cases(scored, highlight, others=True, seed=plan.seed),
        run=redacted({"command": command, **_record(plan, judges), "srpo": __version__}),
    )
    return results, report


def _title(names: list[str]) -> str:
    shown = ", ".join(names) if len(names) <= TITLED else f"{names[0]} and {len(names) - 1} other systems"
    return f"Drafts and revisions of {shown}"


def _record(plan: Plan, judges: Mapping[str, AnyJudge]) -> dict[str, Any]:
    """The settings that the report prints: those of each judge, and those of the plan that are set."""
    hidden = ("trails", "output_dir", "cache_dir", "judge", "secondary", "llm")
    settings = {name: value for name, value in asdict(plan).items() if name not in hidden}
    llm = values_of(plan.llm)
    settings["asked"] = {each.name: llm[each.name] for each in options(LLMSettings) if llm[each.name] != each.default}
    return {
        "judge": {name: judge.record() if hasattr(judge, "record") else "" for name, judge in judges.items()},
        "settings": {name: value for name, value in settings.items() if value not in (None, [], {}, "")},
    }


def judges_of(plan: Plan) -> dict[str, AnyJudge]:
    """Loads the judges of a plan by name, the primary one first.

    Raises:
        ConfigError: a judge cannot be loaded, or a setting of judge llm without that judge.
    """
    names = (plan.judge, *plan.secondary)
    if LLM not in names:
        JudgeSettings(plan.judge, plan.llm).expect_used()
        if plan.judge_runs != 1:
            fix = "leave it out: the judge would repeat its scores"
            raise ConfigError(f"{plan.judge} asks no server", where="judge_runs", fix=fix)
    return {name: judge_named(name, plan.llm, plan.judge_runs) for name in names}


def judge_named(name: str, llm: LLMSettings | None = None, runs: int = 1) -> AnyJudge:
    """Loads a judge of single answers if the name is one, otherwise a pair judge.

    Args:
        llm: settings of judge llm.
        runs: number of times everything is asked.

    Raises:
        ConfigError, InputError: the judge cannot be loaded.

    Example:
        >>> judge_named("exact_match")("2+2=", "4", "4")
        1.0
    """
    own = ":" in name and name.partition(":")[0] not in ("reward", "votes")
    if name in JUDGES or (own and not compares(import_judge(name))):
        return load_judge(name)
    return judge_from(JudgeSettings(name, llm or LLMSettings()), runs=runs)
