"""A plan in, a report out: what `srpo evaluate` does between its flags and what it prints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from srpo import __version__
from srpo.disk import writable_folder
from srpo.errors import ConfigError, did_you_mean
from srpo.evaluate.plan import CONTROLS, Plan
from srpo.judge.load import LLM
from srpo.judge.settings import JudgeArguments
from srpo.judge.single import JUDGES, import_judge, load_judge
from srpo.report.cases import sample_cases
from srpo.report.page import write_evaluation
from srpo.revise.trail import Trail
from srpo.score.pooling import RESAMPLINGS
from srpo.score.results import Results
from srpo.score.scores import Judges, Key, compares, score, tallies
from srpo.score.summary import summarise, usual_questions
from srpo.score.trail_systems import read_systems
from srpo.secrets import redacted

TITLED = 4  # systems that a title names, at most


def evaluate(plan: Plan, judges: Judges, command: str = "") -> tuple[Results, Path]:
    """Draws what is to be drawn, judges, averages, and writes the report.

    Args:
        judges: by name, the primary one first.
        command: to be shown in the report.

    Returns:
        What was found, and where the report is.

    Raises:
        SRPOError: any mistake in plan, files or models, found before a model is asked wherever that is possible.
    """
    if not plan.output_dir:
        raise ConfigError("no output_dir", fix="add `--output_dir FOLDER`")
    if plan.resampling not in RESAMPLINGS:
        fix = did_you_mean(plan.resampling, RESAMPLINGS)
        raise ConfigError(f"{plan.resampling!r}", where="resampling", expected=", ".join(RESAMPLINGS), fix=fix)
    folder = writable_folder(Path(plan.output_dir))
    trails, labels = _trails(plan, next(iter(judges.values())))
    highlight = plan.highlight or next(iter(trails))[1]
    own = list(dict.fromkeys(key[1] for key in trails if key[1] not in labels))
    labels |= plan.labels
    controls = {f"{name}/{control}" for name in plan.models for control in CONTROLS}  # drawn in this run or not
    _expect_labelled(plan.labels, {name for key in trails for name in key[1:3]} | {*judges} | controls)
    scored = score(
        trails,
        judges,
        gold_key=plan.gold_key,
        revisions=plan.revisions if plan.models else None,
        against=plan.against,
        versus=plan.versus,
        highlight=highlight,
    )
    results = summarise(
        scored,
        usual_questions(scored, highlight),
        highlight=highlight,
        labels=labels,
        curves=plan.curves,
        resampling=RESAMPLINGS[plan.resampling]._replace(seed=plan.seed),
        judging=tallies(scored, judges, plan.against),
    )
    report = write_evaluation(
        folder,
        results,
        title=_title([labels.get(name, name) for name in [highlight, *(each for each in own if each != highlight)]]),
        samples=sample_cases(scored, highlight, others=True, seed=plan.seed),
        run=redacted({"command": command, "judge": _told(judges), "settings": _shown(plan), "srpo": __version__}),
    )
    return results, report


def _trails(plan: Plan, judge: Any) -> tuple[dict[Key, list[Trail]], dict[str, str]]:
    """What stands in files, read before any model is, and what is drawn, which comes first."""
    needs_gold = plan.against == "gold" or not compares(judge)
    heats: list[float | None] = [*plan.temperature] if plan.models else [None]
    if plan.models and plan.trails and len(heats) > 1:
        raise ConfigError("several, and trails that do not say theirs", where="temperature", expected="one")
    given: dict[Key, list[Trail]] = {}
    if plan.trails:
        gold_key = plan.gold_key if needs_gold else None
        read = read_systems(plan.trails, gold_key=gold_key, split_key=plan.split_key)
        given = {(seed, system, split, heats[0]): rows for (seed, system, split, _), rows in read.items()}
    plan.expect_systems(key[1] for key in given)
    if not plan.models:
        return given, {}
    from srpo.evaluate.answers import draw_all

    drawn = draw_all(plan, judge)
    return drawn.trails | given, drawn.labels


def _title(names: list[str]) -> str:
    shown = ", ".join(names) if len(names) <= TITLED else f"{names[0]} and {len(names) - 1} other systems"
    return f"Drafts and revisions of {shown}"


def _expect_labelled(labels: Iterable[str], known: Collection[str]) -> None:
    for name in labels:
        if name not in known:
            raise ConfigError(f"nothing is named {name!r}", where="labels", fix=did_you_mean(name, known))


def judges_of(plan: Plan) -> dict[str, Any]:
    """A plan's judges by name, the primary one first.

    Raises:
        ConfigError: one cannot be had, or settings of a judge that asks a server without one.
    """
    arguments, names = plan.asking(), (plan.judge, *plan.secondary)
    if LLM not in names:
        replace(arguments, judge=plan.judge).expect_used()
        if plan.judge_runs != 1:
            fix = "leave it out: asked again, it would say the same"
            raise ConfigError(f"{plan.judge} asks no server", where="judge_runs", fix=fix)
    return {name: judge_named(name, arguments, plan.judge_runs) for name in names}


def judge_named(name: str, arguments: JudgeArguments | None = None, runs: int = 1) -> Any:
    """A judge of single answers where the name is one's, else a judge of two.

    Args:
        arguments: how a model behind a server is asked.
        runs: how often.

    Raises:
        ConfigError, InputError: it cannot be had.

    Example:
        >>> judge_named("exact_match")("2+2=", "4", "4")
        1.0
    """
    own = ":" in name and name.partition(":")[0] not in ("reward", "votes")
    if name in JUDGES or (own and not compares(import_judge(name))):
        return load_judge(name)
    return replace(arguments or JudgeArguments(), judge=name).load(runs=runs)


def _told(judges: Judges) -> dict[str, Any]:
    """What was asked of which judge, as far as each can say."""
    return {name: judge.record() if hasattr(judge, "record") else "" for name, judge in judges.items()}


def _shown(plan: Plan) -> Mapping[str, Any]:
    """Settings worth printing: those that are set, and those of the drawing where anything is drawn."""
    nowhere = ("trails", "output_dir", "cache_dir", "judge", "secondary")
    return {
        name: value for name, value in asdict(plan).items() if name not in nowhere and value not in (None, [], {}, "")
    }
