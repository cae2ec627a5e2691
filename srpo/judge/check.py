"""Measures a judge on labelled pairs: accuracy, position and length bias, flips, unscored pairs.

A hash of the two texts decides which answer of a pair is `first`. A judge that is asked in one order only therefore
gains nothing by preferring one position.

Axes: N pairs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srpo.data.read import Pair
from srpo.errors import DataError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.statistics.agreement import NAN, Measure, difference, flips, for_first_shown, only_where, scores_tensor, share
from srpo.statistics.percent import measured

# name of a measure → its meaning in one line, in the order in which reports print the measures
MEASURES = {
    "accuracy": "verdicts for the better answer, ties as half",
    "ties": "verdicts that are ties, disagreement of the two orders included",
    "unscored": "pairs without a readable verdict",
    "flips": "pairs on which the two orders disagree",
    "first_shown": "verdicts of single orders for the answer shown first, ties as half; 50 without a position bias",
    "longer": "verdicts for the longer answer, ties as half",
    "accuracy_longer": "accuracy where the longer answer is the better",
    "accuracy_shorter": "accuracy where the shorter answer is the better",
    "length_bias": "accuracy_longer less accuracy_shorter; 0 without a length bias",
    "disagreement": "verdicts of a second run that differ from the first run's",
}


@dataclass(frozen=True)
class JudgeCheck:
    """One judge's verdicts on labelled pairs, and measures of their quality.

    Attributes:
        judge: the judge's identity.
        measures: name as in `MEASURES` → value with its interval; measures that do not apply are left out.
        reasons: reason for an unscored pair → number of such pairs.
        comparisons, verdicts: pairs shown to the judge and its verdicts, in the order of the labelled pairs.
        better_first: for each comparison, whether its first answer is labelled as the better one.
        record: the judge's own record of its settings and usage.
    """

    judge: str
    measures: dict[str, Measure]
    reasons: dict[str, int]
    comparisons: tuple[AnswerPair, ...]
    verdicts: tuple[Verdict, ...]
    better_first: tuple[bool, ...]
    record: dict[str, Any]

    def to_json(self) -> str:
        """Returns the measures of the judge as JSON, without the judged texts; a measure that is nan becomes null."""
        measures = {
            name: {part: None if value != value else value for part, value in measure._asdict().items()}
            for name, measure in self.measures.items()
        }
        head = {"judge": self.judge, "pairs": len(self.verdicts), "measures": measures, "reasons": self.reasons}
        return json.dumps({**head, "record": self.record}, indent=2, ensure_ascii=False)


def sample(pairs: Sequence[Pair], limit: int | None, seed: int = 0) -> list[Pair]:
    """Draws `limit` of the pairs at random and returns them in the given order; all pairs if `limit` is None."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    return [pairs[row] for row in sorted(random.Random(seed).sample(range(len(pairs)), limit))]


def check_judge(
    make: Callable[[int], PairJudge],
    pairs: Sequence[Pair],
    *,
    runs: int = 1,
    gold_key: str = "gold",
    seed: int = 0,
) -> JudgeCheck:
    """Asks a judge about labelled pairs, and returns its verdicts with measures of their quality, such as accuracy.

    Args:
        make: function from a run's number (0 or 1) to the judge; run 1 is the same judge without cached verdicts.
        pairs: labelled pairs, `chosen` being the better answer; `meta` may hold a gold answer.
        runs: 1, or 2 to ask about every pair again and measure how often the judge contradicts itself.
        gold_key: key of the gold answer in `meta`.
        seed: seed of the bootstrap intervals.

    Raises:
        DataError: there are no pairs, or the judge raises it.

    Example:
        >>> from srpo.judge.load import ScoreJudge
        >>> longer = ScoreJudge("longer", lambda prompt, answer, gold: len(answer) / 100)
        >>> pairs = [Pair("p", chosen="short", rejected="a long one"), Pair("q", chosen="longer", rejected="no")]
        >>> {name: measure.value for name, measure in check_judge(lambda run: longer, pairs).measures.items()}["longer"]
        1.0
    """
    if not pairs:
        raise DataError("no pairs to check a judge on")
    better_first = [_better_is_first(pair) for pair in pairs]
    comparisons = [
        AnswerPair(
            pair.prompt,
            *((pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)),
            pair.meta.get(gold_key),
        )
        for pair, first in zip(pairs, better_first, strict=True)
    ]
    judges = [make(run) for run in range(runs)]
    verdicts, *others = [list(judge.compare(comparisons)) for judge in judges]
    first_N = torch.tensor(better_first)
    right_N = _for_better(first_N, verdicts)
    measures = _measures(verdicts, right_N, pairs, seed)
    if others:
        measures["disagreement"] = share(flips(right_N, _for_better(first_N, others[0])), _prompts(pairs), seed=seed)
    reasons = dict(Counter(verdict.reason for verdict in verdicts if verdict.score is None))
    record: dict[str, Any] = getattr(judges[0], "record", dict)()
    return JudgeCheck(
        judges[0].identity, measures, reasons, tuple(comparisons), tuple(verdicts), tuple(better_first), record
    )


