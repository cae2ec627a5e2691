"""Scores in, `Results` out: averages with intervals, per seed and pooled, and comparisons over the same prompts.

Intervals are bootstrap intervals over prompts (`srpo.maths.winrate`), all systems on the same draws. Pooled over seeds:

    the seeds share their prompts      a prompt is drawn together with its scores of every seed: one prompt answered by
                                       three models is not three prompts
    they do not                        each seed's prompts are drawn within the seed; every prompt weighs the same

Either way the training runs are held fixed: an interval is about other prompts, and what another run might give is seen
from the seeds beside each other.

Axes: N prompts, R = revisions + 1, C columns to average.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from srpo import __version__
from srpo.errors import ConfigError, did_you_mean
from srpo.evaluate.results import POOL, Comparison, Difference, Results, Row, Side
from srpo.evaluate.scores import Cell, Scored
from srpo.maths.winrate import DRAWS, LEVEL, Interval, bootstrap

SHARED = "prompts are shared by the seeds and drawn with their scores of every seed"
APART = "each seed has its own prompts, drawn within the seed"
ONE = "one seed"


class Question(NamedTuple):
    """Is `a` better than `b`, on this split at this temperature?"""

    a: Side
    b: Side
    split: str
    temperature: float | None


class Resampling(NamedTuple):
    """How intervals are made: the arguments of `bootstrap`."""

    draws: int = DRAWS
    seed: int = 0
    level: float = LEVEL


USUAL = Resampling()


class Block(NamedTuple):
    """One seed's columns: what is averaged, [N] each, and the prompts they stand for."""

    keys: tuple[str, ...]
    columns: dict[Hashable, Tensor]


class Scope(NamedTuple):
    """The systems that have the same seeds, and those seeds; `name` is a seed or the pool."""

    name: int | str
    seeds: tuple[int, ...]
    systems: tuple[str, ...]


