"""Curves: labels do not overlap, files have their format, and figures fit into a page."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo.report.curves import PAGE, colours, draw, panel_svg, spread
from srpo.report.page_tables import tables
from srpo.score.results import POOL, Results
from tests.evaluate import samples

LABELS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=7)


@pytest.fixture(scope="module")
def results() -> Results:
    return samples.results(prompts=20, temperatures=(0.0, 0.7))


@given(LABELS, st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_labels_move_by_the_least_squares(labels: list[tuple[int, int]], steps: list[int]) -> None:
    places, heights = sorted(float(place) for place, _ in labels), [float(height) for _, height in labels]

    def fits(at: list[float]) -> bool:
        ends = zip(at, heights, strict=True)
        edges = [(place - height / 2, place + height / 2) for place, height in ends]
        return all(below[1] <= above[0] + 1e-9 for below, above in pairwise(edges))

    def moved(at: list[float]) -> float:
        return sum((new - old) ** 2 for new, old in zip(at, places, strict=True))

    found = spread(places, heights)
    assert fits(found)
    if fits(places):
        assert found == pytest.approx(places)
    # Any other arrangement that fits moves the names at least as far.
    other, edge = [], float(steps[-1]) - 20
    for height, step in zip(heights, steps, strict=False):
        other.append(edge + step + height / 2)
        edge = other[-1] + height / 2
    assert fits(other)
    assert moved(found) <= moved(other) + 1e-6


def test_the_readme_figure(results: Results) -> None:
    png, svg = draw(results, "png"), draw(results, "svg")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png[16:20]) == (1800,)  # twice the 900 it is shown at
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert draw(results, "svg") == svg
    assert draw(results, "svg", temperature=0.7) != svg
    assert draw(results, "svg", seed=1) != svg


def test_panels_have_unique_ids_and_no_style(results: Results) -> None:
    panels = [panel_svg(results, split, 0.0, seed) for split in ("in", "out") for seed in (POOL, 0, 1)]
    ids = [re.findall(r' id="([^"]*)"', panel) for panel in panels]
    flat = [name for names in ids for name in names]
    assert len(flat) == len(set(flat)), "two figures of a page share an id"
    for panel, names in zip(panels, ids, strict=True):
        ElementTree.fromstring(panel)
        assert set(re.findall(r'(?:href="|url\()#([\w.]+)', panel)) == set(names)
        assert "<style" not in panel
        assert "DejaVu" not in panel
        for colour in PAGE:  # only as the fallback of a variable
            assert panel.count(colour) == panel.count(f", {colour})")
        texts = " ".join(
            "".join(text.itertext()) for text in ElementTree.fromstring(panel).iter() if "text" in text.tag
        )
        assert all(system in texts for system in samples.SYSTEMS)


def test_labels_are_escaped_in_figures() -> None:
    hostile = '<script>"&amp;'
    results = samples.results(prompts=5, seeds=1)
    results.labels["in"] = hostile
    results.labels["SRPO"] = hostile
    svg = ElementTree.fromstring(panel_svg(results, "in", 0.0))
    assert svg.attrib["aria-label"] == f"{hostile}, temperature 0"
    assert any("".join(each.itertext()) == hostile for each in svg.iter())
    assert not any(each.tag.endswith("script") for each in svg.iter())


def test_every_system_has_a_colour_of_its_own(results: Results) -> None:
    assert list(colours(results)) == ["SRPO", "DPO", "base"]
    assert len(set(colours(results).values())) == 3


def test_a_figure_shows_only_the_chosen_systems(results: Results) -> None:
    some = replace(results, settings={**results.settings, "curves": ["base", "SRPO"]})
    panel = panel_svg(some, "in", 0.0)
    assert [system in panel for system in samples.SYSTEMS] == [True, False, True]
    assert list(colours(some)) == ["SRPO", "base"]
    lines = tables(some, "in", 0.0, POOL, {}, "")[0]["lines"]
    assert {line["system"]: line["colour"] for line in lines} == {"SRPO": "s0", "base": "s1", "DPO": "rule"}


def test_labels_stay_within_the_figure() -> None:
    assert spread([9.0, 10.0], [4.0, 4.0], 0.0, 10.0) == [4.0, 8.0]
    assert spread([0.0, 10.0], [4.0, 4.0], 0.0, 10.0) == [2.0, 8.0]
    assert spread([5.0, 5.0], [8.0, 8.0], 0.0, 10.0) == [4.0, 12.0]  # too many: over the top


def test_constant_scores_can_be_drawn(results: Results) -> None:
    flat = samples.results(prompts=3, seeds=1, revisions=0)
    assert draw(flat, "png")[:4] == b"\x89PNG"
