"""The gate, measured on a reference model before any training: does it pay to train the model to revise these answers?

Several drafts of each prompt and one revision of each draft give the rates of `srpo.maths.gate`; its closed form gives
the reach of SRPO and of its opponents. Intervals are bootstraps over prompts.

Axes: N prompts, C counted events, D bootstrap draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from srpo.data.read import PromptRow
from srpo.disk import write_file
from srpo.errors import ConfigError
from srpo.evaluate.calibrate import drawn_trails, expect_labelled, judged, without_failure
from srpo.judge.single import Judge
from srpo.maths.gate import Rates, Reach, reach
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings, seed_of_draft
from srpo.revise.stored_calibration import GATE_FILE
from srpo.revise.trail import Trail
from srpo.statistics.bootstrap import Interval, ends_of, resamples

DRAWS = 200  # bootstrap draws; each one solves the closed form
ROOM = 0.02  # with less than this left above the best opponent, no training pays
COPIES = 0.5  # a reference that repeats more of its wrong drafts tells little about what a trained reviser mends
WORTH, WARM, NOT = "worth training", "only with a warm start or new information", "not worth it"


@dataclass(frozen=True)
class Outlook:
    """Predicted shares of right answers after training at one β, each with an interval.

    Attributes:
        beta: weight of the divergence from the reference.
        draft, revised: SRPO's draft and its answer after one revision.
        ipo, ipo_best_of_2: IPO's draft, and the better of two such drafts.
        gain: `revised` minus the strongest of `ipo_best_of_2`, the better of two drafts of SRPO and the reference's
            greedy draft.
    """

    beta: float
    draft: Interval
    revised: Interval
    ipo: Interval
    ipo_best_of_2: Interval
    gain: Interval


@dataclass(frozen=True)
class Gate:
    """Result of `measure_gate`: rates of a reference model on labelled prompts, predictions, and the verdict.

    Attributes:
        prompts, drafts: number of prompts, and of drafts of each, every one revised once.
        rates: rate in [0, 1] by name, as in `srpo.maths.gate.Rates`, with its interval; and `greedy`, `greedy_revised`:
            share of right greedy drafts and greedy revisions of these.
        more: `mend` minus `fresh`, with its interval: above zero, a revision adds something that a second draft lacks.
        outlooks: one for each β.
        verdict: "worth training", "only with a warm start or new information", or "not worth it".
        why: the reason for the verdict, a sentence.
        made_with: settings of the measurement.
    """

    prompts: int
    drafts: int
    rates: Mapping[str, Interval]
    more: Interval
    outlooks: tuple[Outlook, ...]
    verdict: str
    why: str
    made_with: Mapping[str, object]

    def save(self, folder: str | Path) -> Path:
        """Writes the gate as JSON into a folder, and returns the file's path; an interval is [mean, low, high].

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(folder) / GATE_FILE
        write_file(path, (json.dumps({"format": 1, **asdict(self)}, indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def lines(self) -> list[list[str]]:
        """Returns rows of text cells, the header first: rates and predictions in per cent with 95 % intervals."""
        named = {
            "right": "draft right",
            "fresh": "second draft right where the first is wrong",
            "mend": "revision right where the draft is wrong",
            "keep": "revision right where the draft is right",
            "copies": "revision repeats a wrong draft",
            "greedy": "greedy draft right",
            "greedy_revised": "greedy revision right",
        }
        rows = [[text, percent(self.rates[name])] for name, text in named.items()]
        rows.append(["mended minus second draft", percent(self.more)])
        for each in self.outlooks:
            at = f"at β = {each.beta:g}: "
            rows += [
                [f"{at}SRPO's draft", percent(each.draft)],
                [f"{at}after one revision", percent(each.revised)],
                [f"{at}IPO's draft", percent(each.ipo)],
                [f"{at}the better of two drafts of IPO", percent(each.ipo_best_of_2)],
                [f"{at}revision minus the strongest opponent", percent(each.gain)],
            ]
        return [["", "%"], *rows]


def percent(found: Interval) -> str:
    """Returns an interval of shares as text in per cent, such as "61.5 (58.2 to 64.7)"."""
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})".replace("-", "−")


def measure_gate(
    reviser: Reviser,
    rows: Sequence[PromptRow],
    judge: Judge,
    settings: RevisionSettings,
    *,
    betas: Sequence[float],
    gold_key: str = "gold",
    folder: Path | None = None,
    made_with: Mapping[str, object] | None = None,
) -> Gate:
    """Measures how well the model before training revises labelled prompts, and predicts whether training it pays.

    Several drafts of each prompt are revised once; their rates of right answers enter the closed form of SRPO's
    optimum.

    An answer is right if the judge gives it the full score, 1.

    Args:
        reviser: the model before training, with the template that training will use.
        rows: prompts with the gold answer in `meta`.
        settings: sampling at a temperature above 0; `revisions` + 1 drafts of each prompt, `policy` has no effect.
        betas: weights of the divergence, one outlook each.
        folder: where trails are kept, so that an interrupted measurement resumes; None keeps them in memory.
        made_with: whatever decides the trails besides prompts and settings, such as digests of the models.

    Raises:
        DataError: a row without a gold answer, or too few rows.
        ConfigError: no second draft, temperature 0, no β or one that is not positive, or the judge fails.
    """
    if settings.revisions < 1 or settings.temperature == 0:
        fix = "take --revisions 1 or more and a temperature above 0: the gate compares several drafts"
        raise ConfigError("one draft of each prompt", where="revisions and temperature", fix=fix)
    if not betas or min(betas) <= 0:
        raise ConfigError(f"{list(betas)}", where="gate_beta", expected="numbers above 0")
    expect_labelled(rows, judge, gold_key)
    once = replace(settings, revisions=1, policy="always", select="last")
    seeds = [settings.seed, *(seed_of_draft(settings.seed, draw) for draw in range(1, settings.revisions + 1))]
    tries = {f"draft {draw}": replace(once, seed=seed) for draw, seed in enumerate(seeds)}
    tries["greedy"] = replace(once, temperature=0.0, seed=0)
    drawn = {
        name: drawn_trails(reviser, list(rows), each, folder, made_with or {}, name=name.replace(" ", ""))
        for name, each in tries.items()
    }
    places = without_failure(drawn)
    scored = {
        name: (kept := [trails[at] for at in places], judged(kept, judge, gold_key, 1))
        for name, trails in drawn.items()
    }
    greedy = [[float(score[k] == 1) for k in (0, 1)] for score in scored.pop("greedy")[1]]
    counts_NC = torch.cat([_counts(list(scored.values())), torch.tensor(greedy, dtype=torch.float64)], 1)
    return _gate(counts_NC, len(seeds), betas, settings, made_with={**settings.made_with(), **(made_with or {})})


def _counts(draws: Sequence[tuple[Sequence[Trail], Sequence[Sequence[float]]]]) -> Tensor:
    """Counts [N, 6] over the drafts of each prompt, each draft with one revision.

    The columns are: right drafts; wrong drafts; for each wrong draft the share of right ones among the prompt's other
    drafts, summed; wrong drafts with a right revision; right drafts with a right revision; wrong drafts repeated by
    their revision.
    """
    found = []
    for each in zip(*(zip(trails, scores, strict=True) for trails, scores in draws), strict=True):
        right = [score[0] == 1 for _, score in each]
        then = [score[1] == 1 for _, score in each]
        same = [trail.answers[-1].text == trail.answers[0].text for trail, _ in each]
        r, w = sum(right), len(right) - sum(right)
        mended = sum(after and not before for before, after in zip(right, then, strict=True))
        kept = sum(after and before for before, after in zip(right, then, strict=True))
        copied = sum(repeats and not before for before, repeats in zip(right, same, strict=True))
        found.append([r, w, r * w / max(1, len(right) - 1), mended, kept, copied])
    return torch.tensor(found, dtype=torch.float64)


def _rates(sums_DC: Tensor) -> Rates:
    """The rates that follow from sums of `_counts` over prompts; a rate without a single draft is set to ½."""
    right, wrong, pairs, mended, kept, copied = sums_DC[:, :6].unbind(1)

    def share(part_D: Tensor, whole_D: Tensor) -> Tensor:
        return torch.where(whole_D > 0, part_D / whole_D.clamp(min=1), torch.full_like(part_D, 0.5))

    return Rates(
        share(right, right + wrong), share(pairs, wrong), share(mended, wrong), share(kept, right), share(copied, wrong)
    )


def _gate(
    counts_NC: Tensor,
    drafts: int,
    betas: Sequence[float],
    settings: RevisionSettings,
    *,
    made_with: Mapping[str, object],
) -> Gate:
    """Makes the `Gate`, rates with intervals, predictions and verdict, from counts of each prompt.

    `counts_NC` has the columns of `_counts`, then 1 for a right greedy draft and 1 for a right greedy revision, else 0.
    """
    n = len(counts_NC)
    drawn = torch.cat(list(resamples([n], draws=DRAWS, seed=settings.seed)))
    sums_DC = torch.cat([counts_NC.sum(0, keepdim=True), drawn @ counts_NC])  # the data, then the bootstrap draws
    rates, greedy_D, again_D = _rates(sums_DC), sums_DC[:, 6] / n, sums_DC[:, 7] / n
    outlooks = []
    for beta in betas:
        each: Reach = reach(rates, beta)
        opponents = torch.stack([each.ipo_best_of_2, each.drawn_best_of_2, greedy_D]).amax(0)
        columns = (each.draft, each.revised, each.ipo, each.ipo_best_of_2, each.revised - opponents)
        outlooks.append(Outlook(beta, *map(_interval, columns)))
    named = {name: _interval(rate) for name, rate in rates._asdict().items()}
    named |= {"greedy": _interval(greedy_D), "greedy_revised": _interval(again_D)}
    more = _interval(rates.mend - rates.fresh)
    return Gate(n, drafts, named, more, tuple(outlooks), *decide(named, more, outlooks), made_with)


def _interval(values_D: Tensor) -> Interval:
    low, high = torch.quantile(values_D[1:], ends_of(0.95)).tolist()
    return Interval(float(values_D[0]), low, high)


def decide(rates: Mapping[str, Interval], more: Interval, outlooks: Sequence[Outlook]) -> tuple[str, str]:
    """Returns the verdict ("worth training", "not worth it", "only with a warm start …") and its reason as a sentence.

    Args:
        rates: rates in [0, 1] that the reference model reached, by name, with intervals; see `Gate.rates`.
        more: share of wrong drafts that a revision mends, minus the share that a second draft mends.
        outlooks: predictions of training, one per β.
    """
    best = max(outlooks, key=lambda each: each.gain.low)
    opponent = best.revised.mean - best.gain.mean
    where = f"at β = {best.beta:g} one revision reaches {100 * best.revised.mean:.0f} %, the strongest opponent "
    where += f"{100 * opponent:.0f} %"
    if best.gain.low > 0:
        return WORTH, where
    if min(each.revised.mean - each.gain.mean for each in outlooks) > 1 - ROOM:
        return NOT, f"{where}: at most {100 * ROOM:.0f} points are left to gain"
    if rates["copies"].mean >= COPIES:
        share = f"{100 * rates['copies'].mean:.0f} %"
        return WARM, f"{where}; the reference repeats {share} of its wrong drafts, so it was hardly seen revising"
    if more.low > 0:
        return WARM, f"{where}; revisions mend more than second drafts do, but too little to win"
    return NOT, f"{where}; a revision of a wrong draft is right no more often than a second draft"
