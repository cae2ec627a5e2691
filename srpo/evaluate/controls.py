"""What a revising model is held against, made from its own trails: no model is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from srpo.errors import DataError
from srpo.evaluate.best_of import running_best
from srpo.judge.single import score_answer
from srpo.judge.verdict import AnswerPair
from srpo.revise.trail import Answer, Trail


def draft_only(trails: Sequence[Trail]) -> list[Trail]:
    """The drafts, which stay in hand whatever k is: what revising has to beat."""
    return [replace(trail, answers=trail.answers[:1], stopped="revisions") for trail in trails]


def gold_answers(trails: Sequence[Trail], gold_key: str = "gold") -> list[Trail]:
    """The gold answers as a system of their own.

    Raises:
        DataError: one is missing.
    """
    found = []
    for row, trail in enumerate(trails, 1):
        if gold_key not in trail.meta:
            raise DataError(f"no {gold_key!r} beside the prompt", where=f"row {row}", fix="leave the control gold out")
        found.append(replace(trail, answers=(Answer(str(trail.meta[gold_key]), 0),), stopped="revisions"))
    return found


def oracle(drafts: Sequence[Trail], judge: Any, gold_key: str = "gold") -> list[Trail]:
    """The best of each prompt's drafts as the judge itself sees them: what no system can have, for it picks with the
    answer key in hand. It says how much choosing among drafts could give at most.

    Args:
        drafts: several per trail, from `several_drafts` or `best_of`; how those are marked has no part in it.
        judge: the one that scores the systems; a judge of two answers holds each draft against gold.
    """
    if not hasattr(judge, "compare"):
        return [
            running_best(
                trail, [score_answer(judge, trail.prompt, a.text, trail.meta.get(gold_key)) for a in trail.answers]
            )
            for trail in drafts
        ]
    asked = [
        AnswerPair(trail.prompt, answer.text, str(trail.meta[gold_key]), trail.meta[gold_key])
        for trail in drafts
        for answer in trail.answers
    ]
    verdicts = iter(judge.compare(asked))
    found = []
    for trail in drafts:
        scores = [next(verdicts).score for _ in trail.answers]
        found.append(running_best(trail, [float("-inf") if score is None else score for score in scores]))
    return found
