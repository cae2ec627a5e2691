"""Example prompts with answers for the report, drawn at random by outcome, the changes of each revision marked."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

from srpo.data.values import prompt_text
from srpo.report.diff import diff
from srpo.score.results import Results, capital, heat
from srpo.score.scores import ScoredTrails, TrailsKey
from srpo.statistics.percent import percent

Outcome = Literal["mended", "broken", "best", "worst"]
# outcome → its heading on the page, and the end of the sentence "12 of 300 (4.0 %) …"
OUTCOMES: Mapping[Outcome, tuple[str, str]] = {
    "mended": ("corrected", "score higher after revision than their draft"),
    "broken": ("broken", "score lower after revision than their draft"),
    "best": ("best", "have the highest final score"),
    "worst": ("worst", "have the lowest final score"),
}


class Segment(NamedTuple):
    """A piece of an answer's text, with marks for its differences from the previous answer and from the gold answer.

    Attributes:
        changed: true if the previous answer differs in this piece.
        wrong: true if the gold answer differs in this piece, and both answers are single words of equal length.
    """

    text: str
    changed: bool
    wrong: bool


class Step(NamedTuple):
    """An answer that is the newest kept one of its prompt after revisions `first` to `last`, with its score in [0, 1].

    Revision 0 is the draft; `segments` are the pieces of the answer.
    """

    first: int
    last: int
    segments: tuple[Segment, ...]
    score: float


class Case(NamedTuple):
    """One example prompt with its gold answer, and its answers as steps; equal answers in a row make one step."""

    seed: int
    prompt: str
    gold: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class CaseSample:
    """Example prompts and answers with the same outcome, of one system, split and temperature.

    Attributes:
        outcome: "mended" if the last answer scores higher than the draft, "broken" if lower; "best" and "worst" if
            the last answer scores highest and lowest of all prompts.
        system, split, temperature: origin of the answers, all seeds together.
        count: number of prompts with this outcome.
        total: number of all prompts.
        cases: some prompts with this outcome, drawn at random, each with its draft and revisions.
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
) -> list[CaseSample]:
    """Draws example prompts of a system, with their answers, for every split, temperature and outcome.

    Args:
        scored: scored trails (prompts with drafts and revisions) by seed, system, split and temperature, from `score`.
        system: the system's name.
        others: adds the other systems' examples after this system's.
        count: largest number of examples for one outcome.
        seed: seed of the draw.
    """
    samples = []
    systems = [system, *dict.fromkeys(cell.system for cell in scored if others and cell.system != system)]
    for name in systems:
        ours = [cell for cell in scored if cell.system == name]
        for split, temperature in dict.fromkeys((cell.split, cell.temperature) for cell in ours):
            cells = [cell for cell in ours if (cell.split, cell.temperature) == (split, temperature)]
            total = sum(len(scored[cell].keys) for cell in cells)
            for outcome in OUTCOMES:
                found = _with_outcome(scored, cells, outcome)
                drawn = random.Random(f"{seed} {split} {temperature} {outcome}").sample(found, min(count, len(found)))
                cases = tuple(_case(cell, scored[cell], row) for cell, row in sorted(drawn))
                samples.append(CaseSample(outcome, name, split, temperature, len(found), total, cases))
    return samples


def _with_outcome(
    scored: Mapping[TrailsKey, ScoredTrails], cells: list[TrailsKey], outcome: Outcome
) -> list[tuple[TrailsKey, int]]:
    """(key, row number) of each trail with the outcome `outcome`, in the lists of trails with the keys `cells`.

    A trail whose last answer is unscored has no outcome.
    """
    ends = [
        (cell, row, draft, last)
        for cell in cells
        for row, (draft, *_, last) in enumerate(scored[cell].primary_NR[:, [0, 0, -1]].tolist())
        if last == last
    ]
    if outcome in ("mended", "broken"):
        sign = 1 if outcome == "mended" else -1
        return [(cell, row) for cell, row, draft, last in ends if sign * (last - draft) > 0]
    extreme = (max if outcome == "best" else min)((last for *_, last in ends), default=0.0)
    return [(cell, row) for cell, row, _, last in ends if last == extreme]


def segments(text: str, before: str | None, gold: str) -> tuple[Segment, ...]:
    """Splits an answer into pieces, each marked as changed or not and as wrong or not.

    Args:
        before: the previous answer; None for a draft, where nothing has changed.
        gold: the gold answer.

    Example:
        >>> segments("0811", "0911", "0812")
        (Segment(text='0', changed=False, wrong=False), Segment(text='8', changed=True, wrong=False), \
Segment(text='1', changed=False, wrong=False), Segment(text='1', changed=False, wrong=True))
    """
    pieces = [piece for piece in diff(text if before is None else before, text) if piece.change != "removed"]
    changed = [piece.change == "added" and bool(piece.text.strip()) for piece in pieces for _ in piece.text]
    one_word = len(text.split()) == len(gold.split()) == 1 and len(text) == len(gold)
    wrong = [one_word and ours != wanted for ours, wanted in zip(text, gold if one_word else text, strict=True)]
    letters = zip(text, changed, wrong, strict=True)
    return tuple(
        Segment("".join(each[0] for each in run), *marks) for marks, run in groupby(letters, lambda at: at[1:])
    )


def _case(cell: TrailsKey, scored: ScoredTrails, row: int) -> Case:
    trail, gold = scored.trails[row], str(scored.golds[row])
    steps: list[Step] = []
    before: str | None = None
    for k, score in enumerate(scored.primary_NR[row].tolist()):
        text = trail.after(k).text
        if text == before:
            steps[-1] = steps[-1]._replace(last=k)
        else:
            steps.append(Step(k, k, segments(text, before, gold), score))
        before = text
    return Case(cell.seed, prompt_text(trail.prompt), gold, tuple(steps))


def show_sample(results: Results, sample: CaseSample, at: dict[str, str], system: int) -> dict[str, Any]:
    """Returns example prompts and answers as the dict that the report's HTML template reads.

    Args:
        at: name of a filter on the page → its value for the sample's split and temperature.
        system: index of the system in the page's filter of systems.
    """
    heading, sentence = OUTCOMES[sample.outcome]
    places = [results.label(sample.system)] if len(results.values("system")) > 1 else []
    places += [results.label(sample.split)] if len(results.values("split")) > 1 else []
    places += [heat(sample.temperature)] if len(results.values("temperature")) > 1 else []
    return {
        "at": {**at, "outcome": sample.outcome, "system": str(system)},
        "head": capital(heading),
        "text": f"{sample.count:,} of {sample.total:,} ({percent(sample.count / sample.total)}) {sentence}.",
        "place": ", ".join(places),
        "cases": [
            {
                "prompt": case.prompt,
                "gold": case.gold,
                "steps": [_show_step(step, bool(results.judging)) for step in case.steps],
            }
            for case in sample.cases
        ],
    }


def _show_step(step: Step, compared: bool) -> dict[str, Any]:
    """A step as the dict that the HTML template reads.

    A score of 1 or 0 is shown as "right" or "wrong", or as "wins" or "loses" if `compared`: if a judge of two answers
    gave it.
    """
    begin = "draft" if step.first == 0 else str(step.first)
    score = "unscored" if step.score != step.score else f"{100 * step.score:.0f} %"
    return {
        "name": begin if step.first == step.last else f"{begin}–{step.last}",
        "segments": step.segments,
        "right": step.score == 1,
        "word": ("wins" if step.score else "loses") if compared else ("right" if step.score else "wrong"),
        "score": "" if step.score in (0, 1) else score,
    }
