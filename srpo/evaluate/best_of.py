"""The equal-compute opponent of revising: draw k + 1 drafts and keep the one the model itself values most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from srpo.data.read import PromptRow, read_prompts
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Answer, Trail
from srpo.sequences.render import options_of


def best_of(reviser: Reviser, prompts: Iterable[Any], settings: RevisionSettings) -> list[Trail]:
    """A trail per prompt whose answer in hand after k is the best of its first k + 1 drafts.

    "Best" is by implied reward: the log-ratio g(y) = log π(y|x) − log π_ref(y|x), which every method trains, reduced
    over tokens as in training; no judge is asked. The first draft is the one a reviser with the same seed starts from.

    Args:
        settings: `revisions` is k; each further draft is drawn under a seed of its own; `policy` has no part in it.

    Raises:
        ConfigError: the reviser has no reference.
    """
    rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
    return list(weighed(reviser, rows, list(several_drafts(reviser, rows, settings))))


def several_drafts(
    reviser: Reviser, rows: Sequence[PromptRow], settings: RevisionSettings, *, skip: int = 0
) -> Iterator[Trail]:
    """k + 1 drafts of each prompt as one trail, batch by batch; none but the first is marked kept.

    Args:
        skip: leaves out as many trails at the head; the others stay the same.
    """
    size = reviser.engine.batch_size
    for at in range(skip - skip % size, len(rows), size):
        draws = []
        for draw in range(settings.revisions + 1):
            once = replace(settings, revisions=0, policy="always", seed=_seed(settings.seed, draw))
            draws.append(list(islice(reviser.trails(rows, once, skip=at), size)))
        for trails in list(zip(*draws, strict=True))[max(0, skip - at) :]:
            first, *others = (trail.answers[0] for trail in trails)
            answers = (first, *(replace(answer, kept=False) for answer in others))
            yield Trail(trails[0].prompt, answers, meta=trails[0].meta)


def weighed(reviser: Reviser, rows: Sequence[PromptRow], drafts: Sequence[Trail], *, skip: int = 0) -> Iterator[Trail]:
    """The same drafts, each marked kept where the model values it above all before it.

    Args:
        drafts: from `several_drafts`, one per row.
        skip: leaves out as many at the head.

    Raises:
        ConfigError: the reviser has no reference.
    """
    for at in range(skip, len(rows), reviser.engine.batch_size):
        batch = slice(at, at + reviser.engine.batch_size)
        contexts = reviser.renderer.drafts(
            [row.prompt for row in rows[batch]], [options_of(row) for row in rows[batch]]
        )
        sequences = [
            [(context, ids) for ids in reviser.renderer.answers([answer.text for answer in trail.answers])]
            for context, trail in zip(contexts, drafts[batch], strict=True)
        ]
        rewards = reviser.log_ratios(sequences).tolist()
        for trail, values, context in zip(drafts[batch], rewards, contexts, strict=True):
            scoring = [2 * (len(context) + answer.tokens) for answer in trail.answers]  # by policy and reference
            yield running_best(trail, values, scoring)


def running_best(trail: Trail, values: Sequence[float], scoring: Sequence[int] | None = None) -> Trail:
    """The trail with each answer marked kept where its value beats all before it.

    Args:
        scoring: forward tokens that finding each value took.
    """
    best, marked = float("-inf"), list[Answer]()
    for place, (answer, value) in enumerate(zip(trail.answers, values, strict=True)):
        spent = answer.forward_tokens + (scoring[place] if scoring else 0)
        # The first is in hand whatever it is worth, nan included: there is nothing before it.
        marked.append(replace(answer, kept=place == 0 or value > best, forward_tokens=spent))
        best = max(best, value)
    return replace(trail, answers=tuple(marked))


def _seed(seed: int, draw: int) -> int:
    return seed if draw == 0 else (seed + 1) * 1_000_003 + draw
