"""Averages scores into `Results`: means with intervals per seed and pooled, win rates, and comparisons of systems.

Axes: N prompts, R = revisions + 1 answers, the draft first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch

from srpo import __version__
from srpo.errors import ConfigError, did_you_mean
from srpo.score.best_revision import best_revisions
from srpo.score.matches import Tally
from srpo.score.pooling import USUAL, Block, Columns, Group, Resampling, Scope, estimate, pooled
from srpo.score.results import POOL, Difference, Results, Row, Side, SystemComparison
from srpo.score.scores import ScoredTrails
from srpo.score.win_rates import win_rates
from srpo.statistics.significance import holm, sign_flip_p, smallest_detectable


class Question(NamedTuple):
    """A comparison to make: does side `a` score higher than side `b`, on one split at one temperature?"""

    a: Side
    b: Side
    split: str
    temperature: float | None


def summarise(
    groups: Sequence[Group],
    questions: Iterable[Question] = (),
    *,
    highlight: str = "",
    labels: Mapping[str, str] | None = None,
    curves: Sequence[str] = (),
    resampling: Resampling = USUAL,
    judging: Iterable[Tally] = (),
    bounds: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Results:
    """Averages every system's scores, per seed and pooled, compares systems as asked, and returns the `Results`.

    Args:
        groups: scores by split and temperature, from `grouped`.
        questions: comparisons to make; see `usual_questions`.
        highlight: the system that the evaluation is about; "" takes the first one.
        labels: printed names of systems, splits and judges.
        curves: systems in the figures, in this order; if empty, all systems.
        resampling: draws, seed and level of the intervals.
        judging: counts of verdicts, from `tallies`.
        bounds: systems that use the gold answer or the judge, so that no claim is made against them.
        notes: sentences on prompts that were left out, printed with the cautions.

    Raises:
        ConfigError: a question or the highlight names a system, split or revision that was not run.

    Example:
        >>> from srpo.judge.single import exact_match
        >>> from srpo.score.pooling import grouped
        >>> from srpo.score.scores import score
        >>> from srpo.revise.trail import Answer, Trail
        >>> trails = [Trail(str(i), (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"}) for i in range(50)]
        >>> groups = grouped(score({(0, "SRPO", "all", None): trails}, {"exact_match": exact_match}))
        >>> summarise(groups, [Question(Side("SRPO", 1), Side("SRPO", 0), "all", None)]).verdict[0].split(":")[0]
        'Revision helps SRPO'
    """
    systems = list(dict.fromkeys(system for group in groups for system in group.systems))
    if highlight and highlight not in systems:
        fix = did_you_mean(highlight, systems)
        raise ConfigError(f"no system {highlight!r}", expected=" or ".join(systems), fix=fix)
    asked = list(questions)
    for question in asked:
        _check(question, groups)
    rows = [row for group in groups for scope in group.scopes for row in _rows(group, scope, resampling)]
    some = next(iter(groups[0].systems[systems[0]].values()))
    settings = {
        "judge": next(iter(some.scores)),
        "secondary": list(some.scores)[1:],
        "unit": some.unit,
        **resampling._asdict(),
        "curves": [*curves],
        "bounds": [*bounds],
        "notes": [*notes],
        "pooling": "; ".join(sorted({group.pooling for group in groups})),
        "srpo": __version__,
    }
    return Results(
        sorted(rows, key=lambda row: row["seed"] == POOL),  # a stable sort: rows of single seeds first, in their order
        _comparisons(groups, asked, resampling),
        highlight or systems[0],
        dict(labels or {}),
        settings,
        wins=[row for group in groups for row in win_rates(group, resampling)],
        choices=[each for group in groups for each in best_revisions(group, resampling)],
        judging=[each._asdict() for each in judging],
    )


def usual_questions(groups: Sequence[Group], system: str) -> list[Question]:
    """Returns the comparisons of one system, after all revisions, with its own drafts and with each other system."""
    questions = []
    for group in groups:
        if system not in group.systems:
            continue
        place, ours = (group.split, group.temperature), Side(system, group.last)
        if group.last:
            questions.append(Question(ours, Side(system, 0), *place))
        rivals = [other for other in group.systems if other != system and _common(group, other, system)]
        questions += [Question(ours, Side(rival, group.last), *place) for rival in rivals]
    return questions


# ---------------------------------------------------------------------- rows


def _rows(group: Group, scope: Scope, resampling: Resampling) -> list[Row]:
    """Averages the systems of one scope (a seed or the pool): one row per system and number of revisions."""
    revisions, parts = range(group.last + 1), _parts(group, scope)
    counts = {(system, k): _counts(parts[system], k) for system in scope.systems for k in revisions}
    table = group.table(scope.systems, scope.seeds, _columns)
    intervals = estimate(table, resampling)
    gains = [(system, "gain", k) for system in scope.systems for k in revisions if k]
    raw: dict[Hashable, float] = {}
    if gains:
        gains_NC = torch.stack([table.column(name) for name in gains], 1).nan_to_num(0.0)
        raw |= zip(gains, sign_flip_p(gains_NC, draws=resampling.draws, seed=resampling.seed), strict=True)
    rows: list[Row] = []
    for system in scope.systems:
        primary, *others = parts[system][0].scores
        adjusted = [None, *(holm([raw[system, "gain", k] for k in revisions if k]) if group.last else ())]
        for k in revisions:
            score, gain = intervals[system, primary, k], intervals[system, "gain", k]
            numbers = {
                "seed": scope.name,
                "system": system,
                "split": group.split,
                "temperature": group.temperature,
                "revision": k,
                "mean": score.mean,
                "low": score.low,
                "high": score.high,
                "secondary": {name: list(intervals[system, name, k]) for name in others},
                "gain": gain.mean,
                "gain_low": gain.low,
                "gain_high": gain.high,
                **counts[system, k],
                "p": adjusted[k],
            }
            rows.append(cast("Row", {name: numbers[name] for name in Row.__annotations__}))
    return rows


def _parts(group: Group, scope: Scope) -> dict[str, list[ScoredTrails]]:
    return {system: [group.systems[system][seed] for seed in scope.seeds] for system in scope.systems}


def _columns(system: str, scored: ScoredTrails) -> Columns:
    """Returns (system, measure, revision) → [N] scores or gains of the N prompts, whose means will get an interval."""
    measures = {**scored.scores, "gain": scored.gain_NR}
    return {(system, name, k): each for name, of_NR in measures.items() for k, each in enumerate(of_NR.unbind(1))}


def _counts(parts: list[ScoredTrails], k: int) -> dict[str, object]:
    """The numbers of a system's row after `k` revisions that need no interval.

    `parts` has the system's scored trails, one per seed.
    """
    gains = [value for part in parts for value in part.gain_NR[:, k].tolist() if value == value]
    scores_N = torch.cat([part.primary_NR[:, k] for part in parts])

    def mean(name: str) -> float:
        return float(torch.cat([part.measures[name][:, k] for part in parts]).mean())

    def cost(costs: list[tuple[float, ...] | None]) -> float | None:
        counted = [each[k] for each in costs if each is not None]
        return sum(counted) / len(counted) if len(counted) == len(costs) else None

    return {
        "n": int((~scores_N.isnan()).sum()),
        "unscored": int(scores_N.isnan().sum()),
        "mended": sum(gain > 0 for gain in gains) / len(gains),
        "broken": sum(gain < 0 for gain in gains) / len(gains),
        "changed": mean("changed") if k else None,
        "tokens": cost([part.tokens for part in parts]),
        "seconds": cost([part.seconds for part in parts]),
        "length": mean("length"),
        "edited": mean("edited"),
        "copied": mean("copied"),
    }


# ---------------------------------------------------------------------- comparisons


def _comparisons(groups: Sequence[Group], asked: list[Question], resampling: Resampling) -> list[SystemComparison]:
    """Returns one comparison per question, in order; questions on the same group and seeds share one bootstrap."""
    found: dict[int, SystemComparison] = {}
    for group in groups:
        together: dict[tuple[int, ...], dict[int, Question]] = {}
        for number, question in enumerate(asked):
            if (question.split, question.temperature) == (group.split, group.temperature):
                seeds = _common(group, question.a.system, question.b.system)
                together.setdefault(seeds, {})[number] = question
        for seeds, questions in together.items():
            found |= _answered(group, seeds, questions, resampling)
    return [found[number] for number in range(len(asked))]


def _answered(
    group: Group, seeds: tuple[int, ...], questions: Mapping[int, Question], resampling: Resampling
) -> dict[int, SystemComparison]:
    blocks: list[Block] = []
    changed: dict[tuple[int, int], int] = {}
    for seed in seeds:
        columns: Columns = {}
        for number, question in questions.items():
            sides = (question.a, question.b)
            a_N, b_N = (group.systems[side.system][seed].primary_NR[:, side.revision] for side in sides)
            missing_N = (a_N - b_N).isnan()  # a prompt counts only where both sides have a score
            a_N, b_N = (side_N.masked_fill(missing_N, torch.nan) for side_N in (a_N, b_N))
            columns |= {(number, "a"): a_N, (number, "b"): b_N, (number, "difference"): a_N - b_N}
            a_texts, b_texts = (group.systems[side.system][seed].texts for side in sides)
            pairs = zip(a_texts, b_texts, strict=True)
            changed[seed, number] = sum(a[sides[0].revision] != b[sides[1].revision] for a, b in pairs)
        blocks.append((group.systems[question.a.system][seed].keys, columns))
    differences: dict[int, list[Difference]] = {number: [] for number in questions}
    single = zip(seeds, ([block] for block in blocks), strict=True)
    scopes: list[tuple[int | str, list[Block]]] = [(POOL, blocks), *single]
    for name, parts in scopes:
        table = pooled(parts)
        found = estimate(table, resampling)
        for number in questions:
            n = sum(int((~columns[number, "difference"].isnan()).sum()) for _, columns in parts)
            texts = sum(count for (seed, each), count in changed.items() if each == number and name in (POOL, seed))
            a, b, difference = (found[number, part] for part in ("a", "b", "difference"))
            known_N = (each_N := table.column((number, "difference")))[~each_N.isnan()]
            higher, lower = int((known_N > 0).sum()), int((known_N < 0).sum())
            smallest = smallest_detectable(known_N, level=resampling.level) if len(known_N) > 1 else None
            differences[number].append(Difference(name, n, a.mean, b.mean, *difference, smallest, higher, lower, texts))
    return {
        number: SystemComparison(each.a, each.b, each.split, each.temperature, pool, tuple(by_seed))
        for (number, each), (pool, *by_seed) in zip(questions.items(), differences.values(), strict=True)
    }


def _common(group: Group, a: str, b: str) -> tuple[int, ...]:
    """The seeds that the systems `a` and `b` both have in the group."""
    return tuple(seed for seed in group.systems[a] if seed in group.systems[b])


def _check(question: Question, groups: Sequence[Group]) -> None:
    where = f"split {question.split}, temperature {question.temperature}"
    group = next((g for g in groups if (g.split, g.temperature) == (question.split, question.temperature)), None)
    systems = group.systems if group else {}
    for side in (question.a, question.b):
        if side.system not in systems:
            raise ConfigError(
                f"no system {side.system!r} there",
                where=where,
                expected=" or ".join(systems) or "a split and temperature that were run",
                fix=did_you_mean(side.system, systems),
            )
        if group and not 0 <= side.revision <= group.last:
            raise ConfigError(f"{side.revision} revisions", where=side.system, expected=f"0 to {group.last}")
    if group and not _common(group, question.a.system, question.b.system):
        raise ConfigError(f"{question.a.system} and {question.b.system} share no seed", where=where)
