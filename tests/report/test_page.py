"""The page is one file that loads nothing, shows every number and escapes every text; the terminal's table."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from srpo.errors import OutputError
from srpo.report.cases import sample_cases
from srpo.report.page import render, write_evaluation
from srpo.report.text_table import as_markdown, print_table
from srpo.revise.trail import Answer, Trail
from srpo.score.pooling import grouped
from srpo.score.results import Results
from srpo.score.results_file import as_csv, as_json
from srpo.score.scores import score
from srpo.score.summary import summarise, usual_questions
from tests.evaluate import samples
from tests.evaluate.samples import JUDGES

HOSTILE = "</script><script>alert('x')</script> \"' & <img src=http://x.y/z.png>"
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """A page's tags, what it would load, its text, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name, value in attrs:
            link = name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "formaction")
            if link and not (value or "").startswith("#"):
                self.loads.append(f"{tag} {name}={value}")
            if name == "style" and re.search(r"url\((?!#)", value or ""):
                self.loads.append(f"{tag} style={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style" and re.search(r"@import|url\(", data):
            self.loads.append(data)
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\u00a0", " ").split())

    def count(self, tag: str, **wanted: str) -> int:
        found = [
            {key.removeprefix("data-"): value for key, value in attrs.items()} for t, attrs in self.tags if t == tag
        ]
        return sum(all(attrs.get(key) == value for key, value in wanted.items()) for attrs in found)


@pytest.fixture(scope="module")
def page() -> Page:
    scored = samples.scored(prompts=60, temperatures=(0.0, 0.7))
    results = samples.results(prompts=60, temperatures=(0.0, 0.7))
    run = {"command": "srpo demo", "seconds": {"base_model": 61.23456}, "seeds": [0, 1]}
    return Page(render(results, title="Sums", samples=sample_cases(scored, "SRPO", count=2), run=run))


def test_the_page_loads_no_external_resource(page: Page) -> None:
    assert page.loads == []
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize(
    "line",
    [
        "<script src=https://a.b/c.js></script>",
        '<link rel="stylesheet" href="a.css">',
        "<style>@import 'a.css';</style>",
        '<p style="background: url(a.png)"></p>',
    ],
)
def test_control_external_resources_are_detected(line: str) -> None:
    assert len(Page(line).loads) == 1


def test_the_page_shows_every_split_temperature_and_seed(page: Page) -> None:
    # 2 splits × 2 temperatures × (2 seeds and the pool), and of each place win rate against the draft and length;
    # 7 measures, since nobody counted tokens or seconds, and for the pool the win rate against the draft
    assert page.count("figure") == 12 + 8
    for seed in ("0", "1", "pool"):
        for split in ("0", "1"):
            for at in ("0", "1"):
                assert page.count("figure", split=split, heat=at, seed=seed) == 1
                assert page.count("section", split=split, heat=at, seed=seed) == 7 + (seed == "pool")
    for name in ("split", "heat", "seed", "measure"):
        assert page.count("input", name=name) == {"split": 3, "heat": 2, "seed": 3, "measure": 8}[name]


def test_the_page_shows_every_sentence_and_number(page: Page) -> None:
    results = samples.results(prompts=60, temperatures=(0.0, 0.7))
    for comparison in results.comparisons:
        assert comparison.sentence(results.labels, results.level) in page.text
    for row in results.rows:
        assert f"{100 * row['mean']:.1f} {100 * row['low']:.1f}–{100 * row['high']:.1f}" in spaced(page)
    assert "command srpo demo" in spaced(page)
    assert "seconds · base model 61.23" in spaced(page)
    assert "seeds 0, 1" in spaced(page)


def spaced(page: Page) -> str:
    return " ".join(" ".join(page.texts).split())


def hostile_results() -> tuple[Results, list[Any]]:
    answers = (Answer(HOSTILE, 1), Answer("right", 1))
    rows = [Trail(f"{i} {HOSTILE}", answers, meta={"gold": "right"}) for i in range(4)]
    scored = score({(0, HOSTILE, HOSTILE, None): rows}, {HOSTILE: JUDGES["exact_match"]})
    questions = usual_questions(grouped(scored), HOSTILE)
    return summarise(grouped(scored), questions, resampling=samples.QUICK), sample_cases(scored, HOSTILE)


def test_every_text_is_escaped() -> None:
    results, cases = hostile_results()
    page = Page(render(results, title=HOSTILE, samples=cases, run={HOSTILE: {HOSTILE: HOSTILE}}))
    assert page.loads == []
    assert page.count("script") == 1
    assert page.count("img") == 0
    shown = " ".join(HOSTILE.split())
    for where in ("title", "h1"):
        assert page.count(where) == 1
    assert page.text.count(shown) >= 10


def test_filters_with_one_choice_are_left_out() -> None:
    results, cases = hostile_results()
    page = Page(render(results, title="t", samples=cases))
    assert {attrs["name"] for tag, attrs in page.tags if tag == "input"} == {"measure", "outcome", "words"}
    assert page.count("figure") == 3
    assert page.count("figure", seed="pool") == 1


def test_an_evaluation_writes_all_files(tmp_path: Path) -> None:
    results = samples.results(prompts=10)
    report = write_evaluation(tmp_path / "a" / "b", results, title="t")
    assert report == tmp_path / "a" / "b" / "report.html"
    names = {"report.html", "results.json", "results.csv", "wins.csv", "table.md", "curve.png", "curve.svg"}
    assert {path.name for path in report.parent.iterdir()} == names
    assert report.read_text("utf-8") == render(results, title="t")  # rendering again gives the same page
    assert (report.parent / "results.json").read_text("utf-8") == as_json(results)
    assert (report.parent / "results.csv").read_text("utf-8") == as_csv(results.rows)
    assert json.loads((report.parent / "results.json").read_text("utf-8"))["highlight"] == "SRPO"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--output_dir"):
        write_evaluation(tmp_path / "file", results, title="t")


def test_the_table_fits_100_columns_and_stars_the_best() -> None:
    cells = samples.cells(prompts=60, revisions=5)
    cells |= {(seed, "base, best of k+1 drafts", *rest): rows for (seed, *rest), rows in by_base(cells)}
    results = summarise(grouped(score(cells, JUDGES)), resampling=samples.QUICK)
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(results, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for system in results.values("system"):
        for split in ("in", "out"):
            rows = results.curve(system, split, 0.0)
            cells_shown = [f"{100 * r['mean']:.1f} ±{50 * (r['high'] - r['low']):.1f}" for r in rows]
            best = max(range(6), key=lambda k: rows[k]["mean"])
            if rows[best]["mean"] > min(row["mean"] for row in rows):
                cells_shown[best] = f"*{cells_shown[best]}"
            assert re.search(r" +".join(map(re.escape, [system, *cells_shown])), text)


def test_a_narrow_terminal_still_shows_names_and_every_column() -> None:
    results = samples.results(revisions=5)
    results.labels["base"] = "a base with a name of several words"
    for width in (75, 80):
        console = Console(width=width, record=True, file=io.StringIO())
        print_table(results, console)
        words = console.export_text().split()
        assert {"several", "words"} <= {*words}
        for row in results.rows:
            assert row["seed"] != "pool" or f"{100 * row['mean']:.1f}" in " ".join(words).replace("*", "").split()


def by_base(cells: Any) -> list[Any]:
    return [((seed, split, at), rows) for (seed, system, split, at), rows in cells.items() if system == "base"]


def test_the_markdown_table_equals_the_rows() -> None:
    results = samples.results()
    place = next((row["split"], row["temperature"]) for row in results.rows)
    line = next(line for line in as_markdown(results).splitlines() if line.startswith("| **"))
    means = [cell.strip().lstrip("*").split(" ±")[0] for cell in line.strip("|").split("|")[1:]]
    assert means == [f"{100 * row['mean']:.1f}" for row in results.curve(results.highlight, *place)]
