"""The smaller figures of the report: win rate against the own draft, score against cost, length of the answers.

All seeds together; colours and page as in plot.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from srpo.report.curves import FAINT, INK, colours, on_page, page_figure
from srpo.score.results import Results


class Figure(NamedTuple):
    """One kind of figure: what runs along each axis."""

    kind: Literal["wins", "tokens", "seconds", "length"]
    title: str
    x: str
    y: str


FIGURES = (
    Figure("wins", "Win rate against the own draft", "revisions k", "wins, ties as half, %"),
    Figure("tokens", "Score against cost in tokens", "forward tokens per prompt", "{measure}, %"),
    Figure("seconds", "Score against cost in seconds", "seconds per prompt", "{measure}, %"),
    Figure("length", "Length of the answers", "revisions k", "{unit} per answer"),
)


class Line(NamedTuple):
    """One system's points, in order of revision, with a band where there is one."""

    system: str
    x: list[float]
    y: list[float]
    band: tuple[list[float], list[float]] | None


def figure_svg(results: Results, split: str, temperature: float | None, what: Figure) -> str:
    """The figure as an `<svg>` for the page; "" where no system has anything to draw in it."""
    lines = [line for name in results.drawn if (line := _line(results, name, split, temperature, what.kind))]
    if not lines:
        return ""
    with page_figure(f"srpo {what.kind} {split} {temperature}", width=4.6, height=3.1) as (figure, axis):
        _plot(axis, results, lines, what.kind)
        words = {
            "measure": results.label(results.settings.get("judge", "score")),
            "unit": results.settings.get("unit", "words"),
        }
        axis.set_xlabel(what.x)
        axis.set_ylabel(what.y.format(**words))
        return on_page(figure, f"{what.title}, {results.label(split)}")


def _line(results: Results, system: str, split: str, temperature: float | None, kind: str) -> Line | None:
    if kind == "wins":
        rates = results.rate(system, "draft", split, temperature)
        if not any(row["controlled"] is not None for row in rates):  # it never stands against another text
            return None
        ends = [[100 * row[end] for row in rates] for end in ("low", "high")]
        k = [float(row["revision"]) for row in rates]
        return Line(system, k, [100 * row["win"] for row in rates], (ends[0], ends[1]))
    rows = results.curve(system, split, temperature)
    if kind == "length":
        k = [float(row["revision"]) for row in rows]
        return Line(system, k, [row["length"] for row in rows], None) if rows else None
    costs = [row[kind] for row in rows]  # type: ignore[literal-required]
    if not rows or any(cost is None for cost in costs):
        return None
    return Line(system, costs, [100 * row["mean"] for row in rows], None)


def _plot(axis: Any, results: Results, lines: Sequence[Line], kind: str) -> None:
    colour = colours(results)
    for line in sorted(lines, key=lambda each: each.system == results.highlight):
        main = line.system == results.highlight
        if line.band:
            axis.fill_between(line.x, *line.band, color=colour[line.system], alpha=0.16 if main else 0.09, linewidth=0)
        axis.plot(
            line.x,
            line.y,
            color=colour[line.system],
            linewidth=2.4 if main else 1.3,
            marker="o",
            markersize=4.6 if main else 3,
        )
    if kind == "wins":
        axis.axhline(50, color=INK, linewidth=0.7, dashes=(3, 3))
    if kind in ("wins", "length"):
        axis.set_xticks(range(int(max(line.x[-1] for line in lines)) + 1))
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.05, y=0.12)
