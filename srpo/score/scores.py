"""Trails in, scores out: the answer in hand after each revision, judged, for systems over the same prompts.

A judge of single answers gives each answer a score. A judge of two answers gives a score by comparison: 1 where the
answer beats the one it stands against (gold, or the system's own draft), ½ for a tie, and nan where its verdict cannot
be read.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.single import Judge, score_answer
from srpo.judge.verdict import PairJudge
from srpo.revise.trail import Trail
from srpo.score import matches
from srpo.score.matches import DRAFT, GOLD, Duel, Round, Tally
from srpo.score.text_measures import Unit, lengths, measured, unit_of

VERSUS = ("draft", "rivals", "everyone")
Judges = Mapping[str, Judge | PairJudge]
Key = tuple[int, str, str, float | None]


class Cell(NamedTuple):
    """What one list of trails is of; a plain tuple of the four serves as well."""

    seed: int
    system: str
    split: str
    temperature: float | None

    def __str__(self) -> str:
        parts = [self.system, f"seed {self.seed}", f"split {self.split}"]
        return ", ".join(parts if self.temperature is None else [*parts, f"temperature {self.temperature:g}"])


@dataclass(frozen=True)
class Sheet:
    """The trails of one cell in an order that depends on the prompts alone, not on that of a file.

    Attributes:
        keys: one text per prompt, equal for equal prompts with equal gold answers.
        trails: the trails in the order of `keys`; equal prompts keep theirs.
        golds: their gold answers, None where there is none and none is needed.
        texts: [N][R] the answers in hand.
        places: where each was, for messages.
    """

    keys: tuple[str, ...]
    trails: tuple[Trail, ...]
    golds: tuple[object, ...]
    texts: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """A sheet, judged.

    Attributes:
        keys, trails, golds: as in `Sheet`.
        scores: judge → [N, R] score of the answer in hand, in [0, 1], nan where unscored; the first judge is the
            primary one.
        measures: [N, R] of what needs no judge; see `srpo.score.text_measures.measured`.
        tokens: R mean forward tokens per prompt, cumulative, or None where they were not counted.
        seconds: R mean seconds per prompt, cumulative, or None where they were not taken.
        duels: opponent → win or loss by the primary judge.
        others: judge → the same by each other judge that compares, against what its score is against.
        unit: of lengths.
    """

    keys: tuple[str, ...]
    trails: tuple[Trail, ...]
    golds: tuple[object, ...]
    scores: dict[str, Tensor]
    measures: dict[str, Tensor]
    tokens: tuple[float, ...] | None
    seconds: tuple[float, ...] | None = None
    duels: dict[str, Duel] = field(default_factory=dict)
    others: dict[str, Duel] = field(default_factory=dict)
    unit: Unit = "words"

    @property
    def primary_NR(self) -> Tensor:
        """[N, R] scores by the first judge."""
        return next(iter(self.scores.values()))

    @property
    def changed_NR(self) -> Tensor:
        """[N, R] 1 where that answer differs from the one before; 0 for the draft."""
        return self.measures["changed"]


def score(
    trails: Mapping[Key, Sequence[Trail]],
    judges: Judges,
    *,
    gold_key: str = "gold",
    revisions: int | None = None,
    tokens: Mapping[Key, Sequence[float]] | None = None,
    against: str = GOLD,
    versus: Sequence[str] = (DRAFT,),
    highlight: str = "",
) -> dict[Cell, Scored]:
    """Judges every answer in hand.

    Args:
        trails: trails by (seed, system, split, temperature), each with its gold answer in `meta`.
        judges: judges by name, the primary one first; each a judge of single answers or of two.
        gold_key: where in `meta` the gold answer stands.
        revisions: how far to go; without it, as far as the longest trail.
        tokens: mean forward tokens per prompt up to each revision, cumulative, for cells whose answers do not say.
        against: what the score of a judge of two answers is against: "gold", or "draft", which needs no gold answer.
        versus: whom to stand against beside that: "draft", "rivals" (the highlighted system against each other one),
            "everyone" (each against each); a judge of two answers is asked about all of it.
        highlight: the system the evaluation is about; the first one, if not named.

    Raises:
        DataError: no trails, a gold answer is missing or not of the judge's kind, systems differ in their prompts, or
            not one verdict on an answer could be read.
        ConfigError: a judge returned no score, or token counts are not one per revision and the draft.

    Example:
        >>> from srpo.judge.single import JUDGES
        >>> from srpo.revise.trail import Answer, Trail
        >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"})
        >>> score({(0, "srpo", "all", None): [trail]}, JUDGES)[0, "srpo", "all", None].primary_NR
        tensor([[0., 1.]], dtype=torch.float64)
    """
    _check_choices(against, versus)
    cells = {Cell(*key): rows for key, rows in trails.items()}
    for cell, rows in cells.items():
        if not rows:
            raise DataError("no trails", where=str(cell), expected="at least one prompt")
    if not cells:
        raise DataError("no trails to score")
    if revisions is None:
        revisions = max(len(trail.answers) - 1 for rows in cells.values() for trail in rows)
    counts = {Cell(*key): tuple(map(float, counted)) for key, counted in (tokens or {}).items()}
    for cell, counted in counts.items():
        if len(counted) != revisions + 1:
            expected = f"{revisions + 1}, the draft's first"
            raise ConfigError(f"{len(counted)} token counts", where=str(cell), expected=expected)
    needs_gold = against == GOLD or not all(map(compares, judges.values()))
    sheets = {cell: _sheet(cell, rows, gold_key, revisions, needs_gold) for cell, rows in cells.items()}
    _check_prompts(sheets)
    unit = unit_of(chain.from_iterable(chain.from_iterable(sheet.texts for sheet in sheets.values())))
    scored = {
        cell: Scored(
            sheet.keys,
            sheet.trails,
            sheet.golds,
            scores={},
            measures=measured(sheet.texts, unit),
            tokens=counts.get(cell) or _spent(sheet.trails, revisions, "forward_tokens"),
            seconds=_spent(sheet.trails, revisions, "seconds"),
            unit=unit,
        )
        for cell, sheet in sheets.items()
    }
    plan = matches.opponents(
        sheets, compares(next(iter(judges.values()))), against, versus, highlight or next(iter(sheets)).system
    )
    for place, (name, judge) in enumerate(judges.items()):
        if compares(judge):
            asked = plan if place == 0 else {cell: [against] for cell in sheets}
            for (cell, opponent), found in _compared(judge, sheets, scored, asked).items():
                if opponent == against:
                    scored[cell].scores[name] = found.wins_NR
                if place == 0:
                    scored[cell].duels[opponent] = found
                else:
                    scored[cell].others[name] = found
        else:
            for cell, sheet in sheets.items():
                scored[cell].scores[name] = _judged(judge, sheet)
            if place == 0:
                _stand_by_scores(sheets, scored, plan)
    return scored


def compares(judge: Any) -> bool:
    """Whether this is a judge of two answers."""
    return hasattr(judge, "compare")


def tallies(scored: Mapping[Cell, Scored], judges: Judges, against: str = GOLD) -> list[Tally]:
    """What each judge of two answers was asked, and how well it could be read."""
    found = []
    for place, (name, judge) in enumerate(judges.items()):
        if not compares(judge):
            continue
        names = list(dict.fromkeys(chain.from_iterable(each.duels for each in scored.values())))
        if place:
            first = [each.duels[against] for each in scored.values() if against in each.duels]
            mine = [each.others[name] for each in scored.values()]
            found.append(matches.tally(name, against, mine, first if len(first) == len(mine) else None))
        else:
            for opponent in names:
                fought = [each.duels[opponent] for each in scored.values() if opponent in each.duels]
                found.append(matches.tally(name, opponent, fought))
    return found


# ---------------------------------------------------------------------- one judge


def _judged(judge: Any, sheet: Sheet) -> Tensor:
    """[N, R]; each text once, since a judge may be slow and most revisions repeat an answer."""
    rows = []
    for trail, gold, texts, where in zip(sheet.trails, sheet.golds, sheet.texts, sheet.places, strict=True):
        known = {text: score_answer(judge, trail.prompt, text, gold, where=where) for text in {*texts}}
        rows.append([known[text] for text in texts])
    return torch.tensor(rows, dtype=torch.float64)


def _compared(
    judge: Any, sheets: Mapping[Cell, Sheet], scored: Mapping[Cell, Scored], plan: Mapping[Cell, list[str]]
) -> dict[tuple[Cell, str], Duel]:
    """All questions to a judge of two answers in one go, so that it can say first what they will cost."""
    rounds = {
        (cell, opponent): Round(
            (cell, opponent),
            [trail.prompt for trail in sheet.trails],
            sheet.golds,
            sheet.texts,
            _theirs(sheets, cell, opponent),
            where=f"{cell}, against {opponent}",
        )
        for cell, sheet in sheets.items()
        for opponent in plan[cell]
    }
    found = {}
    for (cell, opponent), verdicts in matches.fight(judge, list(rounds.values())).items():
        theirs = rounds[cell, opponent].theirs
        longer_NR = scored[cell].measures["length"] - lengths(theirs, scored[cell].unit)
        found[cell, opponent] = matches.duel(verdicts, matches.same(sheets[cell].texts, theirs), longer_NR)
    return found


def _stand_by_scores(
    sheets: Mapping[Cell, Sheet], scored: Mapping[Cell, Scored], plan: Mapping[Cell, list[str]]
) -> None:
    for cell, names in plan.items():
        ours = scored[cell]
        for opponent in names:
            theirs = ours if opponent == DRAFT else scored[cell._replace(system=opponent)]
            theirs_NR, length_NR = theirs.primary_NR, theirs.measures["length"]
            if opponent == DRAFT:
                theirs_NR, length_NR = (each[:, :1].expand_as(each) for each in (theirs_NR, length_NR))
            same_NR = matches.same(sheets[cell].texts, _theirs(sheets, cell, opponent))
            longer_NR = ours.measures["length"] - length_NR
            ours.duels[opponent] = matches.scored_duel(ours.primary_NR, theirs_NR, same_NR, longer_NR)


def _theirs(sheets: Mapping[Cell, Sheet], cell: Cell, opponent: str) -> Sequence[Sequence[str]]:
    """[N][R] what stands against a cell's answers."""
    sheet = sheets[cell]
    if opponent == GOLD:
        golds = matches.texts_of(sheet.golds, str(cell))
        return [[gold] * len(texts) for gold, texts in zip(golds, sheet.texts, strict=True)]
    if opponent == DRAFT:
        return [[texts[0]] * len(texts) for texts in sheet.texts]
    return sheets[cell._replace(system=opponent)].texts


