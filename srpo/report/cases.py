"""Trails to look at: prompts that revision mended and that it broke, drawn at random, with what changed marked."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

from srpo.data.values import prompt_text
from srpo.score.results import Results, capital, heat
from srpo.score.scores import ScoredTrails, TrailsKey
from srpo.statistics.percent import percent

Outcome = Literal["mended", "broken", "best", "worst"]
SAID: Mapping[Outcome, str] = {
    "mended": "score higher after revision than their draft",
    "broken": "score lower after revision than their draft",
    "best": "have the highest score that any answer in hand has at the end",
    "worst": "have the lowest score that any answer in hand has at the end",
}


class Segment(NamedTuple):
    """A piece of an answer.

    `changed` says that it stood otherwise in the answer before; `wrong`, that the gold answer has something else in
    this place, told only where both are single words of one length.
    """

    text: str
    changed: bool
    wrong: bool


class Step(NamedTuple):
    """An answer in hand, and the revisions from the first to the last that left it there; 0 is the draft."""

    first: int
    last: int
    segments: tuple[Segment, ...]
    score: float


class Case(NamedTuple):
    """One prompt and what became of it."""

    seed: int
    prompt: str
    gold: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Sample:
    """Trails of one system, on one split at one temperature, that ended alike.

    Attributes:
        outcome: "mended" where the last answer scores higher than the draft, "broken" where it scores lower; "best" and
            "worst" where its score is the highest and the lowest there.
        system, split, temperature: where they are from, all seeds together.
        count: how many trails ended so.
        total: of how many.
        cases: some of them, drawn at random.
    """

    outcome: Outcome
    system: str
    split: str
    temperature: float | None
    count: int
    total: int
    cases: tuple[Case, ...]


def sample_cases(
    scored: Mapping[TrailsKey, ScoredTrails], system: str, *, others: bool = False, count: int = 3, seed: int = 0
) -> list[Sample]:
    """Trails of a system for every split and temperature, drawn at random among those that ended alike.

    Args:
        scored: cells from `score`.
        system: one of theirs.
        others: the other systems' trails as well, after this one's.
        count: how many of each at most.
        seed: of the drawing.
    """
    samples = []
    systems = [system, *dict.fromkeys(cell.system for cell in scored if others and cell.system != system)]
    for name in systems:
        ours = [cell for cell in scored if cell.system == name]
        for split, temperature in dict.fromkeys((cell.split, cell.temperature) for cell in ours):
            cells = [cell for cell in ours if (cell.split, cell.temperature) == (split, temperature)]
            total = sum(len(scored[cell].keys) for cell in cells)
            for outcome in SAID:
                ended = _ended(scored, cells, outcome)
                drawn = random.Random(f"{seed} {split} {temperature} {outcome}").sample(ended, min(count, len(ended)))
                cases = tuple(_case(cell, scored[cell], row) for cell, row in sorted(drawn))
                samples.append(Sample(outcome, name, split, temperature, len(ended), total, cases))
    return samples


def _ended(
    scored: Mapping[TrailsKey, ScoredTrails], cells: list[TrailsKey], outcome: Outcome
) -> list[tuple[TrailsKey, int]]:
    """The trails that ended so; one whose last answer is unscored ended in no way."""
    both = [
        (cell, row, draft, last)
        for cell in cells
        for row, (draft, *_, last) in enumerate(scored[cell].primary_NR[:, [0, 0, -1]].tolist())
        if last == last
    ]
    if outcome in ("mended", "broken"):
        sign = 1 if outcome == "mended" else -1
        return [(cell, row) for cell, row, draft, last in both if sign * (last - draft) > 0]
    extreme = (max if outcome == "best" else min)((last for *_, last in both), default=0.0)
    return [(cell, row) for cell, row, _, last in both if last == extreme]


def marked(text: str, before: str | None, gold: str) -> tuple[Segment, ...]:
    """An answer cut into segments.

    Args:
        before: the answer it replaced; None for a draft, where nothing has changed.
        gold: what was wanted.

    Example:
        >>> marked("0811", "0911", "0812")
        (Segment(text='0', changed=False, wrong=False), Segment(text='8', changed=True, wrong=False), \
Segment(text='1', changed=False, wrong=False), Segment(text='1', changed=False, wrong=True))
    """
    words = bool(re.search(r"\s", text + (before or "")))
    units, old = _units(text, words), _units(before or "", words)
    changed = [False] * len(units) if before is None else _changed(units, old, words)
    by_place = not words and len(text) == len(gold)
    wrong = [by_place and unit != gold[place] for place, unit in enumerate(units)]
    merged: list[Segment] = []
    for segment in map(Segment, units, changed, wrong):
        if merged and merged[-1][1:] == segment[1:]:
            segment = segment._replace(text=merged.pop().text + segment.text)
        merged.append(segment)
    return tuple(merged)


def _units(text: str, words: bool) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text) if words else list(text)


def _changed(units: list[str], before: list[str], words: bool) -> list[bool]:
    # Digits of answers of one length belong together by place; an alignment would slide equal ones across places.
    if not words and len(units) == len(before):
        return [new != old for new, old in zip(units, before, strict=True)]
    changed = [True] * len(units)
    bare, bare_before = ([unit.strip() for unit in each] for each in (units, before))
    for block in SequenceMatcher(None, bare_before, bare, autojunk=False).get_matching_blocks():
        changed[block.b : block.b + block.size] = [False] * block.size
    return changed


def _case(cell: TrailsKey, scored: ScoredTrails, row: int) -> Case:
    trail, gold = scored.trails[row], str(scored.golds[row])
    scores = scored.primary_NR[row].tolist()
    steps: list[Step] = []
    before: str | None = None
    for k, value in enumerate(scores):
        text = trail.after(k).text
        if text == before:
            steps[-1] = steps[-1]._replace(last=k)
        else:
            steps.append(Step(k, k, marked(text, before, gold), value))
        before = text
    return Case(cell.seed, prompt_text(trail.prompt), gold, tuple(steps))


def show_sample(results: Results, sample: Sample, at: dict[str, str], system: int) -> dict[str, Any]:
    """A sample as the page shows it.

    Args:
        at: what the page's script compares with the chosen split and temperature.
        system: the number of the system among those with samples.
    """
    share = percent(sample.count / sample.total)
    places = [results.label(sample.system)] if len(results.values("system")) > 1 else []
    places += [results.label(sample.split)] if len(results.values("split")) > 1 else []
    places += [heat(sample.temperature)] if len(results.values("temperature")) > 1 else []
    return {
        "at": {**at, "outcome": sample.outcome, "system": str(system)},
        "head": capital(sample.outcome),
        "text": f"{sample.count:,} of {sample.total:,} ({share}) {SAID[sample.outcome]}.",
        "place": ", ".join(places),
        "outcome": sample.outcome,
        "cases": [
            {
                "prompt": case.prompt,
                "gold": case.gold,
                "seed": case.seed,
                "steps": [_shown(step, bool(results.judging)) for step in case.steps],
            }
            for case in sample.cases
        ],
    }


def _shown(step: Step, compared: bool) -> dict[str, Any]:
    """A step; a judge of two answers, which `compared`, says who won rather than what is right."""
    begin = "draft" if step.first == 0 else str(step.first)
    said = "unscored" if step.score != step.score else f"{100 * step.score:.0f} %"
    return {
        "name": begin if step.first == step.last else f"{begin}–{step.last}",
        "segments": step.segments,
        "right": step.score == 1,
        "word": ("wins" if step.score else "loses") if compared else ("right" if step.score else "wrong"),
        "score": "" if step.score in (0, 1) else said,
    }
