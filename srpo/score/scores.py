"""Scores of drafts and revisions: judges the newest kept answer after each revision, over the same prompts.

A judge of single answers scores each answer. A pair judge scores by comparison: 1 where the answer beats its opponent
(gold, or the system's own draft), ½ for a tie, nan for an unreadable verdict.

Axes: N prompts, R = revisions + 1 newest kept answers, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from srpo.errors import ConfigError, DataError, did_you_mean
from srpo.judge.load import AnyJudge, compares
from srpo.judge.single import Judge, score_answer
from srpo.revise.trail import Trail
from srpo.score.matches import (
    DRAFT,
    GOLD,
    Judges,
    Match,
    MatchScores,
    decide_by_judge,
    decide_by_scores,
)
from srpo.score.text_measures import Unit, lengths, measured, unit_of

VERSUS = ("draft", "rivals", "everyone")
Key = tuple[int, str, str, float | None]


class TrailsKey(NamedTuple):
    """Key of one system's answers: seed, system, split of the prompts, temperature; a plain tuple also works."""

    seed: int
    system: str
    split: str
    temperature: float | None

    def __str__(self) -> str:
        parts = [self.system, f"seed {self.seed}", f"split {self.split}"]
        return ", ".join(parts if self.temperature is None else [*parts, f"temperature {self.temperature:g}"])


@dataclass(frozen=True)
class OrderedTrails:
    """One system's N trails (prompts with R − 1 revisions of a draft), sorted by prompt and gold answer.

    Attributes:
        keys: one text per prompt, equal for equal prompts with equal gold answers; equal prompts keep their order.
        trails: the N trails, in the order of `keys`.
        golds: N gold answers; None for a trail without one, if no judge needs it.
        texts: [N][R] texts of the newest kept answers after 0, 1, … revisions.
        places: the row of each trail in its list, for error messages.
        tokens: R cumulative means of forward tokens per prompt; None if they were not counted.
        seconds: R cumulative means of seconds per prompt; None if they were not measured.
    """

    keys: tuple[str, ...]
    trails: tuple[Trail, ...]
    golds: tuple[object, ...]
    texts: tuple[tuple[str, ...], ...]
    places: tuple[str, ...]
    tokens: tuple[float, ...] | None
    seconds: tuple[float, ...] | None


