"""Opponents of a revising model: its drafts alone, the best or most frequent of k + 1 drafts, the gold answers.

k is the number of revisions. Choosing among k + 1 drafts reads about as many tokens as k revisions, so it is the
opponent at equal compute. The oracle, which chooses by the judge, is an upper bound. A trail is a prompt with its
answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, cast

from srpo.data.read import PromptRow, read_prompts
from srpo.errors import DataError
from srpo.judge.load import AnyJudge, compares
from srpo.judge.single import Judge, score_answer
from srpo.judge.verdict import AnswerPair
from srpo.progress import Forecast
from srpo.revise.select import select
from srpo.revise.settings import LAST, REWARD, RevisionSettings, seed_of_draft
from srpo.revise.trail import Answer, Trail

if TYPE_CHECKING:
    from srpo.revise.reviser import Reviser


def best_of(reviser: Reviser, prompts: Iterable[object], settings: RevisionSettings) -> list[Trail]:
    """Returns one trail per prompt; its answer after k revisions is the best of its first k + 1 drafts.

    The best draft has the largest implied reward, the log-ratio g(y) = log π(y|x) − log π_ref(y|x), reduced over tokens
    as in training; no judge is asked. The first draft is the one that `reviser` would revise with the same settings.

    Args:
        settings: `revisions` is the largest k; each further draft has a seed of its own; `policy` has no effect.

    Raises:
        ConfigError: the reviser has no reference.
    """
    rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
    return list(keep_best(reviser, rows, list(several_drafts(reviser, rows, settings))))


def several_drafts(
    reviser: Reviser, rows: Sequence[PromptRow], settings: RevisionSettings, *, skip: int = 0
) -> Iterator[Trail]:
    """Yields one trail per prompt with `settings.revisions` + 1 independent drafts; only the first is marked kept.

    Args:
        skip: number of leading prompts to leave out; the trails of the others stay the same.
    """
    size = reviser.engine.batch_size
    each, begin = settings.revisions + 1, skip - skip % size
    answers = (len(rows) - begin) * each
    with Forecast(f"{len(rows) - begin} prompts, {each} drafts of each: {answers} answers", answers, "answers"):
        for at in range(begin, len(rows), size):
            draws = []
            for draw in range(each):
                seed = settings.seed if draw == 0 else seed_of_draft(settings.seed, draw)
                once = replace(settings, revisions=0, policy="always", select=LAST, seed=seed)
                draws.append(list(islice(reviser.trails(rows, once, skip=at), size)))
            for trails in list(zip(*draws, strict=True))[max(0, skip - at) :]:
                yield next((trail for trail in trails if trail.failed), None) or _as_one(trails)


def _as_one(trails: Sequence[Trail]) -> Trail:
    """The drafts of several trails of one prompt as one trail; only the first draft is marked kept."""
    first, *others = (trail.answers[0] for trail in trails)
    answers = (first, *(replace(answer, kept=False) for answer in others))
    return Trail(trails[0].prompt, answers, meta=trails[0].meta)


def keep_best(
    reviser: Reviser, rows: Sequence[PromptRow], drafts: Sequence[Trail], by: str = REWARD, *, skip: int = 0
) -> Iterator[Trail]:
    """Yields trails whose final answer is the draft chosen by a selector such as "vote" or "logp" (revise/select.py).

    Args:
        drafts: from `several_drafts`, one trail per row.
        by: name of the selector.
        skip: number of leading rows to leave out.

    Raises:
        ConfigError: `by` is `REWARD`, and the reviser has no reference.
    """
    for at in range(skip, len(rows), reviser.engine.batch_size):
        batch = slice(at, at + reviser.engine.batch_size)
        yield from select(reviser, rows[batch], drafts[batch], by)


def majority(drafts: Sequence[Trail]) -> list[Trail]:
    """Returns a trail per prompt, whose answer after k revisions is the most frequent of the first k + 1 drafts.

    Of equally frequent answers the earliest is chosen. White space around a text is ignored. Counting costs no forward
    tokens, so each trail has those of its drafts.
    """
    found = []
    for trail in drafts:
        counts: dict[str, int] = {}
        answers = []
        for draft in trail.answers:
            counts[draft.text.strip()] = counts.get(draft.text.strip(), 0) + 1
            most = max(counts, key=counts.__getitem__)  # in order of insertion: the earliest of equals
            text = next(each.text for each in trail.answers if each.text.strip() == most)
            answers.append(replace(draft, text=text, kept=True))
        found.append(replace(trail, answers=tuple(answers)))
    return found


def running_best(trail: Trail, values: Sequence[float], scoring: Sequence[int] | None = None) -> Trail:
    """Returns a trail of drafts; the first and each draft with a larger value than all before it are marked kept.

    Args:
        values: value of each draft.
        scoring: forward tokens spent on computing each value, added to the drafts' costs.
    """
    best, marked = float("-inf"), list[Answer]()
    for place, (answer, value) in enumerate(zip(trail.answers, values, strict=True)):
        spent = answer.forward_tokens + (scoring[place] if scoring else 0)
        # The first answer is in hand whatever its value, nan included: no other answer precedes it.
        marked.append(replace(answer, kept=place == 0 or value > best, forward_tokens=spent))
        best = max(best, value)
    return replace(trail, answers=tuple(marked))


def draft_only(trails: Sequence[Trail]) -> list[Trail]:
    """Returns one trail per prompt that has its draft alone, which is then the answer after any number of revisions."""
    return [replace(trail, answers=trail.answers[:1], stopped="revisions") for trail in trails]


def gold_answers(trails: Sequence[Trail], gold_key: str = "gold") -> list[Trail]:
    """Returns one trail per prompt whose only answer is the gold answer, so that gold answers are scored as a system.

    Args:
        gold_key: key of the gold answer in each trail's `meta`.

    Raises:
        DataError: a gold answer is missing.
    """
    found = []
    for row, trail in enumerate(trails, 1):
        if gold_key not in trail.meta:
            raise DataError(f"no {gold_key!r} beside the prompt", where=f"row {row}", fix="leave the control gold out")
        found.append(replace(trail, answers=(Answer(str(trail.meta[gold_key]), 0),), stopped="revisions"))
    return found


def oracle(drafts: Sequence[Trail], judge: AnyJudge, gold_key: str = "gold") -> list[Trail]:
    """Returns one trail per prompt whose answer after k revisions is the best of its first k + 1 drafts by the judge.

    The judge that scores the systems picks it, so its score is an upper bound for choosing among drafts.

    Args:
        drafts: trails of several drafts each; which drafts they mark as kept has no effect.
        judge: a judge of single answers, or a pair judge, which compares each draft with the gold answer.
        gold_key: key of the gold answer in each trail's `meta`.
    """
    if not compares(judge):
        alone = cast("Judge", judge)
        scored = [[score_answer(alone, t.prompt, a.text, t.meta.get(gold_key)) for a in t.answers] for t in drafts]
        return [running_best(trail, scores) for trail, scores in zip(drafts, scored, strict=True)]
    pairs = [
        AnswerPair(trail.prompt, answer.text, str(trail.meta[gold_key]), trail.meta[gold_key])
        for trail in drafts
        for answer in trail.answers
    ]
    verdicts = iter(judge.compare(pairs))
    found = []
    for trail in drafts:
        scores = [next(verdicts).score for _ in trail.answers]
        found.append(running_best(trail, [float("-inf") if score is None else score for score in scores]))
    return found
