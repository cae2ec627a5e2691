"""Scores in, `Results` out: averages with intervals, per seed and pooled, and comparisons over the same prompts.

How seeds are pooled is said in pooling.py.

Axes: N prompts, R = revisions + 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from srpo import __version__
from srpo.errors import ConfigError, did_you_mean
from srpo.score.best_revision import choices
from srpo.score.matches import Tally
from srpo.score.pooling import (
    USUAL,
    Block,
    Pooled,
    Resampling,
    Scope,
    estimate,
    pooled,
    pooling_of,
    scopes_of,
    seeds_of,
)
from srpo.score.results import POOL, Comparison, Difference, Results, Row, Side
from srpo.score.scores import Cell, Scored
from srpo.score.win_rates import win_rates
from srpo.statistics.bootstrap import Interval
from srpo.statistics.significance import holm, sign_flip_p, smallest_detectable


class Question(NamedTuple):
    """Is `a` better than `b`, on this split at this temperature?"""

    a: Side
    b: Side
    split: str
    temperature: float | None


def summarise(
    scored: Mapping[Cell, Scored],
    questions: Iterable[Question] = (),
    *,
    highlight: str = "",
    labels: Mapping[str, str] | None = None,
    curves: Sequence[str] = (),
    resampling: Resampling = USUAL,
    judging: Iterable[Tally] = (),
) -> Results:
    """Averages every cell and the pool of its seeds, and answers the questions.

    Args:
        scored: cells from `score`.
        questions: comparisons to make; `usual_questions` has some.
        highlight: the system the evaluation is about; the first one, if not named.
        labels: how systems and splits are called in print.
        curves: the systems in the figures, in this order; all of them, if none is named.
        resampling: draws, seed and level of the intervals.
        judging: what judges were asked, from `tallies`.

    Raises:
        ConfigError: a question or the highlight names a system, split or revision that is not there.

    Example:
        >>> from srpo.judge.single import JUDGES
        >>> from srpo.score.scores import score
        >>> from srpo.revise.trail import Answer, Trail
        >>> trails = [Trail(str(i), (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"}) for i in range(50)]
        >>> scored = score({(0, "SRPO", "all", None): trails}, JUDGES)
        >>> summarise(scored, [Question(Side("SRPO", 1), Side("SRPO", 0), "all", None)]).verdict[0].split(":")[0]
        'Revision helps SRPO'
    """
    systems = list(dict.fromkeys(cell.system for cell in scored))
    if highlight and highlight not in systems:
        raise ConfigError(
            f"no system {highlight!r}", expected=" or ".join(systems), fix=did_you_mean(highlight, systems)
        )
    asked = list(questions)
    for question in asked:
        _check(question, scored)
    places = dict.fromkeys((cell.split, cell.temperature) for cell in scored)
    single: list[Row] = []
    together: list[Row] = []
    for split, temperature in places:
        for scope in scopes_of(scored, split, temperature):
            rows = _rows(scored, scope, split, temperature, resampling)
            (together if scope.name == POOL else single).extend(rows)
    some = next(iter(scored.values()))
    settings = {
        "judge": next(iter(some.scores)),
        "secondary": list(some.scores)[1:],
        "unit": some.unit,
        **resampling._asdict(),
        "curves": [*curves],
        "pooling": "; ".join(sorted({pooling_of(scored, *place) for place in places})),
        "srpo": __version__,
    }
    comparisons = _answers(scored, asked, resampling)
    return Results(
        single + together,
        comparisons,
        highlight or systems[0],
        dict(labels or {}),
        settings,
        wins=[row for place in places for row in win_rates(scored, *place, resampling)],
        choices=[each for place in places for each in choices(scored, *place, resampling)],
        judging=[each._asdict() for each in judging],
    )


def usual_questions(scored: Mapping[Cell, Scored], system: str) -> list[Question]:
    """Does revising help this system, and is it better than each other one, after as many revisions as there are?"""
    last = next(iter(scored.values())).primary_NR.shape[1] - 1
    questions = []
    for split, temperature in dict.fromkeys((cell.split, cell.temperature) for cell in scored):
        seeds = seeds_of(scored, split, temperature)
        if system not in seeds:
            continue
        ours, draft = Side(system, last), Side(system, 0)
        if last:
            questions.append(Question(ours, draft, split, temperature))
        rivals = [other for other in seeds if other != system and {*seeds[other]} & {*seeds[system]}]
        questions += [Question(ours, Side(rival, last), split, temperature) for rival in rivals]
    return questions


def _rows(
    scored: Mapping[Cell, Scored], scope: Scope, split: str, temperature: float | None, resampling: Resampling
) -> list[Row]:
    cells = {
        system: [scored[Cell(seed, system, split, temperature)] for seed in scope.seeds] for system in scope.systems
    }
    blocks = [
        Block(
            cells[scope.systems[0]][place].keys,
            {
                (system, *name): column
                for system in scope.systems
                for name, column in _columns(cells[system][place]).items()
            },
        )
        for place in range(len(scope.seeds))
    ]
    table = pooled(blocks)
    found = estimate(table, resampling)
    adjusted = _adjusted(table, cells, resampling)
    rows: list[Row] = []
    for system, parts in cells.items():
        for k in range(parts[0].primary_NR.shape[1]):
            at = {"seed": scope.name, "system": system, "split": split, "temperature": temperature, "revision": k}
            numbers = _numbers(parts, k, {name: found[system, name, k] for name in [*parts[0].scores, "gain"]})
            rows.append(cast("Row", {**at, **numbers, "p": adjusted.get((system, k))}))
    return rows


def _numbers(parts: list[Scored], k: int, found: Mapping[str, Interval]) -> dict[str, Any]:
    """What a row says beside where it is from; `parts` are a system's seeds."""
    primary, *others = parts[0].scores
    gains = [value for part in parts for value in _gain(part)[:, k].tolist() if value == value]
    scores_N = torch.cat([part.primary_NR[:, k] for part in parts])

    def mean(name: str) -> float:
        return float(torch.cat([part.measures[name][:, k] for part in parts]).mean())

    def spent(costs: list[tuple[float, ...] | None]) -> float | None:
        counted = [each[k] for each in costs if each is not None]
        return sum(counted) / len(counted) if len(counted) == len(costs) else None

    return {
        "n": int((~scores_N.isnan()).sum()),
        "mean": found[primary].mean,
        "low": found[primary].low,
        "high": found[primary].high,
        "secondary": {name: list(found[name]) for name in others},
        "gain": found["gain"].mean,
        "gain_low": found["gain"].low,
        "gain_high": found["gain"].high,
        "mended": sum(gain > 0 for gain in gains) / len(gains),
        "broken": sum(gain < 0 for gain in gains) / len(gains),
        "changed": mean("changed") if k else None,
        "tokens": spent([part.tokens for part in parts]),
        "seconds": spent([part.seconds for part in parts]),
        "unscored": int(scores_N.isnan().sum()),
        "length": mean("length"),
        "edited": mean("edited"),
        "copied": mean("copied"),
    }


def _adjusted(table: Pooled, cells: Mapping[str, list[Scored]], resampling: Resampling) -> dict[tuple[str, int], float]:
    """(system, revision) → p-value of its gain over the draft, adjusted for the system's other revisions."""
    revisions = range(1, next(iter(cells.values()))[0].primary_NR.shape[1])
    if not revisions:
        return {}
    names = [(system, "gain", k) for system in cells for k in revisions]
    gains_NC = torch.stack([table.column(name) for name in names], 1).nan_to_num(0.0)
    raw = dict(zip(names, sign_flip_p(gains_NC, draws=resampling.draws, seed=resampling.seed), strict=True))
    return {
        (system, k): p
        for system in cells
        for k, p in zip(revisions, holm([raw[system, "gain", k] for k in revisions]), strict=True)
    }


def _columns(scored: Scored) -> dict[tuple[str, int], Tensor]:
    """(measure, revision) → [N] what gets an interval."""
    measures = {**scored.scores, "gain": _gain(scored)}
    return {(name, k): column_N for name, each_NR in measures.items() for k, column_N in enumerate(each_NR.unbind(1))}


def _gain(scored: Scored) -> Tensor:
    """[N, R] score minus the draft's."""
    return scored.primary_NR - scored.primary_NR[:, :1]


# ---------------------------------------------------------------------- comparisons


def _answers(scored: Mapping[Cell, Scored], asked: list[Question], resampling: Resampling) -> list[Comparison]:
    """Questions about the same seeds, split and temperature are answered by one bootstrap."""
    groups: dict[tuple[tuple[int, ...], str, float | None], list[int]] = {}
    for number, question in enumerate(asked):
        groups.setdefault((_common(question, scored), question.split, question.temperature), []).append(number)
    answers: dict[int, Comparison] = {}
    for (seeds, split, temperature), numbers in groups.items():
        blocks = []
        for seed in seeds:
            columns: dict[Hashable, Tensor] = {}
            for number in numbers:
                sides = (asked[number].a, asked[number].b)
                a_N, b_N = (
                    scored[Cell(seed, side.system, split, temperature)].primary_NR[:, side.revision] for side in sides
                )
                neither_N = (a_N - b_N).isnan()
                a_N, b_N = (side_N.masked_fill(neither_N, torch.nan) for side_N in (a_N, b_N))
                columns |= {(number, "a"): a_N, (number, "b"): b_N, (number, "difference"): a_N - b_N}
            blocks.append(Block(scored[Cell(seed, asked[numbers[0]].a.system, split, temperature)].keys, columns))
        together = pooled(blocks)
        single = [pooled([block]) for block in blocks]
        found = estimate(together, resampling)
        found_alone = [estimate(table, resampling) for table in single]
        for number in numbers:
            pool = _difference(POOL, blocks, together, found, number, resampling.level)
            by_seed = tuple(
                _difference(seed, [block], table, alone, number, resampling.level)
                for seed, block, table, alone in zip(seeds, blocks, single, found_alone, strict=True)
            )
            answers[number] = Comparison(asked[number].a, asked[number].b, split, temperature, pool, by_seed)
    return [answers[number] for number in range(len(asked))]


def _difference(
    name: int | str, blocks: list[Block], table: Pooled, found: dict[Hashable, Interval], number: int, level: float
) -> Difference:
    differences = [block.columns[number, "difference"] for block in blocks]
    n = sum(int((~each_N.isnan()).sum()) for each_N in differences)
    a, b, difference = (found[number, part] for part in ("a", "b", "difference"))
    known_N = (column_N := table.column((number, "difference")))[~column_N.isnan()]
    smallest = smallest_detectable(known_N, level=level) if len(known_N) > 1 else None
    return Difference(name, n, a.mean, b.mean, *difference, smallest)


def _common(question: Question, scored: Mapping[Cell, Scored]) -> tuple[int, ...]:
    seeds = seeds_of(scored, question.split, question.temperature)
    return tuple(seed for seed in seeds[question.a.system] if seed in seeds[question.b.system])


def _check(question: Question, scored: Mapping[Cell, Scored]) -> None:
    seeds = seeds_of(scored, question.split, question.temperature)
    where = f"split {question.split}, temperature {question.temperature}"
    for side in (question.a, question.b):
        if side.system not in seeds:
            raise ConfigError(
                f"no system {side.system!r} there",
                where=where,
                expected=" or ".join(seeds) or "a split and temperature that were run",
                fix=did_you_mean(side.system, seeds),
            )
        last = next(iter(scored.values())).primary_NR.shape[1] - 1
        if not 0 <= side.revision <= last:
            raise ConfigError(f"{side.revision} revisions", where=side.system, expected=f"0 to {last}")
    if not _common(question, scored):
        raise ConfigError(f"{question.a.system} and {question.b.system} share no seed", where=where)
