"""Trails + a judge → preference pairs of the model's own answers, as ordinary rows.

What comes out has `prompt`, `chosen` and `rejected`, the columns that stood beside the prompt, and under `made_by`
where the pair is from; every reader of preference pairs takes it.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srpo.disk import writable_file, write_file
from srpo.errors import DataError, InputError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.revise.trail import Trail
from srpo.rounds.candidates import KINDS, Candidate, choose, find
from srpo.score.trail_systems import read_trails

BESIDE = ".labels.json"  # what became of the comparisons, beside the pairs
log = logging.getLogger("srpo")


@dataclass(frozen=True)
class Settings:
    """Which comparisons are asked for.

    Attributes:
        ask: kinds of comparison (see candidates.py).
        choose: which of them, where there are more than labels: "random" or "uncertain".
        labels: at most so many comparisons are judged; None judges all.
        seed: of the drawing.
        gold_key: where in a trail's `meta` the gold answer stands.
    """

    ask: tuple[str, ...] = KINDS
    choose: str = "random"
    labels: int | None = None
    seed: int = 0
    gold_key: str = "gold"


@dataclass
class Account:
    """What became of the comparisons.

    Attributes:
        found: comparisons of two different texts, each counted once, by kind.
        identical: comparisons of one text with itself, by kind; never asked.
        empty: comparisons with an empty answer, which cannot be trained on; never asked.
        repeated: comparisons that had been found before; never asked again.
        asked: comparisons put to the judge, by kind.
        ties: of them, those that order nothing.
        unscored: of them, those without a verdict that can be read, by reason.
        pairs: of them, those that became a pair, by kind.
        later_better: of the pairs, those whose later answer won: the revision, or the second draft; by kind.
    """

    found: dict[str, int] = field(default_factory=dict)
    identical: dict[str, int] = field(default_factory=dict)
    empty: int = 0
    repeated: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    ties: int = 0
    unscored: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    later_better: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> int:
        """Comparisons put to the judge."""
        return sum(self.asked.values())

    @property
    def informative(self) -> float:
        """Share of the labels that became pairs; 0.0 where none was asked for."""
        return sum(self.pairs.values()) / self.labels if self.labels else 0.0

    def lines(self) -> list[str]:
        """The account for a reader, a line per kind and one for the whole."""
        said = []
        for kind in dict.fromkeys([*self.found, *self.identical]):
            found, asked, pairs = (each.get(kind, 0) for each in (self.found, self.asked, self.pairs))
            wins = f", the later answer better in {self.later_better.get(kind, 0)}" if pairs else ""
            same = self.identical.get(kind, 0)
            said.append(f"{kind}: {found} to compare ({same} identical), {asked} asked, {pairs} pairs{wins}")
        unscored = sum(self.unscored.values())
        said.append(
            f"{self.labels} labels, {sum(self.pairs.values())} pairs ({100 * self.informative:.0f} %), "
            f"{self.ties} ties, {unscored} unscored"
        )
        return said


# Given all comparisons that are about to be asked for.
Announce = Callable[[Sequence[AnswerPair]], object]


def label(
    trails: Iterable[Trail], judge: PairJudge, settings: Settings, *, announce: Announce | None = None
) -> tuple[list[dict[str, Any]], Account]:
    """Asks the judge and makes rows of what it orders.

    Args:
        announce: told what is about to be asked, before it is.

    Raises:
        ConfigError: a setting that names nothing.
        SRPOError: what the judge raises.

    Example:
        >>> from srpo.judge.verdict import Verdict
        >>> from srpo.revise.trail import Answer
        >>> class Longer:
        ...     identity = "longer"
        ...     def compare(self, comparisons):
        ...         return (Verdict(float(len(c.first) > len(c.second))) for c in comparisons)
        >>> rows, account = label([Trail("Hello", (Answer("Hi", 1), Answer("Hello!", 2)))], Longer(), Settings())
        >>> rows[0]["chosen"], account.lines()[-1]
        ('Hello!', '1 labels, 1 pairs (100 %), 0 ties, 0 unscored')
    """
    found = find(trails, settings.ask, gold_key=settings.gold_key)
    chosen = choose(found.candidates, settings.labels, by=settings.choose, seed=settings.seed)
    counts = {name: Counter[str]() for name in ("unscored", "pairs", "later_better")}
    rows, ties = [], 0
    asked = [each.comparison for each in chosen]
    if announce is not None:
        announce(asked)
    verdicts = judge.compare(asked)
    for candidate, verdict in zip(chosen, verdicts, strict=True):
        if verdict.score is None:
            counts["unscored"][verdict.reason] += 1
        elif verdict.score == 0.5:
            ties += 1
        else:
            rows.append(_row(candidate, verdict, judge.identity))
            counts["pairs"][candidate.kind] += 1
            counts["later_better"][candidate.kind] += verdict.score < 0.5
    return rows, Account(
        found=dict(Counter(each.kind for each in found.candidates)),
        identical=dict(found.identical),
        empty=found.empty,
        repeated=found.repeated,
        asked=dict(Counter(each.kind for each in chosen)),
        ties=ties,
        **{name: dict(counter) for name, counter in counts.items()},
    )


def label_file(
    source: str, target: str, judge: PairJudge, settings: Settings, *, announce: Announce | None = None
) -> Account:
    """Labels a file of trails into a file of pairs, and leaves the account beside it.

    Raises:
        InputError, DataError: the trails cannot be read, or nothing in them can be ordered.
        OutputError: the pairs cannot be written.
    """
    writable_file(Path(target))  # before a judge takes money for what goes into it
    rows, account = label(read_trails(source, gold_key=None), judge, settings, announce=announce)
    beside = Path(target + BESIDE)
    write_file(beside, (json.dumps(asdict(account), indent=2) + "\n").encode(), flag="--output")
    if not rows:
        said = "; ".join(account.lines())
        raise DataError(f"no pair came out: {said}", where=source, fix="sample more, or at a higher temperature")
    write_file(Path(target), rows_as_lines(rows), flag="--output")
    return account


def account_of(target: str | Path) -> Account:
    """The account beside a file of pairs.

    Raises:
        InputError: there is none, or something else stands there.
    """
    path = Path(f"{target}{BESIDE}")
    try:
        return Account(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        fix = f"delete {target} to have it labelled again"
        raise InputError(f"not an account of labels: {what}", where=str(path), fix=fix) from None


def rows_as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """A row per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _row(candidate: Candidate, verdict: Verdict, judge: str) -> dict[str, Any]:
    said = candidate.comparison
    better, worse = (said.first, said.second) if verdict.score == 1 else (said.second, said.first)
    made_by = {"kind": candidate.kind, "judge": judge, "later_better": better == said.second}
    return {"prompt": said.prompt, "chosen": better, "rejected": worse, **candidate.meta, "made_by": made_by}
