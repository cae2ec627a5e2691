"""The demo's display: a line per stage with the time left, and trails as lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from srpo.revise.trail import Answer, Trail
from srpo.tasks.live import Board, Stage, as_lines, shown
from srpo.tasks.stages import Counts


def test_time_left_follows_the_mean_speed() -> None:
    stage = Stage("pairs")
    assert stage.line(0, 0, now=5.0).split() == ["pairs", "waiting"]
    assert "left" in stage.line(1, 100, now=10.0)
    assert stage.line(25, 100, now=20.0).endswith(" 10 s, 30 s left")
    assert stage.line(100, 100, now=50.0).endswith(" 40 s")
    assert stage.line(100, 100, now=90.0).endswith(" 40 s")  # the clock of a finished stage does not run on


def lines(*stages: str) -> list[str]:
    """The lines of a board whose first stage is half done."""
    counts = Counts(stages)
    counts[stages[0]] = (2, 4)
    console = Console(file=io.StringIO(), width=100)
    console.print(Board(counts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_board_leaves_the_only_seed_out() -> None:
    assert [line.split("  ")[0] for line in lines("seed 0: pairs", "seed 0: train srpo")] == ["pairs", "train srpo"]
    both = [line.split("  ")[0] for line in lines("seed 0: pairs", "seed 1: pairs")]
    assert both == ["seed 0: pairs", "seed 1: pairs"]


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_drawn_without_a_terminal(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with shown(Counts(["seed 0: pairs"]), console):
        pass
    assert isinstance(console.file, io.StringIO)
    assert bool(console.file.getvalue()) == terminal


def line(*answers: Answer, gold: str = "0811") -> str:
    (text,) = as_lines([Trail("2+2=", answers, meta={"gold": gold})])
    return text.plain


def test_a_trail_s_line_ends_with_its_last_change() -> None:
    draft, better = Answer("0911", 4), Answer("0811", 4, preferred=0.875)
    assert line(draft, better, better) == "2+2=  0911 → 0811 (p 0.88, revision 1)  right"
    assert line(draft, Answer("0711", 4, preferred=0.25, kept=False)) == (
        "2+2=  0911 → 0711 (p 0.25, refused 1)  wrong"
    )
    assert line(draft, draft, better) == "2+2=  0911 → 0811 (p 0.88, revision 2)  right"
    assert line(better, Answer("0711", 4)) == "2+2=  0811 → 0711 (revision 1)  wrong"


def test_changed_digits_alone_are_marked() -> None:
    (text,) = as_lines([Trail("2+2=", (Answer("0911", 4), Answer("0811", 4)), meta={"gold": "0811"})])
    bold = [text.plain[span.start : span.end] for span in text.spans if "bold" in str(span.style)]
    assert bold == ["8"]