@dataclass(frozen=True)
class ScoredTrails(OrderedTrails):
    """One system's N trails (prompts with R − 1 revisions of a draft) with their scores.

    Attributes:
        unit: unit of lengths, "words" or "characters".
        measures: [N, R] measures without a judge; see `srpo.score.text_measures.measured`.
        scores: judge → [N, R] score of the newest kept answer, in [0, 1], nan if unscored; the first judge is primary.
        matches: opponent → outcome of the match by the primary judge.
        others: name of each further pair judge → outcome of the match by which it scores, against gold or the draft.
    """

    unit: Unit
    measures: dict[str, Tensor]
    scores: dict[str, Tensor]
    matches: dict[str, MatchScores]
    others: dict[str, MatchScores]

    @property
    def primary_NR(self) -> Tensor:
        """Scores by the first judge, [N prompts, R answers], of the newest kept answer after 0, 1, … revisions."""
        return next(iter(self.scores.values()))

    @property
    def gain_NR(self) -> Tensor:
        """Score by the first judge minus that of the draft, [N prompts, R answers]."""
        return self.primary_NR - self.primary_NR[:, :1]

    @property
    def changed_NR(self) -> Tensor:
        """1 where a revision changed the newest kept answer, else 0, [N prompts, R answers]; 0 for the draft."""
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
) -> dict[TrailsKey, ScoredTrails]:
    """Judges every system's newest kept answer after 0, 1, … revisions of every prompt; returns the scores by system.

    Args:
        trails: trails by (seed, system, split, temperature), each with its gold answer in `meta`.
        judges: judges by name, of single answers or of pairs; the first one is primary.
        gold_key: key of the gold answer in `meta`.
        revisions: number of revisions to score; None takes that of the longest trail.
        tokens: cumulative mean forward tokens per prompt after 0, 1, … revisions, for trails without own counts.
        against: opponent that defines a pair judge's score: "gold", or "draft", which needs no gold answer.
        versus: further opponents: "draft", "rivals" (the highlighted system against each other one), "everyone".
        highlight: the system that the evaluation is about; "" takes the first one.

    Raises:
        DataError: no trails, a gold answer is missing or of the wrong kind, systems differ in their prompts, or no
            verdict of a pair judge could be read.
        ConfigError: a judge returned no score, `against` or `versus` names an unknown opponent, or `tokens` lacks a
            count for the draft or a revision.

    Example:
        >>> from srpo.judge.single import exact_match
        >>> from srpo.revise.trail import Answer, Trail
        >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2)), meta={"gold": "4"})
        >>> score({(0, "srpo", "all", None): [trail]}, {"exact_match": exact_match})[0, "srpo", "all", None].primary_NR
        tensor([[0., 1.]], dtype=torch.float64)
    """
    _check_opponents(against, versus)
    by_pairs = {name: judge for name, judge in judges.items() if compares(judge)}
    primary = next(iter(judges))
    laid = _laid_out(trails, gold_key, against == GOLD or len(by_pairs) < len(judges), revisions, tokens or {})
    highlight = highlight or next(iter(laid)).system
    alone = {name: _score_alone(judge, laid) for name, judge in judges.items() if name not in by_pairs}
    opponents = _opponents(laid, against if primary in by_pairs else "", versus, highlight)
    own = [(key, against, _opposing(laid, key, against)) for key in laid] if by_pairs else []
    every = [(key, name, _opposing(laid, key, name)) for key, names in opponents.items() for name in names]
    pairs = {(key, name): _both_scores(alone[primary], key, name) for key, name, _ in every if primary in alone}
    unit = unit_of(text for each in laid.values() for texts in each.texts for text in texts)
    length = {key: lengths(each.texts, unit) for key, each in laid.items()}
    matches = {
        (key, name): Match(laid[key], theirs, length[key] - lengths(theirs, unit), where=f"{key}, against {name}")
        for key, name, theirs in [*every, *own]
    }
    measures = {key: measured(each.texts, unit) for key, each in laid.items()}
    outcomes = {}
    for name, judge in by_pairs.items():
        places = [(key, opponent) for key, opponent, _ in (every if name == primary else own)]
        outcomes[name] = decide_by_judge(judge, {place: matches[place] for place in places})
    if primary in alone:
        outcomes[primary] = decide_by_scores(matches, pairs)
    return {
        key: ScoredTrails(
            **vars(each),
            unit=unit,
            measures=measures[key],
            scores={
                name: alone[name][key] if name in alone else outcomes[name][key, against].wins_NR for name in judges
            },
            matches={name: outcome for (at, name), outcome in outcomes[primary].items() if at == key},
            others={name: outcomes[name][key, against] for name in by_pairs if name != primary},
        )
        for key, each in laid.items()
    }


def _score_alone(judge: AnyJudge, laid: Mapping[TrailsKey, OrderedTrails]) -> dict[TrailsKey, Tensor]:
    """Key → [N, R] scores by a judge of single answers; equal texts within a trail are judged once."""
    alone, found = cast("Judge", judge), {}
    for key, each in laid.items():
        rows = []
        for trail, gold, texts, where in zip(each.trails, each.golds, each.texts, each.places, strict=True):
            known = {text: score_answer(alone, trail.prompt, text, gold, where=where) for text in {*texts}}
            rows.append([known[text] for text in texts])
        found[key] = torch.tensor(rows, dtype=torch.float64)
    return found


def _both_scores(scores: Mapping[TrailsKey, Tensor], key: TrailsKey, opponent: str) -> tuple[Tensor, Tensor]:
    """[N, R] scores of the answers of the system in `key`, and [N, R] scores of the opponent's answers."""
    ours_NR = scores[key]
    if opponent == DRAFT:
        return ours_NR, ours_NR[:, :1].expand_as(ours_NR)
    return ours_NR, scores[key._replace(system=opponent)]


# ---------------------------------------------------------------------- opponents


def _opponents(
    keys: Iterable[TrailsKey], against: str, versus: Sequence[str], highlight: str
) -> dict[TrailsKey, list[str]]:
    """Returns, for the key of each list of trails, the names of the opponents of its system.

    Args:
        against: opponent that defines a pair judge's score, listed first; "" for a judge of single answers.
    """
    keys, found = list(keys), {}
    for key in keys:
        names = [against] if against else []
        names += [DRAFT] if DRAFT in versus else []
        if "everyone" in versus or ("rivals" in versus and key.system == highlight):
            present = [other.system for other in keys if other._replace(system="") == key._replace(system="")]
            names += [system for system in present if system != key.system]
        found[key] = list(dict.fromkeys(names))
    return found


