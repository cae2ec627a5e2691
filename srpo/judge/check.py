"""How good a judge is: put to it pairs of which it is known which answer is better, and see what it says.

Which of the two answers is the first of a comparison is settled by a coin, tossed from the texts, so that a judge asked
in one order gains nothing by always naming one place.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srpo.data.read import Pair
from srpo.errors import DataError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.statistics.agreement import NAN, Measure, difference, flips, for_first_shown, share, where
from srpo.statistics.percent import measured

# name → (what it is, in a line), in the order shown
MEASURES = {
    "accuracy": "verdicts for the better answer, ties as half",
    "ties": "verdicts that are ties, disagreement of the two orders included",
    "unscored": "pairs without a verdict that can be read",
    "flips": "pairs on which the two orders disagree",
    "first_shown": "verdicts of single showings for the answer shown first, ties as half; 50 without a position bias",
    "longer": "verdicts for the longer answer, ties as half",
    "accuracy_longer": "accuracy where the longer answer is the better",
    "accuracy_shorter": "accuracy where the shorter answer is the better",
    "length_bias": "the first of these less the second; 0 without a length bias",
    "disagreement": "verdicts of a second run that differ from the first's",
}


@dataclass(frozen=True)
class Checked:
    """What was found of a judge.

    Attributes:
        judge: its identity.
        measures: name as in `MEASURES` → number with its interval; those that do not apply are not there.
        reasons: why pairs are unscored, and how often.
        comparisons, verdicts: what it was asked and what it said, in the order of the pairs.
        better_first: whether the better answer was the first of the comparison.
        record: what else the judge tells of itself.
    """

    judge: str
    measures: dict[str, Measure]
    reasons: dict[str, int]
    comparisons: tuple[AnswerPair, ...]
    verdicts: tuple[Verdict, ...]
    better_first: tuple[bool, ...]
    record: dict[str, Any]

    def to_json(self) -> str:
        """The numbers as JSON, without the texts."""
        measures = {
            name: {
                part: None if value != value else value for part, value in measure._asdict().items()
            }  # nan is no JSON
            for name, measure in self.measures.items()
        }
        head = {"judge": self.judge, "pairs": len(self.verdicts), "measures": measures, "reasons": self.reasons}
        return json.dumps({**head, "record": self.record}, indent=2, ensure_ascii=False)


def sample(pairs: Sequence[Pair], limit: int | None, seed: int = 0) -> list[Pair]:
    """So many of the pairs, drawn at random and in their order; all of them without a limit."""
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
) -> Checked:
    """Puts the pairs to a judge; `chosen` is the better answer.

    Args:
        make: the judge of run 0, 1, …: the same judge, asked anew.
        pairs: texts that differ; their `meta` may hold a gold answer, for judges that need one.
        runs: 2 asks everything again, to see how far the judge agrees with itself.
        seed: of the intervals.

    Raises:
        DataError: no pairs, or what the judge itself raises.

    Example:
        >>> from srpo.judge.load import ScoreJudge
        >>> longer = ScoreJudge("longer", lambda prompt, answer, gold: len(answer) / 100)
        >>> pairs = [Pair("p", chosen="short", rejected="a long one"), Pair("q", chosen="longer", rejected="no")]
        >>> {name: measure.value for name, measure in check_judge(lambda run: longer, pairs).measures.items()}["longer"]
        1.0
    """
    if not pairs:
        raise DataError("no pairs to check a judge on")
    better_first = [_coin(pair) for pair in pairs]
    comparisons = [
        AnswerPair(
            pair.prompt,
            *((pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)),
            pair.meta.get(gold_key),
        )
        for pair, first in zip(pairs, better_first, strict=True)
    ]
    judges = [make(run) for run in range(runs)]
    said = [list(judge.compare(comparisons)) for judge in judges]
    first_N = torch.tensor(better_first)
    right_N = _seen_from(first_N, [verdict.score for verdict in said[0]])
    measures = _measures(said[0], right_N, first_N, pairs, seed)
    if runs > 1:
        again_N = _seen_from(first_N, [verdict.score for verdict in said[1]])
        measures["disagreement"] = share(flips(right_N, again_N), _prompts(pairs), seed=seed)
    reasons: dict[str, int] = {}
    for verdict in said[0]:
        if verdict.score is None:
            reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
    record: dict[str, Any] = getattr(judges[0], "record", dict)()
    return Checked(
        judges[0].identity, measures, reasons, tuple(comparisons), tuple(said[0]), tuple(better_first), record
    )


def _measures(
    verdicts: Sequence[Verdict], right_N: Tensor, first_N: Tensor, pairs: Sequence[Pair], seed: int
) -> dict[str, Measure]:
    prompts = _prompts(pairs)

    def of(values_N: Tensor) -> Measure:
        return share(values_N, prompts, seed=seed)

    longer_N = torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in pairs])
    on_longer_N, on_shorter_N = where(right_N, longer_N > 0), where(right_N, longer_N < 0)
    for_longer_N = torch.where(longer_N > 0, right_N, 1 - right_N).masked_fill(longer_N == 0, NAN)
    found = {
        "accuracy": of(right_N),
        "ties": of(where((right_N == 0.5).double(), ~right_N.isnan())),
        "unscored": of(right_N.isnan().double()),
    }
    both = [verdict.orders if len(verdict.orders) == 2 else None for verdict in verdicts]
    if any(both):
        ahead_N, behind_N = (_tensor([each[i].score if each else None for each in both]) for i in (0, 1))
        found["flips"] = of(flips(ahead_N, behind_N))
        found["first_shown"] = of(for_first_shown(ahead_N, behind_N))
    found["longer"] = of(for_longer_N)
    found["accuracy_longer"], found["accuracy_shorter"] = of(on_longer_N), of(on_shorter_N)
    found["length_bias"] = difference(on_longer_N, on_shorter_N, prompts, seed=seed)
    return found


def _coin(pair: Pair) -> bool:
    # The two texts in an order of their own, so that a file with chosen and rejected exchanged tosses the same coin.
    low, high = sorted((pair.chosen, pair.rejected))
    return (hashlib.sha256(json.dumps([low, high]).encode()).digest()[0] % 2 == 0) == (pair.chosen == low)


def _prompts(pairs: Sequence[Pair]) -> list[str]:
    return [json.dumps(pair.prompt, sort_keys=True) for pair in pairs]


def _tensor(scores: Sequence[float | None]) -> Tensor:
    return torch.tensor([NAN if score is None else score for score in scores], dtype=torch.float64)


def _seen_from(first_N: Tensor, scores: Sequence[float | None]) -> Tensor:
    """Verdicts as seen from the better answer."""
    scores_N = _tensor(scores)
    return torch.where(first_N, scores_N, 1 - scores_N)


def print_checked(checked: Checked) -> None:
    """Prints one line per measure with its interval, the commonest reasons for unscored pairs, and the cost."""
    print(f"{checked.judge}\n{len(checked.verdicts)} pairs\n")
    for name, meaning in MEASURES.items():
        if name in checked.measures:
            print(f"  {name:<17} {measured(checked.measures[name]):<28} {meaning}")
    print()
    for reason, count in sorted(checked.reasons.items(), key=lambda each: -each[1])[:5]:
        print(f"  unscored {count} times: {reason}")
    if spent := checked.record.get("spent"):
        cost = f", cost {spent['cost']:.4f}" if checked.record.get("price_in") is not None else ""
        print(f"  {spent['calls']} calls, {spent['tokens_in']:,} tokens read, {spent['tokens_out']:,} written{cost}")
    print("Percent, with 95 % intervals over prompts.")
