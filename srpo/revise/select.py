"""Selectors: choose the final answer of a trail among its draft and its revisions, or among several drafts.

    last        the last answer that the policy kept (the paper)
    logp        the largest log π(y|x), nats
    mean_logp   the largest log π(y|x) per token, terminator included
    reward      the largest implied reward log π(y|x) − log π_ref(y|x), reduced over tokens as in training
    vote        the largest Σ_b log π†(y|b,x), summed over the answers b of the trail: the reviser's vote

Every selector also chooses for each shorter trail, so the result after k revisions is chosen among the first
k + 1 answers alone.

Axes: K answers of one trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from srpo.data.read import PromptRow
from srpo.errors import ConfigError
from srpo.revise.policy import Policy
from srpo.revise.protocols import DraftsAndScores
from srpo.revise.settings import LAST, LOGP, MEAN_LOGP, REWARD, VOTE
from srpo.revise.trail import Trail
from srpo.sequences.render import options_of
from srpo.sequences.tree import PrefixTree

ContextAnswer = tuple[list[int], list[int]]  # context ids, answer ids


def expect_selectable(reviser: DraftsAndScores, by: str) -> None:
    """Checks, before any answer is drawn, that the reviser can compute the numbers by which a selector chooses.

    Args:
        by: name of the selector of the final answer, such as "logp".

    Raises:
        ConfigError: the selector is `REWARD` without a reference, or needs log-probs that the engine lacks.
    """
    if by == REWARD and reviser.confidence is None:
        fix = "pass the model it was trained from as the reference, and its β"
        raise ConfigError("reward needs a reference", where="select", fix=fix)
    if by in (LOGP, MEAN_LOGP, VOTE) and not reviser.has_logps:
        fix = "take --engine hf, vllm or openai, or --select last"
        raise ConfigError(f"{by} needs log-probs, which this engine does not return", where="select", fix=fix)


def selector_of(reviser: DraftsAndScores, policy: Policy, named: str) -> str:
    """Returns the name of the selector of the final answer: "vote" under the policy vote, otherwise `named`.

    Raises:
        ConfigError: the reviser cannot compute the numbers by which the selector chooses.
    """
    by = VOTE if policy.fresh else named
    expect_selectable(reviser, LOGP if policy.likelier else by)
    return by


def select(reviser: DraftsAndScores, rows: Sequence[PromptRow], trails: Sequence[Trail], by: str) -> list[Trail]:
    """Returns the trails with the final answer of each chosen among its draft and revisions; `Trail.after` returns it.

    Args:
        reviser: computes the log-probs, its batch size of trails at a time.
        rows: the prompts of the trails.
        by: name of a selector. The first of equal values wins.

    Returns:
        The trails with their answers' `in_hand` set and the forward tokens of the scoring added; failed trails, and all
        trails for `LAST`, are returned unchanged.
    """
    if by == LAST:
        return list(trails)
    pairs = [(row, trail) for row, trail in zip(rows, trails, strict=True) if not trail.failed]
    found = iter(_by_vote(reviser, pairs) if by == VOTE else _by_value(reviser, pairs, by))
    return [trail if trail.failed else next(found) for trail in trails]


def _by_value(reviser: DraftsAndScores, pairs: Sequence[tuple[PromptRow, Trail]], by: str) -> list[Trail]:
    """Trails whose final answer has the largest value as a draft; `by` names the value: a log-prob or the reward."""
    options = [options_of(row) for row, _ in pairs]
    contexts = reviser.renderer.drafts([row.prompt for row, _ in pairs], options)
    sequences = []
    for context, (_, trail), option in zip(contexts, pairs, options, strict=True):
        texts = [answer.whole for answer in trail.answers]
        sequences.append([(context, ids) for ids in reviser.renderer.answers(texts, [option] * len(texts))])
    found, models = [], 2 if by == REWARD else 1
    for (_, trail), each, values_K in zip(pairs, sequences, _scored(reviser, sequences, by), strict=True):
        best = [max(range(k + 1), key=values_K.__getitem__) for k in range(len(each))]
        read = [
            models * (len(context) + answer.tokens) for (context, _), answer in zip(each, trail.answers, strict=True)
        ]
        found.append(_chosen(trail, best, read))
    return found


def _by_vote(reviser: DraftsAndScores, pairs: Sequence[tuple[PromptRow, Trail]]) -> list[Trail]:
    """Chooses by the log-prob of each answer as a revision of every answer; an answer drawn twice votes twice."""
    texts = [[answer.whole for answer in trail.answers] for _, trail in pairs]
    distinct = [list(dict.fromkeys(each)) for each in texts]
    flat = [
        (row.prompt, text, options_of(row)) for (row, _), each in zip(pairs, distinct, strict=True) for text in each
    ]
    prompts, drafts, options = map(list, zip(*flat, strict=True)) if flat else ([], [], [])
    after, ids = (
        iter(reviser.renderer.revisions(prompts, drafts, options)),
        iter(reviser.renderer.answers(drafts, options)),
    )
    both = [[(next(after), next(ids)) for _ in each] for each in distinct]
    sequences = [[(context, answer) for context, _ in each for _, answer in each] for each in both]  # a tree per prompt
    found = []
    for (_, trail), drawn, names, each, logps in zip(
        pairs, texts, distinct, both, _scored(reviser, sequences, VOTE), strict=True
    ):
        votes = dict(zip([(b, a) for b in names for a in names], logps, strict=False))  # log π†(a|b,x)
        best, read, sizes = [], [], {0: 0}
        for k in range(1, len(drawn) + 1):
            among, before = len(set(drawn[:k])), len(set(drawn[: k - 1]))
            if among not in sizes:
                sizes[among] = len(PrefixTree.pack([(c, a) for c, _ in each[:among] for _, a in each[:among]]))
            best.append(max(range(k), key=lambda i: sum(votes[b, drawn[i]] for b in drawn[:k])))
            read.append(sizes[among] - sizes[before])
        found.append(_chosen(trail, best, read))
    return found


def _scored(reviser: DraftsAndScores, sequences: list[list[ContextAnswer]], by: str) -> list[list[float]]:
    """Value, named by `by`, of each (context ids, answer ids): one list per trail, padded with its last value."""
    most = max(map(len, sequences), default=0)
    # Trails that stopped early have fewer sequences and a tensor has equal rows; a repeated sequence costs no token.
    equal = [[*each, *[each[-1]] * (most - len(each))] for each in sequences]
    size = max(1, reviser.engine.batch_size // most) if by == VOTE else reviser.engine.batch_size
    values: list[list[float]] = []
    for at in range(0, len(equal), size):
        batch = equal[at : at + size]
        values_BK = reviser.log_ratios(batch) if by == REWARD else reviser.logps(batch)
        if by == MEAN_LOGP:
            values_BK = values_BK / values_BK.new_tensor([[len(ids) for _, ids in each] for each in batch])
        values += values_BK.tolist()
    return values


def _chosen(trail: Trail, best: Sequence[int], read: Sequence[int]) -> Trail:
    """The trail with, for each answer, the place `best` of the result so far; adds `read` to the forward tokens."""
    answers = [
        replace(answer, in_hand=place, forward_tokens=answer.forward_tokens + tokens)
        for answer, place, tokens in zip(trail.answers, best, read, strict=True)
    ]
    return replace(trail, answers=tuple(answers))