# ---------------------------------------------------------------------- laying out


def _sheet(cell: Cell, rows: Sequence[Trail], gold_key: str, revisions: int, needs_gold: bool) -> Sheet:
    places = [f"{cell}, row {number}" for number in range(1, len(rows) + 1)]
    golds = [_gold(trail, gold_key, where, needs_gold) for trail, where in zip(rows, places, strict=True)]
    keys = [json.dumps([t.prompt, gold], sort_keys=True, default=str) for t, gold in zip(rows, golds, strict=True)]
    order = sorted(range(len(rows)), key=keys.__getitem__)
    return Sheet(
        keys=tuple(keys[row] for row in order),
        trails=tuple(rows[row] for row in order),
        golds=tuple(golds[row] for row in order),
        texts=tuple(tuple(rows[row].after(k).text for k in range(revisions + 1)) for row in order),
        places=tuple(places[row] for row in order),
    )


def _spent(rows: Sequence[Trail], revisions: int, what: str) -> tuple[float, ...] | None:
    """Means of what the answers say they cost, cumulative; a trail that stopped costs nothing more."""
    if not all(getattr(trail.answers[0], what) for trail in rows):
        return None
    spent = [sum(getattr(a, what) for trail in rows for a in trail.answers[: k + 1]) for k in range(revisions + 1)]
    return tuple(total / len(rows) for total in spent)


