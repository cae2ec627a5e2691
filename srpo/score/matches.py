"""Matches: a system's answers against an opponent's, prompt by prompt, decided by a pair judge or by two scores.

Opponents are `gold`, the gold answer of the prompt; `draft`, the system's own draft; and any other system by name,
after as many revisions. An unreadable verdict is nan in every tensor, neither a tie nor a loss.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from srpo.data.values import Prompt
from srpo.errors import DataError
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict
from srpo.score.text_measures import Unit, lengths

GOLD, DRAFT = "gold", "draft"
NAN = float("nan")
READABLE = "a judge that says which answer is better"
Name = TypeVar("Name", bound=Hashable)


class Match(NamedTuple):
    """Answers of one system and the texts of one opponent, [N][R] each; `where` is for messages."""

    prompts: Sequence[Prompt]
    golds: Sequence[object]
    ours: Sequence[Sequence[str]]
    theirs: Sequence[Sequence[str]]
    unit: Unit
    where: str = ""

    def decided(
        self, wins_NR: Tensor, flipped_NR: Tensor | None = None, contradicted_NR: Tensor | None = None
    ) -> MatchScores:
        """Returns the scores of this match; flips and contradictions are nan unless given."""
        rows = zip(self.ours, self.theirs, strict=True)
        unknown_NR = torch.full_like(wins_NR, NAN)
        return MatchScores(
            wins_NR,
            longer_NR=lengths(self.ours, self.unit) - lengths(self.theirs, self.unit),
            flipped_NR=unknown_NR if flipped_NR is None else flipped_NR,
            contradicted_NR=unknown_NR if contradicted_NR is None else contradicted_NR,
            same_NR=torch.tensor([[a == b for a, b in zip(*row, strict=True)] for row in rows]),
        )


@dataclass(frozen=True)
class MatchScores:
    """The outcome of one match, five [N, R] tensors.

    Attributes:
        wins_NR: 1 for a win, ½ for a tie, 0 for a loss; nan where unscored.
        longer_NR: length of our answer minus the opponent's.
        flipped_NR: 1 where the two orders of showing disagree, 0 where they agree; nan unless both were readable.
        contradicted_NR: share of the pairs of runs whose verdicts differ; nan where fewer than two were readable.
        same_NR: true where the texts are identical; the judge is not asked about them.
    """

    wins_NR: Tensor
    longer_NR: Tensor
    flipped_NR: Tensor
    contradicted_NR: Tensor
    same_NR: Tensor

    @property
    def unscored_R(self) -> list[int]:
        """Number of prompts without a verdict, by revision."""
        return [int(count) for count in self.wins_NR.isnan().sum(0)]


def decide_by_judge(judge: PairJudge, matches: Mapping[Name, Match]) -> dict[Name, MatchScores]:
    """Decides all matches in one pass over a pair judge, which can then announce its cost first.

    Each different question is asked once.

    Raises:
        DataError: every verdict was unreadable, of all matches or of one revision of one match.
    """
    questions: dict[str, AnswerPair] = {}
    asked: dict[Name, list[list[str]]] = {}
    for name, match in matches.items():
        rows: list[list[str]] = []
        for prompt, gold, ours, theirs in zip(match.prompts, match.golds, match.ours, match.theirs, strict=True):
            rows.append([])
            for first, second in zip(ours, theirs, strict=True):
                key = json.dumps([prompt, gold, first, second], sort_keys=True, default=str)
                questions.setdefault(key, AnswerPair(prompt, first, second, gold))
                rows[-1].append(key)
        asked[name] = rows
    answers = dict(zip(questions, judge.compare(list(questions.values())), strict=True))
    shown = [verdict for key, verdict in answers.items() if not questions[key].identical]
    if shown and all(verdict.score is None for verdict in shown):
        what = f"not one of {len(shown)} verdicts could be read: {shown[0].reason}"
        raise DataError(what, where=judge.identity, expected=READABLE)
    found = {name: [[answers[key] for key in row] for row in rows] for name, rows in asked.items()}
    return {name: _from_verdicts(matches[name], verdicts) for name, verdicts in found.items()}


def decide_by_scores(match: Match, ours_NR: Tensor, theirs_NR: Tensor) -> MatchScores:
    """Decides a match by the scores of a judge of single answers: the higher score wins; nan where one is missing."""
    return match.decided(0.5 + 0.5 * torch.sign(ours_NR - theirs_NR))


def _from_verdicts(match: Match, verdicts: Sequence[Sequence[Verdict]]) -> MatchScores:
    for k, column in enumerate(zip(*verdicts, strict=True)):
        if all(verdict.score is None for verdict in column):
            what = f"not one of {len(column)} verdicts after {k} revisions could be read: {column[0].reason}"
            raise DataError(what, where=match.where, expected=READABLE)
    wins_NR, flipped_NR, contradicted_NR = (
        torch.tensor(
            [[NAN if (value := getattr(each, part)) is None else float(value) for each in row] for row in verdicts],
            dtype=torch.float64,
        )
        for part in ("score", "flipped", "contradicted")
    )
    return match.decided(wins_NR, flipped_NR, contradicted_NR)


def gold_texts(golds: Iterable[object], where: str) -> list[str]:
    """Returns gold answers as texts that a pair judge can compare.

    Raises:
        DataError: a gold answer is neither text nor an integer.
    """
    found = []
    for row, gold in enumerate(golds, 1):
        if not isinstance(gold, str | int) or isinstance(gold, bool):
            expected = "text, for a judge that compares answers with it"
            raise DataError(f"the gold answer is {type(gold).__name__}", where=f"{where}, row {row}", expected=expected)
        found.append(str(gold))
    return found


# ---------------------------------------------------------------------- counts of a judge's verdicts


class Tally(NamedTuple):
    """Counts of one pair judge's verdicts against one opponent.

    Attributes:
        judge: its name.
        against: the opponent.
        comparisons: number of comparisons, identical texts included.
        identical: comparisons of identical texts, which the judge was not asked about.
        unscored: comparisons the judge was asked about without a readable verdict.
        ties: share of ties among the readable verdicts.
        flips: share of comparisons shown in both orders whose orders disagree; None without such comparisons.
        disagreement: mean share of pairs of runs whose verdicts differ, over comparisons asked several times; None
            without such comparisons.
        agreement: share of comparisons of different texts on which this judge and the first one agree; None for the
            first judge.
    """

    judge: str
    against: str
    comparisons: int
    identical: int
    unscored: int
    ties: float | None
    flips: float | None
    disagreement: float | None
    agreement: float | None


def tally(
    judge: str, against: str, matches: Sequence[MatchScores], first: Sequence[MatchScores] | None = None
) -> Tally:
    """Counts the verdicts of several matches.

    Args:
        first: the same matches as decided by the first judge.
    """
    asked = torch.cat([(~each.same_NR).flatten() for each in matches])
    wins, flips, contradicted = (
        torch.cat([getattr(each, part).flatten() for each in matches])[asked]
        for part in ("wins_NR", "flipped_NR", "contradicted_NR")
    )
    read = ~wins.isnan()
    agreement = None
    if first is not None:
        theirs = torch.cat([each.wins_NR.flatten() for each in first])[asked]
        agreement = _share(wins == theirs, read & ~theirs.isnan())
    return Tally(
        judge,
        against,
        comparisons=len(asked),
        identical=int((~asked).sum()),
        unscored=int((~read).sum()),
        ties=_share(wins == 0.5, read),
        flips=_share(flips, ~flips.isnan()),
        disagreement=_share(contradicted, ~contradicted.isnan()),
        agreement=agreement,
    )


def _share(of: Tensor, among: Tensor) -> float | None:
    return float(of[among].double().mean()) if bool(among.any()) else None
