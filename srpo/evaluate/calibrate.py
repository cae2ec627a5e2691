"""Whether a model's revisions help, and how far its own confidence in them goes, measured on labelled prompts.

A revision can only spoil what is right already, so that revising helps is nothing to take on trust. Ways of revising
are compared with the same model's drafts, prompt by prompt: which way and how many revisions is chosen on one half of
the prompts, and whether it is done at all depends on the other half, where luck has no part in the choice. Without a
gain whose interval lies above zero, drafts it is: they are cheaper, and they cannot be worse than themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from srpo import __version__
from srpo.data.read import PromptRow
from srpo.errors import ConfigError, DataError
from srpo.judge.single import Judge, score_answer
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.stored_calibration import CalibratedPolicy, Calibration
from srpo.revise.trail import Trail
from srpo.score.best_revision import LEAST, halves
from srpo.statistics.bootstrap import bootstrap
from srpo.statistics.calibration import auc, brier, calibration_error, fit_temperature, linked, reliability

WAYS = ("if_preferred", "always")
# What somebody's function may raise; ours are typed.
JUDGE_FAILS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    OSError,
    RuntimeError,
)


def calibrate(
    reviser: Reviser,
    rows: Sequence[PromptRow],
    judge: Judge,
    settings: RevisionSettings,
    *,
    gold_key: str = "gold",
    bins: int = 10,
) -> Calibration:
    """Draws trails of the labelled prompts every way, and decides.

    Args:
        rows: prompts whose `meta` has the gold answer.
        settings: how trails are drawn; `revisions` is the most that is tried, `policy` has no part in it.

    Raises:
        DataError: a row without a gold answer, or too few of them.
        ConfigError: no revision is to be tried, or the judge cannot be asked; it is tried on the first row before
            anything is drawn.
    """
    if settings.revisions < 1:
        raise ConfigError(f"{settings.revisions}", where="revisions", expected="at least 1, to have something to weigh")
    if len(rows) < LEAST:
        raise DataError(f"{len(rows)} labelled prompts", expected=f"at least {LEAST}; some hundreds decide more")
    for row in rows:
        if gold_key not in row.meta:
            raise DataError(f"no {gold_key!r}", where=row.where, expected="a gold answer beside each prompt")
    _asked(judge, rows[0].prompt, str(rows[0].meta[gold_key]), rows[0].meta[gold_key], where=rows[0].where)
    ways = WAYS if reviser.has_confidence else ("always",)
    trails = {way: list(reviser.trails(rows, replace(settings, policy=way))) for way in ways}
    scores = {way: _scores(trails[way], judge, gold_key, settings.revisions) for way in ways}
    preferred, better = first_revisions(trails["always"], scores["always"])
    both = 0 < sum(better) < len(better)
    temperature = fit_temperature(preferred, better) if both else None
    through = linked(preferred, temperature) if temperature is not None else []
    table = reliability(preferred, better, bins) if preferred else []
    return Calibration(
        choice=choose([str(row.prompt) for row in rows], scores, settings),
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
    )


def choose(
    prompts: Sequence[str], scores: dict[str, list[list[float]]], settings: RevisionSettings
) -> CalibratedPolicy:
    """Drafts, or the way and number of revisions with the largest gain on one half of the prompts, if the interval of
    its gain on the other half lies above zero.

    Args:
        scores: by way of revising, of each prompt the score in hand after 0, 1, … revisions.
    """
    choosing, telling = halves(list(prompts), settings.seed)

    def gains(way: str, k: int, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor([scores[way][i][k] - scores[way][i][0] for i in rows], dtype=torch.float64)

    # Of equal gains the earliest: fewer revisions, and the model's own judgement before none.
    tried = [(k, way) for k in range(1, settings.revisions + 1) for way in scores]
    k, way = max(tried, key=lambda each: float(gains(each[1], each[0], choosing).mean()))
    mean, low, high = (float(each) for each in _interval(gains(way, k, telling), settings.seed))
    rival = f"{way}, k = {k}"
    if low > 0:
        return CalibratedPolicy(way, k, mean, low, high, rival)
    return CalibratedPolicy("drafts", 0, mean, low, high, rival)


def _interval(gains_N: torch.Tensor, seed: int) -> tuple[float, float, float]:
    found = bootstrap(gains_N[:, None], seed=seed)
    return float(found.mean[0]), float(found.low[0]), float(found.high[0])


def first_revisions(trails: Sequence[Trail], scores: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    """Confidence in each first revision that differs from its draft, and whether it is better; ties are left out.

    Args:
        scores: of each prompt after 0 and 1 revisions, all kept.
    """
    preferred, better = [], []
    for trail, score in zip(trails, scores, strict=True):
        if len(trail.answers) < 2 or trail.answers[1].preferred is None or score[0] == score[1]:
            continue
        if trail.answers[0].text != trail.answers[1].text:
            preferred.append(trail.answers[1].preferred)
            better.append(int(score[1] > score[0]))
    return preferred, better


def _scores(trails: Sequence[Trail], judge: Judge, gold_key: str, revisions: int) -> list[list[float]]:
    """Of each prompt the score of the answer in hand after 0, 1, … revisions."""
    found = []
    for at, trail in enumerate(trails, 1):
        known: dict[str, float] = {}

        def score(text: str, trail: Trail = trail, known: dict[str, float] = known, at: int = at) -> float:
            if text not in known:
                known[text] = _asked(judge, trail.prompt, text, trail.meta[gold_key], where=f"prompt {at}")
            return known[text]

        found.append([score(trail.after(k).text) for k in range(revisions + 1)])
    return found


def _asked(judge: Judge, prompt: Any, answer: str, gold: Any, *, where: str) -> float:
    try:
        return score_answer(judge, prompt, answer, gold, where=where)
    except JUDGE_FAILS as error:
        name = getattr(judge, "__name__", type(judge).__name__)
        what = f"judge {name} fails: {type(error).__name__}: {error}"
        raise ConfigError(what, where=where, expected="a function (prompt, answer, gold)") from error


def lines(found: Calibration) -> list[list[Any]]:
    """The reliability table as text, its header first."""
    head = ["p(revision ≻ draft)", "pairs", "mean p", "really better"]
    rows = [[f"{b.low:.1f} to {b.high:.1f}", b.n, f"{b.score:.2f}", f"{100 * b.share:.1f} %"] for b in found.table]
    return [head, *rows]
