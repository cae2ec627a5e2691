"""Trails in, scores out: judges the answer in hand after each revision, for systems over the same prompts.

A judge of single answers scores each answer. A pair judge scores by comparison: 1 where the answer beats its opponent
(gold, or the system's own draft), ½ for a tie, nan for an unreadable verdict.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.single import Judge, score_answer
from srpo.judge.verdict import PairJudge
from srpo.revise.trail import Trail
from srpo.score.matches import (
    DRAFT,
    GOLD,
    Match,
    MatchScores,
    Tally,
    decide_by_judge,
    decide_by_scores,
    gold_texts,
    tally,
)
from srpo.score.text_measures import Unit, measured, unit_of

VERSUS = ("draft", "rivals", "everyone")
AnyJudge = Judge | PairJudge
Judges = Mapping[str, AnyJudge]
Key = tuple[int, str, str, float | None]


class TrailsKey(NamedTuple):
    """Identifies one list of trails by seed, system, split and temperature; a plain tuple of the four also works."""

    seed: int
    system: str
    split: str
    temperature: float | None

    def __str__(self) -> str:
        parts = [self.system, f"seed {self.seed}", f"split {self.split}"]
        return ", ".join(parts if self.temperature is None else [*parts, f"temperature {self.temperature:g}"])


Opponents = Mapping[TrailsKey, Sequence[str]]


@dataclass(frozen=True)
class ScoredTrails:
    """One list of trails with its scores, ordered by prompt and gold answer whatever the order of the file.

    Attributes:
        keys: one text per prompt, equal for equal prompts with equal gold answers; equal prompts keep their order.
        trails: in the order of `keys`.
        golds: gold answers; None where there is none and none is needed.
        texts: [N][R] the answers in hand.
        places: the row of each trail, for messages.
        measures: [N, R] measures without a judge; see `srpo.score.text_measures.measured`.
        tokens: R mean forward tokens per prompt, cumulative; None where they were not counted.
        seconds: R mean seconds per prompt, cumulative; None where they were not measured.
        unit: unit of lengths.
        scores: judge → [N, R] score of the answer in hand, in [0, 1], nan where unscored; the first judge is primary.
        matches: opponent → outcome by the primary judge.
        others: name of a secondary pair judge → outcome against the opponent of its score.
    """

    keys: tuple[str, ...]
    trails: tuple[Trail, ...]
    golds: tuple[object, ...]
    texts: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]
    measures: dict[str, Tensor]
    tokens: tuple[float, ...] | None
    seconds: tuple[float, ...] | None
    unit: Unit
    scores: dict[str, Tensor] = field(default_factory=dict)
    matches: dict[str, MatchScores] = field(default_factory=dict)
    others: dict[str, MatchScores] = field(default_factory=dict)

    @property
    def primary_NR(self) -> Tensor:
        """[N, R] scores by the first judge."""
        return next(iter(self.scores.values()))

    @property
    def gain_NR(self) -> Tensor:
        """[N, R] primary score minus the draft's."""
        return self.primary_NR - self.primary_NR[:, :1]

    @property
    def changed_NR(self) -> Tensor:
        """[N, R] 1 where the answer differs from the previous one; 0 for the draft."""
        return self.measures["changed"]


