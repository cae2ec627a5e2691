"""Calibration of one model on labelled prompts: whether revising helps, and how far to trust the model's confidence.

A revision can break a right answer, so the gain of revising has to be measured. Every policy is compared with the same
model's drafts, prompt by prompt. One half of the prompts chooses the policy and the number of revisions; the other half
decides whether to revise at all, free of the luck in that choice. Without a gain whose interval lies above zero the
choice is drafts: they cost less.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from srpo import __version__
from srpo.data.read import PromptRow
from srpo.data.values import Prompt
from srpo.errors import ConfigError, DataError
from srpo.evaluate.cache import cache_file, cached_trails
from srpo.judge.single import Judge, score_answer
from srpo.revise.drift import statistics
from srpo.revise.reviser import Reviser
from srpo.revise.select import select
from srpo.revise.settings import LAST, REWARD, SELECTORS, RevisionSettings
from srpo.revise.stored_calibration import CalibratedPolicy, Calibration
from srpo.revise.trail import Trail
from srpo.score.best_revision import LEAST, halves, largest_mean
from srpo.statistics.bootstrap import bootstrap
from srpo.statistics.calibration import auc, brier, calibration_error, fit_temperature, linked, reliability

log = logging.getLogger("srpo")
POLICIES = ("if_preferred", "always")
AND = " + "  # between policy and selector in the name of a choice
# Errors that a user's function may raise; errors of this library have types of their own.
_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError)
JUDGE_FAILS = (*_FAILURES, OSError, RuntimeError)


def calibrate(
    reviser: Reviser,
    rows: Sequence[PromptRow],
    judge: Judge,
    settings: RevisionSettings,
    *,
    gold_key: str = "gold",
    bins: int = 10,
    folder: Path | None = None,
    made_with: Mapping[str, object] | None = None,
) -> Calibration:
    """Measures on labelled prompts whether revising helps; chooses a revision policy, or drafts alone.

    A prompt that fails under a policy, because it leaves no room for an answer, is left out and counted in a warning.

    Args:
        reviser: the model.
        rows: prompts with the gold answer in `meta`.
        judge: function (prompt, answer, gold answer) → score in [0, 1].
        settings: sampling; `revisions` is the largest number to try, `policy` has no effect.
        gold_key: key of the gold answer in `meta`.
        bins: number of rows in the reliability table.
        folder: stores the answers, so that an interrupted calibration resumes; None keeps them in memory.
        made_with: all that decides the answers besides prompts and settings, such as digests of the models.

    Raises:
        DataError: a row without a gold answer, or fewer than `LEAST` rows without failure.
        ConfigError: no revision to try, or the judge fails; the judge is tried on the first row before any drawing.
    """
    if settings.revisions < 1:
        raise ConfigError(f"{settings.revisions}", where="revisions", expected="at least 1, to have something to weigh")
    expect_labelled(rows, judge, gold_key)
    policies = POLICIES if reviser.has_confidence else ("always",)
    drawn = {
        policy: drawn_trails(reviser, list(rows), replace(settings, policy=policy), folder, made_with or {})
        for policy in policies
    }
    places = without_failure(drawn)
    rows = [rows[at] for at in places]
    trails = {policy: [found[at] for at in places] for policy, found in drawn.items()}
    others = other_choices(reviser, rows, trails[policies[0]], settings, folder, made_with or {})
    scores = {name: judged(found, judge, gold_key, settings.revisions) for name, found in {**trails, **others}.items()}
    if "greedy" in scores:  # against the sampled draft, as every other choice
        pairs = zip(scores["always"], scores["greedy"], strict=True)
        scores["greedy"] = [[draft[0], *[one[0]] * settings.revisions] for draft, one in pairs]
    preferred, better = first_revisions(trails["always"], scores["always"])
    both = 0 < sum(better) < len(better)
    temperature = fit_temperature(preferred, better) if both else None
    through = linked(preferred, temperature) if temperature is not None else []
    table = reliability(preferred, better, bins) if preferred else []
    return Calibration(
        choice=choose([str(row.prompt) for row in rows], scores, settings, costs={**trails, **others}),
        prompts=len(rows),
        pairs=len(preferred),
        auc=auc(preferred, better) if both else None,
        brier=brier(preferred, better) if preferred else None,
        error=calibration_error(table) if table else None,
        temperature=temperature,
        linked_brier=brier(through, better) if through else None,
        linked_error=calibration_error(reliability(through, better, bins)) if through else None,
        table=tuple(table),
        made_with={
            "srpo": __version__,
            "judge": getattr(judge, "__name__", type(judge).__name__),
            "equation": reviser.confidence.equation if reviser.confidence is not None else "",
            "temperature": settings.temperature,
            "revisions": settings.revisions,
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
        },
        seen=statistics(reviser, rows, trails["always"]),
    )


def other_choices(
    reviser: Reviser,
    rows: Sequence[PromptRow],
    chain: Sequence[Trail],
    settings: RevisionSettings,
    folder: Path | None,
    made_with: Mapping[str, object],
) -> dict[str, list[Trail]]:
    """Returns name → one trail (draft and revisions) per prompt, for ways to answer other than keeping revisions.

    Under "policy + selector", a selector such as "logp" chooses the final answer of each trail in `chain`. At a
    temperature above 0 there are also "greedy", one greedy draft, and "vote", the model's choice among several drafts.
    Ways that need log-probs are left out if the engine gives none.

    Args:
        chain: trails under "if_preferred" or, if the model has no confidence, under "always".
        folder: stores the trails; None keeps them in memory.
        made_with: all that decides the answers besides prompts and settings.
    """
    found: dict[str, list[Trail]] = {}
    if settings.temperature > 0:
        for policy in ("greedy", *(("vote",) if reviser.has_logps else ())):
            found[policy] = drawn_trails(reviser, list(rows), replace(settings, policy=policy), folder, made_with)
    name = POLICIES[0] if reviser.has_confidence else "always"
    selectors = [
        by for by in SELECTORS if by != LAST and (reviser.has_logps if by != REWARD else reviser.has_confidence)
    ]
    for by in selectors:
        found[f"{name}{AND}{by}"] = select(reviser, rows, chain, by)
    return found


def expect_labelled(rows: Sequence[PromptRow], judge: Judge, gold_key: str) -> None:
    """Checks that there are enough prompts with gold answers, and that the judge can score the first of them.

    Raises:
        DataError: a row without a gold answer, or fewer than `LEAST` rows.
        ConfigError: the judge fails.
    """
    if len(rows) < LEAST:
        raise DataError(f"{len(rows)} labelled prompts", expected=f"at least {LEAST}; some hundreds decide more")
    for row in rows:
        if gold_key not in row.meta:
            raise DataError(f"no {gold_key!r}", where=row.where, expected="a gold answer beside each prompt")
    _score(judge, rows[0].prompt, str(rows[0].meta[gold_key]), rows[0].meta[gold_key], where=rows[0].where)


def drawn_trails(
    reviser: Reviser,
    rows: list[PromptRow],
    settings: RevisionSettings,
    folder: Path | None,
    made_with: Mapping[str, object],
    *,
    name: str = "",
) -> list[Trail]:
    """Returns one trail (a prompt with draft and revisions) per prompt: drawn, or read from `folder` if it is there.

    Args:
        folder: stores the trails; None keeps them in memory.
        made_with: all that decides the answers besides prompts and settings. A hash of it is part of the file's name,
            so a changed value draws anew into another file.
        name: first part of the file's name; "" takes the name of the policy.
    """
    if folder is None:
        return list(reviser.trails(rows, settings))
    path, made = cache_file(folder, name or settings.policy, rows, {**settings.made_with(), **made_with})

    def draw(reviser: Reviser, skip: int, only: Collection[int] | None) -> Iterator[Trail]:
        return reviser.trails(rows, settings, skip=skip, only=only)

    return cached_trails(path, rows, made, lambda: reviser, draw)


def without_failure(drawn: Mapping[str, Sequence[Trail]]) -> list[int]:
    """Returns the row numbers of the prompts that failed under no policy, in ascending order.

    Args:
        drawn: policy → one trail (draft and revisions) per prompt.

    Raises:
        DataError: some failed, and fewer than `LEAST` are left.
    """
    columns = list(zip(*drawn.values(), strict=True))
    places = [at for at, trails in enumerate(columns) if not any(trail.failed for trail in trails)]
    if len(places) < len(columns):
        reason = next(trail.failed for trails in columns for trail in trails if trail.failed)
        what = f"{len(columns) - len(places)} of {len(columns)} prompts failed and are left out: {reason}"
        if len(places) < LEAST:
            raise DataError(what, expected=f"at least {LEAST} prompts without failure")
        log.warning("srpo: %s", what)
    return places


def choose(
    prompts: Sequence[str],
    scores: Mapping[str, list[list[float]]],
    settings: RevisionSettings,
    costs: Mapping[str, Sequence[Trail]] | None = None,
) -> CalibratedPolicy:
    """Chooses a policy and a number of revisions on half of the prompts, or drafts if the other half gains nothing.

    Args:
        prompts: text of each prompt, by which the halves are drawn.
        scores: policy, or "policy + selector" → for each prompt the score of the answer after 0, 1, … revisions.
        settings: settings with which the trails were drawn.
        costs: trails by the same names as `scores`. A choice that reads more forward tokens than `if_preferred` and
            `always` with `settings.revisions` revisions is not considered; None considers all choices.
    """
    choosing, reporting = halves(list(prompts), settings.seed)
    read = {name: _tokens(trails, settings.revisions) for name, trails in (costs or {}).items()}
    most = max((read[name][-1] for name in POLICIES if name in read), default=0.0)

    def gains(policy: str, k: int, rows: Sequence[int]) -> Tensor:
        return torch.tensor([scores[policy][i][k] - scores[policy][i][0] for i in rows], dtype=torch.float64)

    # Of equal gains the first wins: fewer revisions, and "if_preferred" before "always".
    tried = [(k, policy) for k in range(1, settings.revisions + 1) for policy in scores]
    tried = [(k, policy) for k, policy in tried if policy not in read or read[policy][k] <= most]
    k, policy = largest_mean({(k, policy): gains(policy, k, choosing) for k, policy in tried})
    mean, low, high = bootstrap(gains(policy, k, reporting)[:, None], seed=settings.seed).column(0)
    rival = policy if policy == "greedy" else f"{policy}, k = {k}"
    if low <= 0:
        return CalibratedPolicy("drafts", 0, mean, low, high, rival)
    name, _, by = policy.partition(AND)
    return CalibratedPolicy(name, 0 if policy == "greedy" else k, mean, low, high, rival, by or LAST)


def _tokens(trails: Sequence[Trail], revisions: int) -> list[float]:
    """Mean forward tokens of a trail after 0, 1, … revisions."""
    sums = [sum(a.forward_tokens for t in trails for a in t.answers[: k + 1]) for k in range(revisions + 1)]
    return [total / len(trails) for total in sums]


def first_revisions(trails: Sequence[Trail], scores: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    """Returns two lists about first revisions: the model's confidence, and 1 if the score exceeds the draft's, else 0.

    First revisions with the text or the score of their draft, or without a confidence, are left out.

    Args:
        trails: one per prompt, under the policy that keeps every revision.
        scores: for each prompt, the scores after 0 and 1 revisions.
    """
    preferred, better = [], []
    for trail, score in zip(trails, scores, strict=True):
        if len(trail.answers) < 2 or trail.answers[1].preferred is None or score[0] == score[1]:
            continue
        if trail.answers[0].text != trail.answers[1].text:
            preferred.append(trail.answers[1].preferred)
            better.append(int(score[1] > score[0]))
    return preferred, better


def judged(trails: Sequence[Trail], judge: Judge, gold_key: str, revisions: int) -> list[list[float]]:
    """Returns for each prompt the scores, in [0, 1], of the newest kept answer after 0, 1, … `revisions` revisions."""
    found = []
    for at, trail in enumerate(trails, 1):
        texts = [trail.after(k).text for k in range(revisions + 1)]
        gold, where = trail.meta[gold_key], f"prompt {at}"
        known = {text: _score(judge, trail.prompt, text, gold, where=where) for text in dict.fromkeys(texts)}
        found.append([known[text] for text in texts])
    return found


def _score(judge: Judge, prompt: Prompt, answer: str, gold: object, *, where: str) -> float:
    try:
        return score_answer(judge, prompt, answer, gold, where=where)
    except JUDGE_FAILS as error:
        name = getattr(judge, "__name__", type(judge).__name__)
        what = f"judge {name} fails: {type(error).__name__}: {error}"
        raise ConfigError(what, where=where, expected="a function (prompt, answer, gold)") from error


def lines(found: Calibration) -> list[list[str]]:
    """Returns a calibration's reliability table as rows of text cells, the header row first.

    A row has a range of the confidence, its number of pairs, their mean confidence, and the percentage really better.
    """
    head = ["p(revision ≻ draft)", "pairs", "mean p", "really better"]
    body = [[f"{b.low:.1f} to {b.high:.1f}", f"{b.n}", f"{b.score:.2f}", f"{100 * b.share:.1f} %"] for b in found.table]
    return [head, *body]
