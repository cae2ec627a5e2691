"""Trails → comparisons worth a label: which two answers of the model's own could be ordered, and which of them are.

    draft-revision       an answer in hand against the first revision of it
    revision-revision    an answer that is a revision itself against the next one
    draft-draft          two drafts of the same prompt, where the file holds several

What a later revision starts from is seldom in anybody's data. A model trained only on others' pairs has never been
shown its own drafts, and its revisions of revisions are stranger still: the first two kinds put them there.
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
    """Two answers that a judge may be asked about.

    Attributes:
        comparison: the prompt and the two; the earlier one is `first`.
        kind: one of `KINDS`.
        preferred: the model's own p(second ≻ first), raw; None where it was not told.
        meta: what stood beside the prompt.
    """

    comparison: AnswerPair
    kind: str
    preferred: float | None
    meta: dict[str, Any]


class Found(NamedTuple):
    """Candidates, each once, and what was passed over.

    Attributes:
        candidates: in the order of the trails.
        identical: comparisons by kind whose two texts are one; no judge need say so.
        empty: comparisons with an empty answer, which cannot be trained on.
        repeated: comparisons that stand earlier in the list, whichever way round.
    """

    candidates: list[Candidate]
    identical: Counter[str]
    empty: int
    repeated: int


def kinds_of(names: str) -> tuple[str, ...]:
    """Kinds from a list with commas.

    Raises:
        ConfigError: none of that name, or none at all.

    Example:
        >>> kinds_of("draft-revision, draft-draft")
        ('draft-revision', 'draft-draft')
    """
    kinds = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in kinds:
        if name not in KINDS:
            expected, fix = "some of " + ", ".join(KINDS), did_you_mean(name, KINDS)
            raise ConfigError(f"{name!r}", where="ask", expected=expected, fix=fix)
    if not kinds:
        raise ConfigError("nothing to ask about", where="ask", expected="some of " + ", ".join(KINDS))
    return kinds


def find(trails: Iterable[Trail], kinds: Sequence[str], *, gold_key: str = "gold") -> Found:
    """Every comparison of these kinds that the trails hold.

    Args:
        gold_key: where in a trail's `meta` the gold answer stands, for judges that need one.

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
        if first == second:
            identical[kind] += 1
            continue
        if not (first.strip() and second.strip()):
            empty += 1
            continue
        key = (_asked(trail), frozenset((first, second)))
        if key in seen:
            repeated += 1
            continue
        seen.add(key)
        comparison = AnswerPair(trail.prompt, first, second, trail.meta.get(gold_key))
        candidates.append(Candidate(comparison, kind, preferred, trail.meta))
    return Found(candidates, identical, empty, repeated)


def choose(
    candidates: Sequence[Candidate], budget: int | None, *, by: str = "random", seed: int = 0
) -> list[Candidate]:
    """As many of them as there are labels to spend.

    Args:
        budget: labels; None takes all.
        by: "random" draws evenly; "uncertain" takes those first that the model itself is least sure of.
        seed: of the drawing, and of the order among equally uncertain ones. With it, what a candidate is decides its
            place, whatever stands beside it in the list.

    Raises:
        ConfigError: no such way, a budget below 1, or "uncertain" where no candidate has the model's own preference.
    """
    if by not in CHOICES:
        fix = did_you_mean(by, CHOICES)
        raise ConfigError(f"{by!r}", where="choose", expected="one of " + ", ".join(CHOICES), fix=fix)
    if budget is not None and budget < 1:
        raise ConfigError(f"{budget}", where="labels", expected="at least 1")
    if by == "uncertain" and candidates and all(each.preferred is None for each in candidates):
        fix = "sample with --reference, or choose at random"
        raise ConfigError("the trails do not tell the model's own preference", where="choose", fix=fix)
    ordered = sorted(candidates, key=lambda each: (_doubt(each) if by == "uncertain" else 0.0, _lot(each, seed)))
    return ordered[:budget]


def _comparisons(trails: list[Trail], kinds: Sequence[str]) -> Iterator[tuple[Trail, str, str, str, float | None]]:
    """(trail, kind, earlier text, later text, the model's own preference for the later)."""
    for trail in trails:
        for k, answer in enumerate(trail.answers[1:], 1):
            before = trail.after(k - 1)
            kind = "draft-revision" if before is trail.answers[0] else "revision-revision"
            if kind in kinds:
                yield trail, kind, before.text, answer.text, answer.preferred
    if "draft-draft" in kinds:
        samples: dict[str, list[Trail]] = {}
        for trail in trails:
            samples.setdefault(_asked(trail), []).append(trail)
        for same in samples.values():
            for one, other in itertools.combinations(same, 2):
                yield one, "draft-draft", one.answers[0].text, other.answers[0].text, None


def _asked(trail: Trail) -> str:
    """What the model was shown."""
    options = [trail.meta.get(key) for key in ("tools", "chat_template_kwargs")]
    return json.dumps([trail.prompt, *options], sort_keys=True)


def _doubt(candidate: Candidate) -> float:
    return abs(candidate.preferred - 0.5) if candidate.preferred is not None else float("inf")


def _lot(candidate: Candidate, seed: int) -> bytes:
    said = candidate.comparison
    return hashlib.sha256(json.dumps([seed, said.prompt, said.first, said.second]).encode()).digest()