def summarise(
    scored: Mapping[Cell, Scored],
    questions: Iterable[Question] = (),
    *,
    highlight: str = "",
    labels: Mapping[str, str] | None = None,
    resampling: Resampling = USUAL,
) -> Results:
    """Averages every cell and the pool of its seeds, and answers the questions.

    Args:
        scored: cells from `score`.
        questions: comparisons to make; `usual_questions` has some.
        highlight: the system the evaluation is about; the first one, if not named.
        labels: how systems and splits are called in print.
        resampling: draws, seed and level of the intervals.

    Raises:
        ConfigError: a question or the highlight names a system, split or revision that is not there.

    Example:
        >>> from srpo.evaluate.judges import JUDGES
        >>> from srpo.evaluate.scores import score
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
    pooled: list[Row] = []
    for split, temperature in places:
        for scope in _scopes(scored, split, temperature):
            rows = _rows(scored, scope, split, temperature, resampling)
            (pooled if scope.name == POOL else single).extend(rows)
    settings = {
        "judge": next(iter(next(iter(scored.values())).scores)),
        "secondary": list(next(iter(scored.values())).scores)[1:],
        **resampling._asdict(),
        "pooling": "; ".join(sorted({_pooling(scored, *place) for place in places})),
        "srpo": __version__,
    }
    comparisons = _answers(scored, asked, resampling)
    return Results(single + pooled, comparisons, highlight or systems[0], dict(labels or {}), settings)


def usual_questions(scored: Mapping[Cell, Scored], system: str) -> list[Question]:
    """Does revising help this system, and is it better than each other one, after as many revisions as there are?"""
    last = next(iter(scored.values())).primary_NR.shape[1] - 1
    questions = []
    for split, temperature in dict.fromkeys((cell.split, cell.temperature) for cell in scored):
        seeds = _seeds(scored, split, temperature)
        if system not in seeds:
            continue
        ours, draft = Side(system, last), Side(system, 0)
        if last:
            questions.append(Question(ours, draft, split, temperature))
        rivals = [other for other in seeds if other != system and {*seeds[other]} & {*seeds[system]}]
        questions += [Question(ours, Side(rival, last), split, temperature) for rival in rivals]
    return questions


# ---------------------------------------------------------------------- averages


def estimate(blocks: list[Block], resampling: Resampling) -> dict[Hashable, Interval]:
    """Mean and interval of each column over the prompts of all blocks; how they are pooled is said at the top."""
    names = list(blocks[0].columns)
    seeds_NC = [torch.stack([block.columns[name] for name in names], 1) for block in blocks]
    if all(block.keys == blocks[0].keys for block in blocks):
        rows_NC, strata = torch.stack(seeds_NC).mean(0), None
    else:
        rows_NC, strata = torch.cat(seeds_NC), [len(each) for each in seeds_NC]
    found = bootstrap(rows_NC, **resampling._asdict(), strata=strata)
    return {name: found.column(index) for index, name in enumerate(names)}


def _seeds(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> dict[str, tuple[int, ...]]:
    """System → the seeds it has there."""
    found: dict[str, tuple[int, ...]] = {}
    for cell in scored:
        if (cell.split, cell.temperature) == (split, temperature):
            found[cell.system] = (*found.get(cell.system, ()), cell.seed)
    return found


def _scopes(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> list[Scope]:
    """Every seed with its systems, then the pool; systems with other seeds are pooled apart."""
    seeds = _seeds(scored, split, temperature)
    every = dict.fromkeys(seed for each in seeds.values() for seed in each)
    single = [Scope(seed, (seed,), tuple(name for name in seeds if seed in seeds[name])) for seed in every]
    groups = dict.fromkeys(seeds.values())
    return single + [Scope(POOL, group, tuple(name for name in seeds if seeds[name] == group)) for group in groups]


def _pooling(scored: Mapping[Cell, Scored], split: str, temperature: float | None) -> str:
    """In words, how the seeds there are pooled."""
    ways = set()
    for scope in _scopes(scored, split, temperature):
        if len(scope.seeds) > 1:
            keys = {scored[Cell(seed, scope.systems[0], split, temperature)].keys for seed in scope.seeds}
            ways.add(SHARED if len(keys) == 1 else APART)
    return "; ".join(sorted(ways)) or ONE


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
    found = estimate(blocks, resampling)
    n = sum(len(block.keys) for block in blocks)
    rows: list[Row] = []
    for system, parts in cells.items():
        primary, *others = parts[0].scores
        gain_NR = torch.cat([_gain(part) for part in parts])
        changed_NR = torch.cat([part.changed_NR for part in parts])
        counts = [part.tokens for part in parts if part.tokens is not None]
        for k in range(parts[0].primary_NR.shape[1]):
            mean, low, high = found[system, primary, k]
            gain, gain_low, gain_high = found[system, "gain", k]
            rows.append(
                {
                    "seed": scope.name,
                    "system": system,
                    "split": split,
                    "temperature": temperature,
                    "revision": k,
                    "n": n,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "secondary": {name: list(found[system, name, k]) for name in others},
                    "gain": gain,
                    "gain_low": gain_low,
                    "gain_high": gain_high,
                    "mended": float((gain_NR[:, k] > 0).double().mean()),
                    "broken": float((gain_NR[:, k] < 0).double().mean()),
                    "changed": float(changed_NR[:, k].mean()) if k else None,
                    "tokens": sum(each[k] for each in counts) / len(counts) if len(counts) == len(parts) else None,
                }
            )
    return rows


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
                columns |= {(number, "a"): a_N, (number, "b"): b_N, (number, "difference"): a_N - b_N}
            blocks.append(Block(scored[Cell(seed, asked[numbers[0]].a.system, split, temperature)].keys, columns))
        pooled = estimate(blocks, resampling)
        single = [estimate([block], resampling) for block in blocks]
        for number in numbers:
            pool = _difference(POOL, blocks, pooled, number)
            each = zip(seeds, blocks, single, strict=True)
            by_seed = tuple(_difference(seed, [block], found, number) for seed, block, found in each)
            answers[number] = Comparison(asked[number].a, asked[number].b, split, temperature, pool, by_seed)
    return [answers[number] for number in range(len(asked))]


def _difference(name: int | str, blocks: list[Block], found: dict[Hashable, Interval], number: int) -> Difference:
    n = sum(len(block.keys) for block in blocks)
    a, b, difference = (found[number, part] for part in ("a", "b", "difference"))
    return Difference(name, n, a.mean, b.mean, *difference)


def _common(question: Question, scored: Mapping[Cell, Scored]) -> tuple[int, ...]:
    seeds = _seeds(scored, question.split, question.temperature)
    return tuple(seed for seed in seeds[question.a.system] if seed in seeds[question.b.system])


def _check(question: Question, scored: Mapping[Cell, Scored]) -> None:
    seeds = _seeds(scored, question.split, question.temperature)
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
