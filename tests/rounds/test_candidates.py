"""Which comparisons a file of trails holds, and which of them are asked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from srpo.errors import ConfigError
from srpo.revise.trail import Answer, Trail
from srpo.rounds.candidates import KINDS, Candidate, choose, find, kinds_of


def trail(*texts: str, prompt: str = "p", kept: tuple[bool, ...] = (), preferred: float | None = None) -> Trail:
    answers = [Answer(text, 1) for text in texts]
    for k, keep in enumerate(kept, 1):
        answers[k] = replace(answers[k], kept=keep)
    if preferred is not None:
        answers[1:] = [replace(answer, preferred=preferred) for answer in answers[1:]]
    return Trail(prompt, tuple(answers), meta={"gold": "g"})


def told(candidates: list[Candidate]) -> list[tuple[str, str, str]]:
    return [(each.kind, each.comparison.first, each.comparison.second) for each in candidates]


def test_each_revision_is_compared_with_its_predecessor() -> None:
    assert told(find([trail("a", "b", "c")], KINDS).candidates) == [
        ("draft-revision", "a", "b"),
        ("revision-revision", "b", "c"),
    ]
    # b was not kept, so c is a revision of a again.
    refused = find([trail("a", "b", "c", kept=(False, True))], KINDS)
    assert told(refused.candidates) == [("draft-revision", "a", "b"), ("draft-revision", "a", "c")]


def test_drafts_are_compared_within_one_prompt() -> None:
    trails = [trail("a"), trail("b"), trail("x", prompt="q"), trail("c")]
    assert told(find(trails, ["draft-draft"]).candidates) == [
        ("draft-draft", "a", "b"),
        ("draft-draft", "a", "c"),
        ("draft-draft", "b", "c"),
    ]
    with_tools = replace(trail("d"), meta={"tools": [{"name": "t"}]})  # shown tools, it was another question
    assert find([trail("a"), with_tools], ["draft-draft"]).candidates == []


def test_only_requested_kinds_are_found() -> None:
    assert {kind for kind, *_ in told(find([trail("a", "b", "c")], ["revision-revision"]).candidates)} == {
        "revision-revision"
    }


def test_identical_and_repeated_comparisons_are_counted() -> None:
    found = find([trail("a", "a"), trail("a", "b"), trail("b", "a"), trail("a", "b", prompt="q")], ["draft-revision"])
    assert told(found.candidates) == [("draft-revision", "a", "b"), ("draft-revision", "a", "b")]
    assert [each.comparison.prompt for each in found.candidates] == ["p", "q"]
    assert (dict(found.identical), found.repeated) == ({"draft-revision": 1}, 1)


def test_empty_answers_are_not_labelled() -> None:
    found = find([trail("a", " ", "b"), trail("", "")], KINDS)
    assert (found.candidates, found.empty, sum(found.identical.values())) == ([], 3, 1)  # draft-draft is the third


def test_the_gold_answer_is_passed_to_the_judge() -> None:
    assert find([trail("a", "b")], KINDS).candidates[0].comparison.gold == "g"


def many(count: int = 30) -> list[Candidate]:
    return find([trail("a", "b", prompt=str(n), preferred=n / count) for n in range(count)], KINDS).candidates


def test_the_choice_does_not_depend_on_the_order() -> None:
    candidates = many()
    drawn = choose(candidates, 10, seed=1)
    assert choose(candidates[::-1], 10, seed=1) == drawn
    assert choose(candidates, 10, seed=2) != drawn
    assert choose(candidates, 20, seed=1)[:10] == drawn  # more labels, the same ones first
    assert sorted(map(id, choose(candidates, None))) == sorted(map(id, candidates))


def test_a_random_choice_is_uniform_over_the_file() -> None:
    """Each of 30 candidates is drawn in a third of 300 draws: between 64 and 139 times but for 1 in 10^4 runs."""
    candidates = many()
    drawn = list(itertools.chain(*(map(id, choose(candidates, 10, seed=seed)) for seed in range(300))))
    counts = [drawn.count(id(each)) for each in candidates]
    assert 64 < min(counts) <= max(counts) < 139


def test_uncertain_takes_the_least_certain_comparisons() -> None:
    candidates = many()
    assert sorted(each.preferred for each in choose(candidates, 3, by="uncertain")) == [14 / 30, 0.5, 16 / 30]
    unknown = find([trail("a", "b"), trail("c", "d", prompt="q", preferred=9.0)], KINDS).candidates
    assert [each.preferred for each in choose(unknown, 2, by="uncertain")] == [9.0, None]  # not told is last


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'draft-draft'"):
        kinds_of("draft-drafts")
    with pytest.raises(ConfigError, match="no kind of comparison"):
        kinds_of(" , ")
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        choose(many(), 3, by="randon")
    with pytest.raises(ConfigError, match="at least 1"):
        choose(many(), 0)
    with pytest.raises(ConfigError, match="sample with --reference"):
        choose(find([trail("a", "b")], KINDS).candidates, 1, by="uncertain")
