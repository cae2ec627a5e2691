"""Matches: a system's answers against an opponent's, prompt by prompt, decided by a pair judge or by two scores.

Opponents are `gold`, the gold answer of the prompt; `draft`, the system's own draft; and any other system by name,
after as many revisions. An unreadable verdict is nan in every tensor, neither a tie nor a loss.

Axes: N prompts, R = revisions + 1 answers in hand, the draft first.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from srpo.errors import DataError
from srpo.judge.load import AnyJudge, compares
from srpo.judge.verdict import AnswerPair, PairJudge, Verdict, expect_verdicts
from srpo.revise.trail import Trail

GOLD, DRAFT = "gold", "draft"
NAN = float("nan")
READABLE = "a judge that says which answer is better"
Name = TypeVar("Name", bound=Hashable)
Judges = Mapping[str, AnyJudge]


class Answers(Protocol):
    """Trails with their gold answers and the answers in hand; see `srpo.score.scores.OrderedTrails`."""

    @property
    def trails(self) -> Sequence[Trail]:
        """N trails."""

    @property
    def golds(self) -> Sequence[object]:
        """N gold answers."""

    @property
    def texts(self) -> Sequence[Sequence[str]]:
        """[N][R] the answers in hand."""


class Match(NamedTuple):
    """Answers of one system and the texts of one opponent, [N][R].

    `longer_NR` is the length of our answer minus the opponent's; `where` is for messages.
    """

    ours: Answers
    theirs: Sequence[Sequence[str]]
    longer_NR: Tensor
    where: str = ""


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
        answers = zip(match.ours.trails, match.ours.golds, match.ours.texts, match.theirs, strict=True)
        for trail, gold, ours, theirs in answers:
            rows.append([])
            for first, second in zip(ours, theirs, strict=True):
                key = json.dumps([trail.prompt, gold, first, second], sort_keys=True, default=str)
                questions.setdefault(key, AnswerPair(trail.prompt, first, second, gold))
                rows[-1].append(key)
        asked[name] = rows
    verdicts = dict(zip(questions, judge.compare(list(questions.values())), strict=True))
    expect_verdicts(list(questions.values()), list(verdicts.values()), judge.identity)
    found = {name: [[verdicts[key] for key in row] for row in rows] for name, rows in asked.items()}
    return {name: _decided(matches[name], *_read(matches[name], rows)) for name, rows in found.items()}


def decide_by_scores(
    matches: Mapping[Name, Match], scores: Mapping[Name, tuple[Tensor, Tensor]]
) -> dict[Name, MatchScores]:
    """Decides all matches by scores of single answers, ours and theirs: the higher one wins; nan where one is missing.

    Args:
        scores: [N, R] scores of our answers and of the opponent's.
    """
    found = {}
    for name, (ours_NR, theirs_NR) in scores.items():
        unknown_NR = torch.full_like(ours_NR, NAN)
        wins_NR = 0.5 + 0.5 * torch.sign(ours_NR - theirs_NR)
        found[name] = _decided(matches[name], wins_NR, unknown_NR, unknown_NR)
    return found


def _read(match: Match, verdicts: Sequence[Sequence[Verdict]]) -> list[Tensor]:
    """Returns wins, flips and contradictions, [N, R] each."""
    for k, column in enumerate(zip(*verdicts, strict=True)):
        if all(verdict.score is None for verdict in column):
            what = f"not one of {len(column)} verdicts after {k} revisions could be read: {column[0].reason}"
            raise DataError(what, where=match.where, expected=READABLE)
    parts = ("score", "flipped", "contradicted")
    values = [[[getattr(each, part) for each in row] for row in verdicts] for part in parts]
    numbers = [[[NAN if each is None else float(each) for each in row] for row in rows] for rows in values]
    return [torch.tensor(rows, dtype=torch.float64) for rows in numbers]


def _decided(match: Match, wins_NR: Tensor, flipped_NR: Tensor, contradicted_NR: Tensor) -> MatchScores:
    rows = zip(match.ours.texts, match.theirs, strict=True)
    same_NR = torch.tensor([[a == b for a, b in zip(*row, strict=True)] for row in rows])
    return MatchScores(wins_NR, match.longer_NR, flipped_NR, contradicted_NR, same_NR)


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


class Decided(Protocol):
    """Trails whose matches are decided; see `srpo.score.scores.ScoredTrails`."""

    @property
    def matches(self) -> Mapping[str, MatchScores]:
        """Opponent → outcome by the primary judge."""

    @property
    def others(self) -> Mapping[str, MatchScores]:
        """Secondary pair judge → outcome against the opponent of its score."""


def tallies(scored: Mapping[Name, Decided], judges: Judges, against: str = GOLD) -> list[Tally]:
    """Counts the verdicts of each pair judge by opponent; a secondary judge has the opponent `against` alone."""
    found, every = [], list(scored.values())
    for place, (name, judge) in enumerate(judges.items()):
        if not compares(judge):
            continue
        if place:
            first = [each.matches[against] for each in every if against in each.matches]
            mine = [each.others[name] for each in every]
            found.append(tally(name, against, mine, first if len(first) == len(mine) else None))
        else:
            for opponent in dict.fromkeys(opponent for each in every for opponent in each.matches):
                found.append(tally(name, opponent, [e.matches[opponent] for e in every if opponent in e.matches]))
    return found


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
