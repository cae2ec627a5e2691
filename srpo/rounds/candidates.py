"""Pairs of drafts and revisions that are worth a label, and the choice among them when labels are limited.

    draft-revision       a revision and the answer that it may replace, if that answer is the draft
    revision-revision    a revision and the answer that it may replace, if that answer is an earlier revision
    draft-draft          two drafts of one prompt, if the file has several

Preference data seldom contain the answers that a model revises in use. The first two kinds add the model's own drafts,
and revisions of its revisions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from srpo.errors import ConfigError, did_you_mean
from srpo.judge.verdict import AnswerPair
from srpo.revise.trail import Trail

KINDS = ("draft-revision", "revision-revision", "draft-draft")
CHOICES = ("random", "uncertain")


@dataclass(frozen=True)
class Candidate:
    """Two answers to one prompt that a judge may compare.

    Attributes:
        comparison: the prompt and both answers; the earlier answer is `first`.
        kind: "draft-revision", "revision-revision" or "draft-draft".
        preferred: the model's own p(second ≻ first), uncalibrated; None if the trail has no confidence.
        meta: further columns of the prompt's row.
    """

    comparison: AnswerPair
    kind: str
    preferred: float | None
    meta: dict[str, Any]


class Candidates(NamedTuple):
    """Distinct comparisons of two answers that are worth a label, and counts of the comparisons left out.

    Attributes:
        candidates: in the order of the prompts.
        identical: comparisons of two equal texts, by kind.
        empty: comparisons with an empty answer, which cannot be trained on.
        repeated: comparisons that occur earlier, with the two answers in either order.
    """

    candidates: list[Candidate]
    identical: Counter[str]
    empty: int
    repeated: int


def kinds_of(names: str) -> tuple[str, ...]:
    """Splits a comma-separated list of kinds of comparison, such as "draft-draft", into a tuple of the names.

    Raises:
        ConfigError: an unknown kind, or an empty list.

    Example:
        >>> kinds_of("draft-revision, draft-draft")
        ('draft-revision', 'draft-draft')
    """
    kinds = tuple(name.strip() for name in names.split(",") if name.strip())
    expected = "some of " + ", ".join(KINDS)
    for name in kinds:
        if name not in KINDS:
            raise ConfigError(f"{name!r}", where="ask", expected=expected, fix=did_you_mean(name, KINDS))
    if not kinds:
        raise ConfigError("no kind of comparison", where="ask", expected=expected)
    return kinds


def find(trails: Iterable[Trail], kinds: Sequence[str], *, gold_key: str = "gold") -> Candidates:
    """Returns the pairs of answers to one prompt, among its drafts and revisions, that a judge may usefully compare.

    Args:
        trails: prompts with their draft and revisions; equal prompts are samples of one prompt.
        kinds: names of the kinds of comparison to find, such as "draft-revision".
        gold_key: key of the gold answer in a trail's `meta`, for judges that need one.

    Example:
        >>> from srpo.revise.trail import Answer
        >>> trail = Trail("2+2=", (Answer("5", 2), Answer("4", 2), Answer("4", 2)))
        >>> found = find([trail], KINDS)
        >>> [(c.kind, c.comparison.first, c.comparison.second) for c in found.candidates], dict(found.identical)
        ([('draft-revision', '5', '4')], {'revision-revision': 1})
    """
    candidates: list[Candidate] = []
    identical: Counter[str] = Counter()
    seen: set[tuple[str, frozenset[str]]] = set()
    empty = repeated = 0
    for trail, kind, first, second, preferred in _comparisons(list(trails), kinds):
        key = (_context(trail), frozenset((first, second)))
        if first == second:
            identical[kind] += 1
        elif not (first.strip() and second.strip()):
            empty += 1
        elif key in seen:
            repeated += 1
        else:
            seen.add(key)
            comparison = AnswerPair(trail.prompt, first, second, trail.meta.get(gold_key))
            candidates.append(Candidate(comparison, kind, preferred, trail.meta))
    return Candidates(candidates, identical, empty, repeated)


def choose(
    candidates: Sequence[Candidate], budget: int | None, *, by: str = "random", seed: int = 0
) -> list[Candidate]:
    """Returns the comparisons of two answers that a judge will label, at most `budget` of them.

    Args:
        budget: maximum number of candidates to choose; None takes all.
        by: "random" draws evenly; "uncertain" takes the candidates that the model is least sure of.
        seed: seed of the draw, and of the order among equally uncertain candidates. A candidate's place depends on the
            seed and its own texts only, not on the other candidates.

    Raises:
        ConfigError: an unknown `by`, a budget below 1, or "uncertain" without any model confidence.
    """
    if by not in CHOICES:
        fix = did_you_mean(by, CHOICES)
        raise ConfigError(f"{by!r}", where="choose", expected="one of " + ", ".join(CHOICES), fix=fix)
    if budget is not None and budget < 1:
        raise ConfigError(f"{budget}", where="labels", expected="at least 1")
    if by == "uncertain" and candidates and all(each.preferred is None for each in candidates):
        fix = "sample with --reference, or choose at random"
        raise ConfigError("the trails have no confidence of the model", where="choose", fix=fix)
    ordered = sorted(candidates, key=lambda each: (_margin(each) if by == "uncertain" else 0.0, _lot(each, seed)))
    return ordered[:budget]


def _comparisons(trails: list[Trail], kinds: Sequence[str]) -> Iterator[tuple[Trail, str, str, str, float | None]]:
    """Yields (trail, kind, earlier text, later text, model's confidence in the later text) for each comparison."""
    for trail in trails:
        for k, answer in enumerate(trail.answers[1:], 1):
            before = trail.after(k - 1)
            kind = "draft-revision" if before is trail.answers[0] else "revision-revision"
            if kind in kinds:
                yield trail, kind, before.text, answer.text, answer.preferred
    if "draft-draft" in kinds:
        samples: dict[str, list[Trail]] = {}
        for trail in trails:
            samples.setdefault(_context(trail), []).append(trail)
        for same in samples.values():
            for one, other in itertools.combinations(same, 2):
                yield one, "draft-draft", one.answers[0].text, other.answers[0].text, None


def _context(trail: Trail) -> str:
    """Hashable key of a trail's prompt and chat-template options; trails with equal keys answer the same prompt."""
    options = [trail.meta.get(key) for key in ("tools", "chat_template_kwargs")]
    return json.dumps([trail.prompt, *options], sort_keys=True)


def _margin(candidate: Candidate) -> float:
    """Distance of the model's confidence in a candidate from ½; infinite if the candidate has no confidence."""
    return abs(candidate.preferred - 0.5) if candidate.preferred is not None else float("inf")


def _lot(candidate: Candidate, seed: int) -> bytes:
    """Sort key that puts candidates in a random order: a hash of the candidate's texts and the seed."""
    pair = candidate.comparison
    return hashlib.sha256(json.dumps([seed, pair.prompt, pair.first, pair.second]).encode()).digest()
