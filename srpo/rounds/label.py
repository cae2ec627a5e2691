"""Turns drafts, revisions and a judge's verdicts into preference pairs of the model's own answers.

Each row has `prompt`, `chosen`, `rejected`, the further columns of the prompt's row, and `made_by` with the pair's
origin. Every reader of preference pairs accepts such rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srpo.disk import writable_file, write_file
from srpo.errors import DataError, InputError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.progress import counted
from srpo.revise.trail import Trail
from srpo.revise.trail_files import read_trails
from srpo.rounds.candidates import KINDS, Candidate, choose, find

COUNTS_SUFFIX = ".labels.json"  # ending of the name of the file of `LabelCounts` beside a file of pairs


@dataclass(frozen=True)
class LabelSettings:
    """Settings of labelling: which comparisons of drafts and revisions the judge decides.

    Attributes:
        ask: kinds of comparison, such as "draft-revision"; all are listed in candidates.py.
        choose: rule that selects comparisons if there are more than `labels`: "random" or "uncertain".
        labels: maximum number of comparisons; None judges all.
        seed: seed of the random choice.
        gold_key: key of the gold answer in a trail's `meta`.
    """

    ask: tuple[str, ...] = KINDS
    choose: str = "random"
    labels: int | None = None
    seed: int = 0
    gold_key: str = "gold"


@dataclass
class LabelCounts:
    """Counts of comparisons found, judged and turned into pairs; dicts count by kind of comparison, except `unscored`.

    Attributes:
        found: distinct comparisons of two different texts.
        identical: comparisons of two equal texts; not judged.
        empty: comparisons with an empty answer; not judged.
        repeated: comparisons that had occurred before; not judged again.
        asked: comparisons that were judged.
        ties: judged comparisons without a preference.
        unscored: judged comparisons without a readable verdict, by reason.
        pairs: judged comparisons that became a preference pair.
        later_better: pairs whose later answer (the later revision, or the second draft) won.
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
        """Number of judged comparisons."""
        return sum(self.asked.values())

    @property
    def informative(self) -> float:
        """Share of the judged comparisons that became pairs; 0.0 if no comparison was judged."""
        return sum(self.pairs.values()) / self.labels if self.labels else 0.0

    def lines(self) -> list[str]:
        """Returns the counts as lines of text: one for each kind of comparison, and one for the total."""
        lines = []
        for kind in dict.fromkeys([*self.found, *self.identical]):
            found, asked, pairs = (each.get(kind, 0) for each in (self.found, self.asked, self.pairs))
            wins = f", the later answer better in {self.later_better.get(kind, 0)}" if pairs else ""
            same = self.identical.get(kind, 0)
            lines.append(f"{kind}: {found} to compare ({same} identical), {asked} asked, {pairs} pairs{wins}")
        unscored = sum(self.unscored.values())
        share = f"{sum(self.pairs.values())} pairs ({100 * self.informative:.0f} %)"
        return [*lines, f"{self.labels} labels, {share}, {self.ties} ties, {unscored} unscored"]


Announce = Callable[[Sequence[AnswerPair]], object]  # called with the comparisons before they are judged


def label(
    trails: Iterable[Trail], judge: PairJudge, settings: LabelSettings, *, announce: Announce | None = None
) -> tuple[list[dict[str, Any]], LabelCounts]:
    """Has a judge compare answers to the same prompt; returns the preference pairs as rows, and counts.

    Args:
        trails: prompts with their drafts and revisions.
        settings: which answers are compared.
        announce: called with the chosen comparisons before the judge sees them; None calls nothing.

    Raises:
        ConfigError: an unknown setting.
        SRPOError: errors of the judge.

    Example:
        >>> from srpo.judge.verdict import Verdict
        >>> from srpo.revise.trail import Answer
        >>> class Longer:
        ...     identity = "longer"
        ...     def compare(self, comparisons):
        ...         return (Verdict(float(len(c.first) > len(c.second))) for c in comparisons)
        >>> trails = [Trail("Hello", (Answer("Hi", 1), Answer("Hello!", 2)))]
        >>> rows, counts = label(trails, Longer(), LabelSettings())
        >>> rows[0]["chosen"], counts.lines()[-1]
        ('Hello!', '1 labels, 1 pairs (100 %), 0 ties, 0 unscored')
    """
    found = find(trails, settings.ask, gold_key=settings.gold_key)
    chosen = choose(found.candidates, settings.labels, by=settings.choose, seed=settings.seed)
    comparisons = [each.comparison for each in chosen]
    if announce is not None:
        announce(comparisons)
    unscored, pairs, later_better = Counter[str](), Counter[str](), Counter[str]()
    rows, ties = [], 0
    verdicts = counted(judge.compare(comparisons), "comparisons", len(comparisons))
    for candidate, verdict in zip(chosen, verdicts, strict=True):
        if verdict.score is None:
            unscored[verdict.reason] += 1
        elif verdict.score == 0.5:
            ties += 1
        else:
            rows.append(_row(candidate, verdict, judge.identity))
            pairs[candidate.kind] += 1
            later_better[candidate.kind] += verdict.score < 0.5
    return rows, LabelCounts(
        found=dict(Counter(each.kind for each in found.candidates)),
        identical=dict(found.identical),
        empty=found.empty,
        repeated=found.repeated,
        asked=dict(Counter(each.kind for each in chosen)),
        ties=ties,
        unscored=dict(unscored),
        pairs=dict(pairs),
        later_better=dict(later_better),
    )


def label_file(
    source: str, target: str, judge: PairJudge, settings: LabelSettings, *, announce: Announce | None = None
) -> LabelCounts:
    """Makes a file of preference pairs from a file of drafts and revisions by a judge; writes counts beside it.

    Args:
        source, target: path of the file of drafts and revisions, and of the pairs to write.
        settings: which answers are compared.
        announce: called with the chosen comparisons before the judge sees them; None calls nothing.

    Raises:
        InputError, DataError: the trails cannot be read, or no comparison has a preference.
        OutputError: the pairs cannot be written.
    """
    writable_file(Path(target))  # before the judge costs money
    rows, counts = label(read_trails(source, gold_key=None), judge, settings, announce=announce)
    file = Path(target + COUNTS_SUFFIX)
    write_file(file, (json.dumps(asdict(counts), indent=2) + "\n").encode(), flag="--output")
    if not rows:
        reasons = "; ".join(counts.lines())
        raise DataError(f"no preference pair: {reasons}", where=source, fix="sample more, or at a higher temperature")
    write_file(Path(target), rows_as_lines(rows), flag="--output")
    return counts


def read_counts(target: str | Path) -> LabelCounts:
    """Reads the counts of judged comparisons, which are stored beside the file of preference pairs `target`.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(f"{target}{COUNTS_SUFFIX}")
    try:
        return LabelCounts(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        fix = f"delete {target} to label its comparisons again"
        raise InputError(f"label counts cannot be read: {what}", where=str(path), fix=fix) from None


def rows_as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns rows as bytes of UTF-8 text, one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _row(candidate: Candidate, verdict: Verdict, judge: str) -> dict[str, Any]:
    pair = candidate.comparison
    better, worse = (pair.first, pair.second) if verdict.score == 1 else (pair.second, pair.first)
    made_by = {"kind": candidate.kind, "judge": judge, "later_better": better == pair.second}
    made = {"prompt": pair.prompt, "chosen": better, "rejected": worse}
    # Prompts from a file of pairs have columns of these names, which hold other people's answers.
    return made | {key: value for key, value in candidate.meta.items() if key not in made} | {"made_by": made_by}
