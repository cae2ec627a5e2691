"""Trails in a terminal and on a page: changes are marked, and no text of a user becomes markup."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from srpo import Trail
from srpo.report.trail_page import as_page, as_text, write_page
from srpo.revise.trail import Answer
from srpo.revise.trail_files import located_trails

TRAIL = Trail(
    [{"role": "user", "content": "What is <b>2+2</b>? [bold]"}],
    (Answer("It is 5.", 4), Answer("It is 4.", 4, preferred=0.93), Answer("It is 4!", 4, preferred=0.21, kept=False)),
    "worse",
)


def test_in_a_terminal() -> None:
    console = Console(file=(out := io.StringIO()), width=100, force_terminal=True, color_system="standard")
    console.print(as_text(TRAIL))
    said = out.getvalue()
    assert "What is <b>2+2</b>? [bold]" in said
    assert "\x1b[9;31m5" in said  # struck through, red
    assert "\x1b[1;32m4" in said  # bold, green
    assert "p 0.21, not kept, 4 tokens" in said
    assert "stopped: worse" in said
    assert "It is [-5-]{+4+}." in as_text(TRAIL, marks=True).plain


def test_the_page_escapes_texts_and_marks_changes(tmp_path: Path) -> None:
    page = as_page([TRAIL], "a & b")
    assert "<title>a &amp; b</title>" in page
    assert "What is &lt;b&gt;2+2&lt;/b&gt;?" in page
    assert "<b>" not in page
    assert "It is <del>5</del><ins>4</ins>." in page
    assert page.count('class="refused"') == 1
    (tmp_path / "trails.jsonl").write_text(TRAIL.to_json() + "\n" + TRAIL.to_json() + "\n", "utf-8")
    write_page(tmp_path / "page.html", [trail for _, trail in located_trails(tmp_path / "trails.jsonl")], "t")
    assert "2 prompts; revisions changed the answer to 2 of them" in (tmp_path / "page.html").read_text("utf-8")