Scores = dict[TrailsKey, ScoredTrails]


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
) -> Scores:
    """Judges every answer in hand.

    Args:
        trails: trails by (seed, system, split, temperature), each with its gold answer in `meta`.
        judges: judges by name, of single answers or of pairs; the first one is primary.
        gold_key: key of the gold answer in `meta`.
        revisions: number of revisions to score; default: those of the longest trail.
        tokens: mean forward tokens per prompt up to each revision, cumulative, for trails that did not count them.
        against: opponent of a pair judge's score: "gold", or "draft", which needs no gold answer.
        versus: further opponents: "draft", "rivals" (the highlighted system against each other one), "everyone".
        highlight: the system that the evaluation is about; default: the first one.

    Raises:
        DataError: no trails, a gold answer is missing or of the wrong kind, systems differ in their prompts, or no
            verdict of a pair judge could be read.
        ConfigError: a judge returned no score, or `tokens` has not one count per revision and the draft.

    Example:
        >>> from srpo.judge.single import JUDGES
        >>> from srpo.revise.trail import Answer, Trail
        >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"})
        >>> score({(0, "srpo", "all", None): [trail]}, JUDGES)[0, "srpo", "all", None].primary_NR
        tensor([[0., 1.]], dtype=torch.float64)
    """
    _check_opponents(against, versus)
    needs_gold = against == GOLD or not all(map(compares, judges.values()))
    scored = _laid_out(trails, gold_key, needs_gold, revisions, tokens or {})
    _check_prompts(scored)
    (primary, first), *others = judges.items()
    opponents = _opponents(scored, compares(first), against, versus, highlight or next(iter(scored)).system)
    if compares(first):
        for (key, opponent), outcome in decide_by_judge(first, _matches(scored, opponents)).items():
            scored[key].matches[opponent] = outcome
            if opponent == against:
                scored[key].scores[primary] = outcome.wins_NR
    else:
        _score_alone(primary, first, scored)
        for (key, opponent), match in _matches(scored, opponents).items():
            rival = scored[key if opponent == DRAFT else key._replace(system=opponent)].primary_NR
            theirs_NR = rival[:, :1].expand_as(rival) if opponent == DRAFT else rival
            scored[key].matches[opponent] = decide_by_scores(match, scored[key].primary_NR, theirs_NR)
    for name, judge in others:
        if compares(judge):
            matches = _matches(scored, {key: [against] for key in scored})
            for (key, _), outcome in decide_by_judge(judge, matches).items():
                scored[key].others[name], scored[key].scores[name] = outcome, outcome.wins_NR
        else:
            _score_alone(name, judge, scored)
    return scored


def compares(judge: AnyJudge) -> TypeGuard[PairJudge]:
    """Whether a judge compares two answers."""
    return hasattr(judge, "compare")


def tallies(scored: Mapping[TrailsKey, ScoredTrails], judges: Judges, against: str = GOLD) -> list[Tally]:
    """Counts the verdicts of each pair judge by opponent; a secondary judge has the opponent `against` alone."""
    found, every = [], list(scored.values())
    for place, (name, judge) in enumerate(judges.items()):
        if not compares(judge):
            continue
        if place:
            first = [each.matches[against] for each in every if against in each.matches]
            mine = [each.others[name] for each in every]
            found.append(tally(name, against, mine, first if len(first) == len(mine) else None))
        else:
            for opponent in dict.fromkeys(opponent for each in every for opponent in each.matches):
                found.append(tally(name, opponent, [e.matches[opponent] for e in every if opponent in e.matches]))
    return found


def _score_alone(name: str, judge: AnyJudge, scored: Scores) -> None:
    """Adds a single-answer judge's scores; each text is judged once, for judges are slow and revisions repeat texts."""
    alone = cast("Judge", judge)
    for each in scored.values():
        rows = []
        for trail, gold, texts, where in zip(each.trails, each.golds, each.texts, each.places, strict=True):
            known = {text: score_answer(alone, trail.prompt, text, gold, where=where) for text in {*texts}}
            rows.append([known[text] for text in texts])
        each.scores[name] = torch.tensor(rows, dtype=torch.float64)


# ---------------------------------------------------------------------- opponents


def _opponents(scored: Scores, by_pairs: bool, against: str, versus: Sequence[str], highlight: str) -> Opponents:
    """Lists the opponents of each list of trails; the opponent of a pair judge's score comes first."""
    found = {}
    for key in scored:
        names = [against] if by_pairs else []
        names += [DRAFT] if DRAFT in versus else []
        if "everyone" in versus or ("rivals" in versus and key.system == highlight):
            present = [other.system for other in scored if other._replace(system="") == key._replace(system="")]
            names += [system for system in present if system != key.system]
        found[key] = list(dict.fromkeys(names))
    return found


def _matches(scored: Scores, opponents: Opponents) -> dict[tuple[TrailsKey, str], Match]:
    found = {}
    for key, names in opponents.items():
        ours = scored[key]
        prompts = [trail.prompt for trail in ours.trails]
        for name in names:
            theirs = _opposing(scored, key, name)
            where = f"{key}, against {name}"
            found[key, name] = Match(prompts, ours.golds, ours.texts, theirs, ours.unit, where)
    return found


def _opposing(scored: Scores, key: TrailsKey, opponent: str) -> Sequence[Sequence[str]]:
    """Returns the opponent's texts, [N][R]."""
    texts = scored[key].texts
    if opponent == GOLD:
        golds = gold_texts(scored[key].golds, str(key))
        return [[gold] * len(row) for gold, row in zip(golds, texts, strict=True)]
    return [[row[0]] * len(row) for row in texts] if opponent == DRAFT else scored[key._replace(system=opponent)].texts


