"""The equal-compute opponent of revising: draw k + 1 drafts and keep the one the model itself values most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from srpo.pairs.read import read_prompts
from srpo.pairs.render import options_of
from srpo.revise.reviser import Reviser, Settings
from srpo.revise.trail import Answer, Trail


def best_of(reviser: Reviser, prompts: Iterable[Any], settings: Settings) -> list[Trail]:
    """A trail per prompt whose answer in hand after k is the best of its first k + 1 drafts.

    "Best" is by implied reward: the log-ratio g(y) = log π(y|x) − log π_ref(y|x), which every method trains, reduced
    over tokens as in training; no judge is asked. The first draft is the one a reviser with the same seed starts from.

    Args:
        settings: `revisions` is k; each further draft is drawn under a seed of its own; `policy` has no part in it.

    Raises:
        ConfigError: the reviser has no reference.
    """
    rows = read_prompts([row if isinstance(row, dict) else {"prompt": row} for row in prompts])
    draws = [
        list(reviser.trails(rows, replace(settings, revisions=0, policy="always", seed=_seed(settings.seed, draw))))
        for draw in range(settings.revisions + 1)
    ]
    contexts = reviser.renderer.drafts([row.prompt for row in rows], [options_of(row) for row in rows])
    trails = []
    for at in range(0, len(rows), reviser.engine.batch_size):
        batch = slice(at, at + reviser.engine.batch_size)
        drafts = [[draw[i].answers[0] for draw in draws] for i in range(len(rows))[batch]]
        sequences = [
            [(context, ids) for ids in reviser.renderer.answers([answer.text for answer in answers])]
            for context, answers in zip(contexts[batch], drafts, strict=True)
        ]
        rewards = reviser.log_ratios(sequences).tolist()
        for row, answers, values, context in zip(rows[batch], drafts, rewards, contexts[batch], strict=True):
            trails.append(Trail(row.prompt, _running_best(answers, values, len(context)), meta=row.meta))
    return trails


def _running_best(answers: list[Answer], rewards: list[float], context: int) -> tuple[Answer, ...]:
    """Each draft marked kept where it beats all before it, its scoring counted: policy and reference."""
    best, marked = float("-inf"), []
    for answer, reward in zip(answers, rewards, strict=True):
        scored = 2 * (context + answer.tokens)
        marked.append(replace(answer, kept=reward > best, forward_tokens=answer.forward_tokens + scored))
        best = max(best, reward)
    return tuple(marked)


def _seed(seed: int, draw: int) -> int:
    return seed if draw == 0 else (seed + 1) * 1_000_003 + draw
