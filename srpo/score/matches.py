"""Matches: one system's answers against one opponent's, prompt by prompt, decided by a pair judge or by two scores.

Opponents are `gold`, the gold answer of the prompt; `draft`, the system's own draft; and any other system by name,
after the same number of revisions. An unreadable verdict is nan in every tensor, neither a tie nor a loss.

Axes: N prompts, R = revisions + 1 newest kept answers, the draft first.
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
from srpo.progress import counted
from srpo.revise.trail import Trail

GOLD, DRAFT = "gold", "draft"
NAN = float("nan")
READABLE = "a judge that says which answer is better"
Name = TypeVar("Name", bound=Hashable)
Judges = Mapping[str, AnyJudge]


class Answers(Protocol):
    """Protocol of one system's answers to N prompts, R = revisions + 1 each, with the gold answers.

    `srpo.score.scores.OrderedTrails` is one.
    """

    @property
    def trails(self) -> Sequence[Trail]:
        """The N trails: prompts with their drafts and revisions."""

    @property
    def golds(self) -> Sequence[object]:
        """The gold answers of the N prompts; None for a prompt without one."""

    @property
    def texts(self) -> Sequence[Sequence[str]]:
        """[N][R] texts: for each prompt the newest kept answer after 0, 1, … revisions."""


class Match(NamedTuple):
    """One system's answers (`ours`) and one opponent's texts (`theirs`, [N][R]), to be compared one by one.

    N prompts have R = revisions + 1 answers. `longer_NR` is the length of our answer minus the opponent's, in words or
    characters (`srpo.score.text_measures.unit_of`); `where` names the match in errors.
    """

    ours: Answers
    theirs: Sequence[Sequence[str]]
    longer_NR: Tensor
    where: str = ""


@dataclass(frozen=True)
class MatchScores:
    """Outcome of comparing one system's answers with one opponent's: five [N, R] tensors.

    N is the number of prompts, R = revisions + 1 the number of answers to each, the draft first.

    Attributes:
        wins_NR: 1 where our answer wins, ½ for a tie, 0 where it loses; nan where unscored.
        longer_NR: length of our answer minus the opponent's, in words or characters.
        flipped_NR: 1 where the two orders of showing disagree, 0 where they agree; nan unless both were readable.
        contradicted_NR: over pairs of repeated runs, the share with different verdicts; nan below two readable runs.
        same_NR: true where the texts are identical; the judge is not asked about them.
    """

    wins_NR: Tensor
    longer_NR: Tensor
    flipped_NR: Tensor
    contradicted_NR: Tensor
    same_NR: Tensor

    @property
    def unscored_R(self) -> list[int]:
        """R counts: the number of prompts without a readable verdict after 0, 1, … revisions."""
        return [int(count) for count in self.wins_NR.isnan().sum(0)]


def decide_by_judge(judge: PairJudge, matches: Mapping[Name, Match]) -> dict[Name, MatchScores]:
    """Compares the answers of all matches by a judge of two answers; returns the outcome of each match.

    The judge gets all comparisons in one call, so that it can announce its cost; equal comparisons are asked once.

    Args:
        matches: a system's and an opponent's answers, by any name.

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
    compared = counted(judge.compare(list(questions.values())), "comparisons", len(questions))
    verdicts = dict(zip(questions, compared, strict=True))
    expect_verdicts(list(questions.values()), list(verdicts.values()), judge.identity)
    found = {name: [[verdicts[key] for key in row] for row in rows] for name, rows in asked.items()}
    return {name: _decided(matches[name], *_read(matches[name], rows)) for name, rows in found.items()}


def decide_by_scores(
    matches: Mapping[Name, Match], scores: Mapping[Name, tuple[Tensor, Tensor]]
) -> dict[Name, MatchScores]:
    """Compares the answers of all matches by their scores: the higher score wins. Returns the outcome of each match.

    Args:
        matches: a system's and an opponent's answers, by any name.
        scores: for each match two [N, R] tensors, of N prompts and R = revisions + 1 answers: scores of our answers and
            of the opponent's; nan is a missing score, and such a comparison is unscored.
    """
    found = {}
    for name, (ours_NR, theirs_NR) in scores.items():
        unknown_NR = torch.full_like(ours_NR, NAN)
        wins_NR = 0.5 + 0.5 * torch.sign(ours_NR - theirs_NR)
        found[name] = _decided(matches[name], wins_NR, unknown_NR, unknown_NR)
    return found


def _read(match: Match, verdicts: Sequence[Sequence[Verdict]]) -> list[Tensor]:
    """Returns the wins, flips and contradictions of one match from its [N][R] verdicts, each as [N, R] tensor."""
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
    """Counts over the verdicts of one judge of two answers against one opponent; shares are in [0, 1].

    Attributes:
        judge: name of the judge.
        against: name of the opponent.
        comparisons: number of comparisons, identical texts included.
        identical: comparisons of identical texts, which the judge was not asked about.
        unscored: comparisons the judge was asked about without a readable verdict.
        ties: share of ties among the readable verdicts.
        flips: share of comparisons shown in both orders whose orders disagree; None without such comparisons.
        disagreement: share of pairs of repeated runs whose verdicts differ, averaged over comparisons asked several
            times; None without such comparisons.
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
    """Protocol of a system's answers with the outcomes of comparing them, such as `srpo.score.scores.ScoredTrails`."""

    @property
    def matches(self) -> Mapping[str, MatchScores]:
        """Opponent → outcome of comparing the system's answers with that opponent's, by the first judge."""

    @property
    def others(self) -> Mapping[str, MatchScores]:
        """Name of each further judge of two answers → outcome by that judge; it compares with one opponent only."""


def tallies(scored: Mapping[Name, Decided], judges: Judges, against: str = GOLD) -> list[Tally]:
    """Returns one `Tally` (counts of comparisons, ties and unreadable verdicts) per judge of two answers and opponent.

    Args:
        scored: compared answers of each system.
        judges: judge by name, the first one primary.
        against: the only opponent of the judges after the first.
    """
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
    """Returns the counts of one judge's verdicts over several matches against one opponent.

    Args:
        judge, against: names of the judge and the opponent.
        matches: outcomes of the comparisons, one per system and seed.
        first: the same matches decided by the first judge, for the agreement; None if `judge` is the first one.
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
