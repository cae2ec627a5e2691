"""Example trails: changes are marked, and the draw takes trails of the right outcome."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.report.cases import Segment, sample_cases, segments
from srpo.score.scores import score
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES
from tests.judge.pair_judges import Scripted, often_mute

WORDS = st.text("ab1 \n", max_size=12)


def shown(found: tuple[Segment, ...]) -> str:
    """Changed pieces in brackets, wrong ones after a tilde."""
    pieces = []
    for text, changed, wrong in found:
        piece = f"~{text}" if wrong else text
        pieces.append(f"[{piece}]" if changed else piece)
    return "".join(pieces)


@pytest.mark.parametrize(
    ("text", "before", "gold", "expected"),
    [
        ("0811", None, "0812", "081~1"),
        ("0811", "0911", "0812", "0[8]1~1"),
        ("1111", "1110", "1111", "111[1]"),
        ("1234", "2345", "1234", "[1234]"),  # by place: an alignment would call only the 1 new
        ("811", "0811", "0811", "811"),  # lengths differ: aligned, and no place to compare with gold
        ("90811", "0811", "0811", "[9]0811"),
        ("a red cat", "a cat", "a cat", "a [red ]cat"),
        ("a cat\n", "a cat", "a dog", "a cat\n"),  # added white space is not marked
        ("", "1", "1", ""),
    ],
)
def test_segments_worked_examples(text: str, before: str | None, gold: str, expected: str) -> None:
    assert shown(segments(text, before, gold)) == expected


@given(WORDS, st.none() | WORDS, WORDS)
def test_segments_keep_every_character(text: str, before: str | None, gold: str) -> None:
    found = segments(text, before, gold)
    assert "".join(segment.text for segment in found) == text
    if before is None or before == text:
        assert not any(segment.changed for segment in found)
    if text == gold:
        assert not any(segment.wrong for segment in found)


def test_samples_count_all_trails_and_show_some() -> None:
    cells = samples.cells(prompts=150)
    found = sample_cases(score(cells, JUDGES), "SRPO", count=4)
    assert [sample.outcome for sample in found] == ["mended", "broken", "best", "worst"] * 2
    for sample in found:
        if sample.outcome in ("best", "worst"):
            lasts = {case.steps[-1].score for case in sample.cases}
            assert lasts == {1.0 if sample.outcome == "best" else 0.0}
            continue
        sign = 1 if sample.outcome == "mended" else -1
        ended = {
            (seed, trail.prompt)
            for seed in (0, 1)
            for trail in cells[seed, "SRPO", sample.split, sample.temperature]
            if sign * ((trail.after(3).text == trail.meta["gold"]) - (trail.after(0).text == trail.meta["gold"])) > 0
        }
        assert (sample.count, sample.total) == (len(ended), 300)
        assert len(sample.cases) == min(4, len(ended))
        assert {(case.seed, case.prompt) for case in sample.cases} <= ended
        for case in sample.cases:
            first, last = case.steps[0], case.steps[-1]
            assert sign * (last.score - first.score) > 0
            assert (first.first, last.last) == (0, 3)
            # Every number of revisions belongs to one step, in order.
            assert [k for step in case.steps for k in range(step.first, step.last + 1)] == [0, 1, 2, 3]


def test_the_draw_depends_on_the_seed_alone() -> None:
    scored = samples.scored(prompts=150)
    assert sample_cases(scored, "SRPO", seed=1) == sample_cases(scored, "SRPO", seed=1)
    assert sample_cases(scored, "SRPO", seed=1) != sample_cases(scored, "SRPO", seed=2)


def test_a_system_that_never_revises_has_no_corrected_or_broken_answers() -> None:
    for sample in sample_cases(samples.scored(prompts=20), "base"):
        if sample.outcome in ("mended", "broken"):
            assert (sample.count, sample.cases) == (0, ())


def test_unscored_answers_have_no_outcome() -> None:
    scored = score(samples.cells(prompts=60, seeds=1), {"pairs": Scripted(often_mute)})
    for sample in sample_cases(scored, "SRPO", others=True, count=60):
        for case in sample.cases:
            assert case.prompt[-2] not in "02468" or case.steps[-1].score == 0.5  # identical to gold: unasked
