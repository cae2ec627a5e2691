"""The small figures of the report: win rate against the system's own draft, score against cost, length of the answers.

Each figure shows all seeds pooled, in the colours and the frame of srpo/report/curves.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from srpo.report.curves import FAINT, INK, colours, lay_out, on_page, page_figure
from srpo.score.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["wins", "tokens", "seconds", "length"]


class Figure(NamedTuple):
    """Definition of one kind of small figure in the report: title and axis labels."""

    kind: Kind
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
    """One system's points in a small figure, by number of revisions; `band` has the ends of intervals, or is None."""

    system: str
    x: list[float]
    y: list[float]
    band: tuple[list[float], list[float]] | None


def figure_svg(results: Results, split: str, temperature: float | None, figure: Figure) -> str:
    """Returns one small figure as an `<svg>` element for the report; "" if no system has data for it."""
    lines = [line for name in results.drawn if (line := _line(results, name, split, temperature, figure.kind))]
    if not lines:
        return ""
    with page_figure(f"srpo {figure.kind} {split} {temperature}", width=4.6, height=3.1) as (drawing, axis):
        _plot(axis, results, lines, figure.kind)
        measure = results.label(results.settings.get("judge", "score"))
        axis.set_xlabel(figure.x)
        axis.set_ylabel(figure.y.format(measure=measure, unit=results.settings.get("unit", "words")))
        lay_out(drawing)
        return on_page(drawing, f"{figure.title}, {results.label(split)}")


def _line(results: Results, system: str, split: str, temperature: float | None, kind: Kind) -> Line | None:
    if kind == "wins":
        rates = results.rate(system, "draft", split, temperature)
        if not any(row["controlled"] is not None for row in rates):  # no controlled rate: every answer equals its draft
            return None
        low, high = ([100 * row[end] for row in rates] for end in ("low", "high"))
        return Line(system, [float(row["revision"]) for row in rates], [100 * row["win"] for row in rates], (low, high))
    rows = results.curve(system, split, temperature)
    if kind == "length":
        k = [float(row["revision"]) for row in rows]
        return Line(system, k, [row["length"] for row in rows], None) if rows else None
    costs = [cost for row in rows if (cost := row[kind]) is not None]
    if not rows or len(costs) < len(rows):
        return None
    return Line(system, costs, [100 * row["mean"] for row in rows], None)


def _plot(axis: Axes, results: Results, lines: Sequence[Line], kind: Kind) -> None:
    colour = colours(results)
    for line in sorted(lines, key=lambda each: each.system == results.highlight):
        main, shade = line.system == results.highlight, colour[line.system]
        if line.band:
            axis.fill_between(line.x, *line.band, color=shade, alpha=0.16 if main else 0.09, linewidth=0)
        width, size = (2.4, 4.6) if main else (1.3, 3)
        axis.plot(line.x, line.y, color=shade, linewidth=width, marker="o", markersize=size)
    if kind == "wins":
        axis.axhline(50, color=INK, linewidth=0.7, dashes=(3, 3))
    if kind in ("wins", "length"):
        axis.set_xticks(range(int(max(line.x[-1] for line in lines)) + 1))
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.05, y=0.12)