def _check_opponents(against: str, versus: Sequence[str]) -> None:
    for where, word, known in (("against", against, (GOLD, DRAFT)), *(("versus", each, VERSUS) for each in versus)):
        if word not in known:
            fix = did_you_mean(word, known)
            raise ConfigError(f"{word!r}", where=where, expected="one of " + ", ".join(known), fix=fix)


# ---------------------------------------------------------------------- laying out


def _laid_out(
    trails: Mapping[Key, Sequence[Trail]],
    gold_key: str,
    needs_gold: bool,
    revisions: int | None,
    tokens: Mapping[Key, Sequence[float]],
) -> Scores:
    """Orders the trails, measures their texts and adds up their costs; no scores yet."""
    keyed = {TrailsKey(*key): rows for key, rows in trails.items()}
    for key, rows in keyed.items():
        if not rows:
            raise DataError("no trails", where=str(key), expected="at least one prompt")
    if not keyed:
        raise DataError("no trails to score")
    if revisions is None:
        revisions = max(len(trail.answers) - 1 for rows in keyed.values() for trail in rows)
    in_hand = range(revisions + 1)
    counts = {TrailsKey(*key): tuple(map(float, counted)) for key, counted in tokens.items()}
    for key, counted in counts.items():
        if len(counted) != len(in_hand):
            expected = f"{len(in_hand)}, the draft's first"
            raise ConfigError(f"{len(counted)} token counts", where=str(key), expected=expected)
    unit = unit_of(trail.after(k).text for rows in keyed.values() for trail in rows for k in in_hand)
    found = {}
    for key, rows in keyed.items():
        places = [f"{key}, row {number}" for number in range(1, len(rows) + 1)]
        golds = [_gold(trail, gold_key, needs_gold, where) for trail, where in zip(rows, places, strict=True)]
        names = [json.dumps([t.prompt, gold], sort_keys=True, default=str) for t, gold in zip(rows, golds, strict=True)]
        order = sorted(range(len(rows)), key=names.__getitem__)
        ordered = tuple(rows[row] for row in order)
        texts = tuple(tuple(trail.after(k).text for k in in_hand) for trail in ordered)
        found[key] = ScoredTrails(
            keys=tuple(names[row] for row in order),
            trails=ordered,
            golds=tuple(golds[row] for row in order),
            texts=texts,
            places=tuple(places[row] for row in order),
            measures=measured(texts, unit),
            tokens=counts.get(key) or _mean_cost([[a.forward_tokens for a in t.answers] for t in ordered], revisions),
            seconds=_mean_cost([[answer.seconds for answer in trail.answers] for trail in ordered], revisions),
            unit=unit,
        )
    return found


def _mean_cost(rows: Sequence[Sequence[float]], revisions: int) -> tuple[float, ...] | None:
    """Cumulative mean cost per prompt; a trail that stopped costs nothing more. None where a draft has no cost."""
    if not all(costs[0] for costs in rows):
        return None
    spent = [sum(cost for costs in rows for cost in costs[: k + 1]) for k in range(revisions + 1)]
    return tuple(total / len(rows) for total in spent)


def _gold(trail: Trail, gold_key: str, needed: bool, where: str) -> object:
    if needed and gold_key not in trail.meta:
        has = ", ".join(map(repr, trail.meta)) or "nothing"
        raise DataError(f"no {gold_key!r} beside the prompt, only {has}", where=where, fix="name the key by --gold_key")
    return trail.meta.get(gold_key)


def _check_prompts(scored: Scores) -> None:
    """Requires the same prompts of all systems of a seed, split and temperature."""
    first: dict[tuple[int, str, float | None], TrailsKey] = {}
    for key in scored:
        other = first.setdefault((key.seed, key.split, key.temperature), key)
        ours, theirs = scored[key].keys, scored[other].keys
        if ours != theirs:
            missing, added = len({*theirs} - {*ours}), len({*ours} - {*theirs})
            raise DataError(
                f"not the prompts of {other.system}: {len(ours)} against {len(theirs)}, {missing} missing, {added} new",
                where=str(key),
                expected="the same prompts and gold answers for every system",
                fix="revise the same file of prompts with each system",
            )