def _gold(trail: Trail, gold_key: str, where: str, needed: bool) -> object:
    if needed and gold_key not in trail.meta:
        has = ", ".join(map(repr, trail.meta)) or "nothing"
        raise DataError(f"no {gold_key!r} beside the prompt, only {has}", where=where, fix="name the key by --gold_key")
    return trail.meta.get(gold_key)


def _check_choices(against: str, versus: Sequence[str]) -> None:
    for where, word, known in (("against", against, (GOLD, DRAFT)), *(("versus", each, VERSUS) for each in versus)):
        if word not in known:
            fix = did_you_mean(word, known)
            raise ConfigError(f"{word!r}", where=where, expected="one of " + ", ".join(known), fix=fix)


def _check_prompts(sheets: Mapping[Cell, Sheet]) -> None:
    """Within a seed, split and temperature every system must have answered the same prompts."""
    first: dict[tuple[int, str, float | None], Cell] = {}
    for cell in sheets:
        other = first.setdefault((cell.seed, cell.split, cell.temperature), cell)
        ours, theirs = sheets[cell].keys, sheets[other].keys
        if ours != theirs:
            missing, added = len({*theirs} - {*ours}), len({*ours} - {*theirs})
            raise DataError(
                f"not the prompts of {other.system}: {len(ours)} against {len(theirs)}, {missing} missing, {added} new",
                where=str(cell),
                expected="the same prompts and gold answers for every system",
                fix="revise the same file of prompts with each system",
            )
