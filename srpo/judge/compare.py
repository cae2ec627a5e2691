"""Compares two files of answers by a judge, and two files of verdicts by their agreement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from srpo.errors import DataError
from srpo.judge.alpaca_arena import Annotation
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict, expect_verdicts
from srpo.revise.trail import Trail
from srpo.statistics.agreement import NAN, Measure, flips, kappa, scores_tensor, share


class HeadToHead(NamedTuple):
    """Result of comparing two systems' answers by a judge; the measures are shares with intervals.

    Attributes:
        comparisons, verdicts: the pairs of answers, and the judge's verdict on each.
        wins: win rate of the second system, ties as half.
        unscored: share of pairs without a readable verdict.
        flips: share of pairs on which the two orders of showing disagree.
    """

    comparisons: list[AnswerPair]
    verdicts: list[Verdict]
    wins: Measure
    unscored: Measure
    flips: Measure


class Agreement(NamedTuple):
    """Agreement of two judges on the same pairs of answers, with intervals.

    Attributes:
        same: share of equal verdicts.
        kappa: Cohen's κ, the agreement above chance: 1 if always equal, 0 as by chance.
        pairs: number of pairs that both judged.
    """

    same: Measure
    kappa: Measure
    pairs: int


def pair_up(
    first: Sequence[Trail], second: Sequence[Trail], *, revisions: int, gold_key: str = "gold"
) -> list[AnswerPair]:
    """Returns two systems' answers to each prompt as pairs, in the order of the first system's prompts.

    Args:
        first, second: the trails (prompts with draft and revisions) of the two systems.
        revisions: number of revisions after which both systems' answers are compared.
        gold_key: key of the gold answer in a trail's `meta`.

    Raises:
        DataError: a prompt is missing from one system, occurs twice, or has no answer.
    """
    ours, theirs = ({_prompt_key(trail): trail for trail in trails} for trails in (first, second))
    for name, trails, found in (("first", first, ours), ("second", second, theirs)):
        if len(found) != len(trails):
            raise DataError(f"{len(trails) - len(found)} prompts twice", where=f"the {name} file")
        if empty := sum(not trail.answers for trail in trails):
            raise DataError(f"{empty} prompts without an answer", where=f"the {name} file")
    if ours.keys() != theirs.keys():
        only, other = len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())
        what = f"{only} prompts only in the first, {other} only in the second"
        raise DataError(what, expected="answers to the same prompts")
    return [
        AnswerPair(
            ours[key].prompt,
            ours[key].after(revisions).text,
            theirs[key].after(revisions).text,
            ours[key].meta.get(gold_key, theirs[key].meta.get(gold_key)),
        )
        for key in ours
    ]


def compare(judge: PairJudge, comparisons: list[AnswerPair], *, seed: int = 0) -> HeadToHead:
    """Asks a judge about every pair of answers; returns the second answers' win rate, unscored pairs and flips.

    A flip is a pair on which the two orders of showing disagree. `seed` is the seed of the bootstrap intervals.

    Raises:
        DataError: the judge scores no pair.

    Example:
        >>> from srpo.judge.load import load_pair_judge
        >>> items = [AnswerPair("2+2=", "5", "4", gold="4"), AnswerPair("3+3=", "6", "6", gold="6")]
        >>> compare(load_pair_judge("numeric"), items).wins.value
        0.75
    """
    verdicts = list(judge.compare(comparisons))
    expect_verdicts(comparisons, verdicts, judge.identity)
    wins_N = 1 - scores_tensor([verdict.score for verdict in verdicts])
    flips_N = scores_tensor([verdict.flipped for verdict in verdicts])
    wins, unscored, flipped = (share(each_N, seed=seed) for each_N in (wins_N, wins_N.isnan().double(), flips_N))
    return HeadToHead(comparisons, verdicts, wins, unscored, flipped)


def agree(one: Sequence[Annotation], other: Sequence[Annotation], *, seed: int = 0) -> Agreement:
    """Measures how often two judges agree on the pairs that both annotated, in either order of the answers.

    Raises:
        DataError: no pair occurs in both files.
    """
    scores = {(each.instruction, each.output_1, each.output_2): _score(each) for each in other}
    scores |= {(instruction, b, a): 1 - score for (instruction, a, b), score in scores.items()} | scores
    both = [
        (each.instruction, _score(each), scores[key])
        for each in one
        if (key := (each.instruction, each.output_1, each.output_2)) in scores
    ]
    if not both:
        raise DataError("no pair occurs in both files", expected="verdicts on the same answers")
    prompts, ours, theirs = zip(*both, strict=True)
    one_N, other_N = (torch.tensor(each, dtype=torch.float64) for each in (ours, theirs))
    same = share(1 - flips(one_N, other_N), prompts, seed=seed)
    return Agreement(same, kappa(one_N, other_N, prompts, seed=seed), len(both))


def _prompt_key(trail: Trail) -> str:
    return trail.prompt if isinstance(trail.prompt, str) else json.dumps(trail.prompt, sort_keys=True)


def _score(each: Annotation) -> float:
    """The preference as 1 (first output better), ½ or 0; a graded preference counts for the side it favours."""
    if each.preference is None:
        return NAN
    return 0.5 if each.preference == 1.5 else float(each.preference < 1.5)