def _opposing(laid: Mapping[TrailsKey, OrderedTrails], key: TrailsKey, opponent: str) -> Sequence[Sequence[str]]:
    """Returns [N][R] texts of the opponent of the system in `key`: gold answers, drafts or another system's."""
    texts = laid[key].texts
    if opponent == GOLD:
        golds = _gold_texts(laid[key].golds, str(key))
        return [[gold] * len(row) for gold, row in zip(golds, texts, strict=True)]
    return [[row[0]] * len(row) for row in texts] if opponent == DRAFT else laid[key._replace(system=opponent)].texts


def _gold_texts(golds: Iterable[object], where: str) -> list[str]:
    """Returns gold answers as texts that a pair judge can compare; `where` is for the error message.

    Raises:
        DataError: a gold answer is neither text nor an integer.
    """
    found = []
    for row, gold in enumerate(golds, 1):
        if not isinstance(gold, str | int) or isinstance(gold, bool):
            expected = "text, for a judge that compares answers with it"
            raise DataError(f"the gold answer is {type(gold).__name__}", where=f"{where}, row {row}", expected=expected)
        found.append(str(gold))
    return found


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
) -> dict[TrailsKey, OrderedTrails]:
    """Makes `OrderedTrails` of each list of trails: sorted by prompt and gold answer, with mean tokens and seconds.

    Both are sums over draft and revisions so far, after 0 to `revisions` revisions; tokens given in `tokens` are taken
    instead of counted.

    Raises:
        DataError: no trails, a missing gold answer, or systems with different prompts.
        ConfigError: `tokens` lacks a count for the draft or a revision.
    """
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
    found = {}
    for key, rows in keyed.items():
        places = [f"{key}, row {number}" for number in range(1, len(rows) + 1)]
        golds = [_gold(trail, gold_key, needs_gold, where) for trail, where in zip(rows, places, strict=True)]
        names = [json.dumps([t.prompt, gold], sort_keys=True, default=str) for t, gold in zip(rows, golds, strict=True)]
        order = sorted(range(len(rows)), key=names.__getitem__)
        ordered = tuple(rows[row] for row in order)
        found[key] = OrderedTrails(
            keys=tuple(names[row] for row in order),
            trails=ordered,
            golds=tuple(golds[row] for row in order),
            texts=tuple(tuple(trail.after(k).text for k in in_hand) for trail in ordered),
            places=tuple(places[row] for row in order),
            tokens=counts.get(key) or _mean_cost([[a.forward_tokens for a in t.answers] for t in ordered], revisions),
            seconds=_mean_cost([[answer.seconds for answer in trail.answers] for trail in ordered], revisions),
        )
    _check_prompts(found)
    return found


def _mean_cost(rows: Sequence[Sequence[float]], revisions: int) -> tuple[float, ...] | None:
    """Mean over trails of the cumulative cost after 0, 1, … revisions; None if a draft has no cost.

    `rows` has the cost of each answer of each trail; a trail that stopped adds no further cost.
    """
    if not all(costs[0] for costs in rows):
        return None
    spent = [sum(cost for costs in rows for cost in costs[: k + 1]) for k in range(revisions + 1)]
    return tuple(total / len(rows) for total in spent)


def _gold(trail: Trail, gold_key: str, needed: bool, where: str) -> object:
    if needed and gold_key not in trail.meta:
        has = ", ".join(map(repr, trail.meta)) or "nothing"
        raise DataError(f"no {gold_key!r} beside the prompt, only {has}", where=where, fix="name the key by --gold_key")
    return trail.meta.get(gold_key)


def _check_prompts(laid: Mapping[TrailsKey, OrderedTrails]) -> None:
    """Raises a DataError unless all systems of a seed, split and temperature have the same prompts."""
    first: dict[tuple[int, str, float | None], TrailsKey] = {}
    for key in laid:
        other = first.setdefault((key.seed, key.split, key.temperature), key)
        ours, theirs = laid[key].keys, laid[other].keys
        if ours != theirs:
            missing, added = len({*theirs} - {*ours}), len({*ours} - {*theirs})
            raise DataError(
                f"not the prompts of {other.system}: {len(ours)} against {len(theirs)}, {missing} missing, {added} new",
                where=str(key),
                expected="the same prompts and gold answers for every system",
                fix="revise the same file of prompts with each system",
            )