def print_check(found: JudgeCheck) -> None:
    """Prints a judge's measures in per cent with intervals, the commonest reasons for unscored pairs, and the cost."""
    print(f"{found.judge}\n{len(found.verdicts)} pairs\n")
    for name, meaning in MEASURES.items():
        if name in found.measures:
            print(f"  {name:<17} {measured(found.measures[name]):<28} {meaning}")
    print()
    for reason, count in Counter(found.reasons).most_common(5):
        print(f"  unscored {count} times: {reason}")
    if spent := found.record.get("spent"):
        cost = f", cost {spent['cost']:.4f}" if found.record.get("price_in") is not None else ""
        print(f"  {spent['calls']} calls, {spent['tokens_in']:,} tokens read, {spent['tokens_out']:,} written{cost}")
    print("Percent, with 95 % intervals over prompts.")


def _measures(verdicts: Sequence[Verdict], right_N: Tensor, pairs: Sequence[Pair], seed: int) -> dict[str, Measure]:
    """Name → measure for one run over N pairs; `right_N` is 1 where the better answer won, ½ for ties, else 0."""
    prompts = _prompts(pairs)

    def of(values_N: Tensor) -> Measure:
        return share(values_N, prompts, seed=seed)

    longer_N = torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in pairs])
    on_longer_N, on_shorter_N = only_where(right_N, longer_N > 0), only_where(right_N, longer_N < 0)
    for_longer_N = torch.where(longer_N > 0, right_N, 1 - right_N).masked_fill(longer_N == 0, NAN)
    found = {
        "accuracy": of(right_N),
        "ties": of(only_where((right_N == 0.5).double(), ~right_N.isnan())),
        "unscored": of(right_N.isnan().double()),
    }
    both = [verdict.orders if len(verdict.orders) == 2 else None for verdict in verdicts]
    if any(both):
        ahead_N, behind_N = (scores_tensor([each[i].score if each else None for each in both]) for i in (0, 1))
        found["flips"] = of(flips(ahead_N, behind_N))
        found["first_shown"] = of(for_first_shown(ahead_N, behind_N))
    found["longer"] = of(for_longer_N)
    found["accuracy_longer"], found["accuracy_shorter"] = of(on_longer_N), of(on_shorter_N)
    found["length_bias"] = difference(on_longer_N, on_shorter_N, prompts, seed=seed)
    return found


def _better_is_first(pair: Pair) -> bool:
    # The texts are sorted before hashing, so exchanging chosen and rejected in a file keeps the order shown.
    low, high = sorted((pair.chosen, pair.rejected))
    return (hashlib.sha256(json.dumps([low, high]).encode()).digest()[0] % 2 == 0) == (pair.chosen == low)


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    return [json.dumps(pair.prompt, sort_keys=True) for pair in pairs]


def _for_better(first_N: Tensor, verdicts: Sequence[Verdict]) -> Tensor:
    """[N] 1 where a verdict favours the answer labelled better, ½ for a tie, else 0; nan without a verdict.

    `first_N` is true where the first answer of the pair is the one labelled better.
    """
    scores_N = scores_tensor([verdict.score for verdict in verdicts])
    return torch.where(first_N, scores_N, 1 - scores_N)
