"""Two files of answers and a judge; two files of verdicts and how far they agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from srpo.data.values import prompt_text
from srpo.errors import DataError
from srpo.judge.alpaca_arena import Annotation
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.revise.trail import Trail
from srpo.statistics.agreement import NAN, Measure, flips, kappa, share


class Compared(NamedTuple):
    """What a judge said of two systems; `wins` is the share of the second's, ties as half."""

    comparisons: list[AnswerPair]
    verdicts: list[Verdict]
    wins: Measure
    unscored: Measure
    flips: Measure


class Agreement(NamedTuple):
    """How far two judges say the same of the same pairs."""

    same: Measure
    kappa: Measure
    pairs: int


def pair_up(
    first: Sequence[Trail], second: Sequence[Trail], *, revisions: int, gold_key: str = "gold"
) -> list[AnswerPair]:
    """The answers to the same prompts beside each other, in the order of the first.

    Raises:
        DataError: a prompt is missing from one of the two, stands in it twice, or has no answer.
    """
    ours, theirs = ({_asked(trail): trail for trail in trails} for trails in (first, second))
    for name, trails, found in (("first", first, ours), ("second", second, theirs)):
        if len(found) != len(trails):
            raise DataError(f"{len(trails) - len(found)} prompts twice", where=f"the {name} file")
        if empty := sum(not trail.answers for trail in trails):
            raise DataError(f"{empty} prompts without an answer", where=f"the {name} file")
    if ours.keys() != theirs.keys():
        what = f"{len(ours.keys() - theirs.keys())} prompts only in the first, {len(theirs.keys() - ours.keys())} only "
        raise DataError(f"{what}in the second", expected="answers to the same prompts")
    return [
        AnswerPair(
            ours[key].prompt,
            ours[key].after(revisions).text,
            theirs[key].after(revisions).text,
            ours[key].meta.get(gold_key, theirs[key].meta.get(gold_key)),
        )
        for key in ours
    ]


def compare(judge: PairJudge, comparisons: list[AnswerPair], *, seed: int = 0) -> Compared:
    """Puts them to the judge.

    Example:
        >>> from srpo.judge.load import load_pair_judge
        >>> items = [AnswerPair("2+2=", "5", "4", gold="4"), AnswerPair("3+3=", "6", "6", gold="6")]
        >>> compare(load_pair_judge("numeric"), items).wins.value
        0.75
    """
    verdicts = list(judge.compare(comparisons))
    wins_N = 1 - torch.tensor([NAN if each.score is None else each.score for each in verdicts], dtype=torch.float64)
    flips_N = torch.tensor([NAN if each.flipped is None else float(each.flipped) for each in verdicts])
    return Compared(
        comparisons,
        verdicts,
        share(wins_N, seed=seed),
        share(wins_N.isnan().double(), seed=seed),
        share(flips_N, seed=seed),
    )


def agree(one: Sequence[Annotation], other: Sequence[Annotation], *, seed: int = 0) -> Agreement:
    """Over the pairs that stand in both, whichever way round.

    Raises:
        DataError: none does.
    """
    said = {(each.instruction, each.output_1, each.output_2): _score(each) for each in other}
    said |= {(instruction, b, a): 1 - score for (instruction, a, b), score in said.items()} | said
    both = [
        (each.instruction, _score(each), said[key])
        for each in one
        if (key := (each.instruction, each.output_1, each.output_2)) in said
    ]
    if not both:
        raise DataError("no pair stands in both files", expected="verdicts on the same answers")
    asked, ours, theirs = zip(*both, strict=True)
    one_N, other_N = (torch.tensor(each, dtype=torch.float64) for each in (ours, theirs))
    return Agreement(
        share(1 - flips(one_N, other_N), asked, seed=seed), kappa(one_N, other_N, asked, seed=seed), len(both)
    )


def _asked(trail: Trail) -> str:
    return prompt_text(trail.prompt) if isinstance(trail.prompt, str) else json.dumps(trail.prompt, sort_keys=True)


def _score(each: Annotation) -> float:
    """1, ½, 0 as seen from the first output; a graded preference counts for the side it is on."""
    if each.preference is None:
        return NAN
    return 0.5 if each.preference == 1.5 else float(each.preference < 1.5)
