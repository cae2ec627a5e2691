"""Curves of score against number of revisions: one line per system, with its interval as a band.

Colours are those of Okabe and Ito, darkened where they are faint on white. Every line is named at its end, so that the
figure can be read without telling colours apart. The highlighted system is drawn last, with the thickest line, and with
a thin line for each of its seeds.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from srpo.score.results import POOL, Results, Row, capital, heat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGHLIGHT = "#0072b2"
OTHERS = ("#c44e00", "#00805c", "#a8457e", "#8a6d00", "#5f5f5f", "#2f8ec4")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (2, 1.5)))
INK, FAINT, PAPER = "#222222", "#dddddd", "#ffffff"
# colour → CSS variable of the page; the variable has another value on a dark screen
PAGE = {INK: "ink", FAINT: "rule", HIGHLIGHT: "s0", **{colour: f"s{i}" for i, colour in enumerate(OTHERS, 1)}}
LEAST_SPAN = 0.04  # smallest range of the y axis, as a share, so that noise does not fill a panel
NAME_WIDTH = 16  # letters per line of a system's name at the end of its curve

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.solid_capstyle": "round",
}


def draw(
    results: Results, kind: Literal["png", "svg"], *, temperature: float | None = None, seed: int | str = POOL
) -> bytes:
    """Returns the bytes of an image of the scores against the number of revisions, one panel per split, on white.

    Args:
        results: results with at least one row.
        kind: format of the file.
        temperature: temperature to draw; None takes the first one in `results`.
        seed: a seed, or `POOL` for all seeds pooled.
    """
    import matplotlib
    from matplotlib.figure import Figure

    at = results.values("temperature")[0] if temperature is None else temperature
    splits = list(
        dict.fromkeys(row["split"] for row in results.rows if (row["temperature"], row["seed"]) == (at, seed))
    )
    # A fixed salt of ids and no date, so that the same numbers give the same file.
    style: Any = {**_STYLE, "svg.hashsalt": "srpo"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, _height(results, 4.1)), facecolor=PAPER)
        axes = figure.subplots(1, len(splits), squeeze=False)[0]
        for axis, split in zip(axes, splits, strict=True):
            _panel(axis, results, split, at, seed)
            axis.set_title(capital(results.label(split)), loc="left", weight="bold", fontsize=10.5)
        figure.supxlabel(_small_print(results, at, seed), x=0.01, ha="left", fontsize=8.5)
        _name_lines(figure, axes, margin=0.12)
        return _saved(figure, kind)


def panel_svg(results: Results, split: str, temperature: float | None, seed: int | str = POOL) -> str:
    """Returns the curves of score against number of revisions of one split as an `<svg>` element for the report.

    Args:
        seed: a seed, or `POOL` for all seeds pooled.
    """
    with page_figure(f"srpo {split} {temperature} {seed}", width=5, height=_height(results, 3.7)) as (figure, axis):
        _panel(axis, results, split, temperature, seed)
        _name_lines(figure, [axis])
        return on_page(figure, f"{capital(results.label(split))}, {heat(temperature)}")


@contextmanager
def page_figure(salt: str, *, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Context that yields an empty matplotlib figure with transparent background, and its axes.

    In its SVG, text stays text instead of outlines.

    Args:
        salt: a text of the figure's own, so that its ids differ from those of other figures on the page.
        width, height: size of the figure in inches, 72 SVG units each.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": salt, "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), facecolor="none")
        axis = figure.subplots()
        axis.set_facecolor("none")
        yield figure, axis


def colours(results: Results) -> dict[str, str]:
    """Returns system → its colour in the figures, as "#rrggbb"; the highlighted system has a colour of its own."""
    others = [system for system in results.drawn if system != results.highlight]
    return {results.highlight: HIGHLIGHT} | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _small_print(results: Results, temperature: float | None, seed: int | str) -> str:
    parts = [] if temperature is None else [heat(temperature)]
    parts.append(f"bands are {100 * results.level:g} % intervals over prompts")
    if seed != POOL:
        parts.append(f"seed {seed}")
    elif len(results.seeds) > 1 and results.highlight not in results.drawn:
        parts.append(f"{len(results.seeds)} seeds pooled")
    elif len(results.seeds) > 1:
        parts.append(
            f"{len(results.seeds)} seeds pooled; thin lines are the seeds of {results.label(results.highlight)}"
        )
    return "; ".join(parts)


def _panel(axis: Axes, results: Results, split: str, temperature: float | None, seed: int | str) -> None:
    curves = results.curves(split, temperature, seed)
    shown = {name: curves[name] for name in results.drawn if name in curves}
    colour = colours(results)
    order = sorted(shown, key=lambda system: system == results.highlight)
    others = [system for system in colour if system != results.highlight]
    for system in order:
        rows, main = shown[system], system == results.highlight
        dashes = DASHES[0] if main else DASHES[others.index(system) // len(OTHERS) % len(DASHES)]
        k = [row["revision"] for row in rows]
        low, high = [100 * row["low"] for row in rows], [100 * row["high"] for row in rows]
        axis.fill_between(k, low, high, color=colour[system], alpha=0.18 if main else 0.1, linewidth=0)
        (line,) = axis.plot(k, _means(rows), color=colour[system], linestyle=dashes, linewidth=2.6 if main else 1.4)
        line.set_marker("o")
        line.set_markersize(5 if main else 3.2)
        axis.annotate(
            textwrap.fill(results.label(system), NAME_WIDTH),
            (k[-1], _means(rows)[-1]),
            xytext=(13, 0),
            textcoords="offset points",
            color=colour[system],
            va="center",
            weight="bold" if main else "normal",
            annotation_clip=False,
        )
        if main and seed == POOL and len(results.seeds) > 1:
            for each in results.seeds:
                if single := results.curve(system, split, temperature, each):
                    axis.plot(k, _means(single), color=colour[system], linewidth=0.7, alpha=0.55)
    axis.set_xlabel("revisions k (0 is the draft)")
    axis.set_ylabel(f"{results.label(results.settings.get('judge', 'score'))}, %")
    axis.set_xticks(range(max(row["revision"] for rows in shown.values() for row in rows) + 1))
    axis.margins(x=0.03)
    bottom, top = axis.get_ylim()
    spare = max(0.0, 100 * LEAST_SPAN - (top - bottom)) / 2
    axis.set_ylim(max(bottom - spare, -1), min(top + spare, 101))
    axis.locator_params(axis="y", nbins=7, steps=[1, 2, 5, 10])
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)


def _means(rows: Sequence[Row]) -> list[float]:
    return [100 * row["mean"] for row in rows]


def _height(results: Results, least: float) -> float:
    """Height of a figure in inches, `least` or more: the name of every drawn system takes a line at its edge."""
    return max(least, least + 0.3 * (len(results.drawn) - 10))


def _name_lines(figure: Figure, axes: Sequence[Axes], margin: float | None = None) -> None:
    """Moves overlapping names at the line ends apart; a thin line connects a moved name with its line end."""
    from matplotlib.text import Annotation

    lay_out(figure, margin)
    scale, fits = 72 / figure.dpi, True
    for axis in axes:
        names = sorted((text for text in axis.texts if isinstance(text, Annotation)), key=lambda text: text.xy[1])
        ends = [axis.transData.transform(text.xy)[1] * scale for text in names]
        heights = [1.15 * text.get_window_extent().height * scale for text in names]
        box = axis.get_window_extent()
        places = spread(ends, heights, box.y0 * scale, box.y1 * scale)
        fits &= sum(heights) <= box.height * scale
        for text, end, place in zip(names, ends, places, strict=True):
            text.set_position((13, place - end))
            if abs(place - end) > 2:
                axis.annotate(
                    "",
                    text.xy,
                    xytext=(12, place - end),
                    textcoords="offset points",
                    arrowprops={"arrowstyle": "-", "color": text.get_color(), "linewidth": 0.6, "shrinkB": 4},
                    annotation_clip=False,
                )
    if not fits:  # names above the axes need room of their own
        lay_out(figure, margin)


def lay_out(figure: Figure, margin: float | None = None) -> None:
    """Computes the places of axes and labels in a figure once; matplotlib's own engine would run at every save.

    Args:
        margin: inches at each side of the axes; None takes matplotlib's.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ConstrainedLayoutEngine(w_pad=margin).execute(figure)


def spread(
    places: Sequence[float], heights: Sequence[float], bottom: float = float("-inf"), top: float = float("inf")
) -> list[float]:
    """Moves labels along an axis until they do not overlap, with the least sum of squared moves; returns the centres.

    Args:
        places, heights: centre and height of each label, the centres ascending.
        bottom, top: limits of the labels; labels that do not fit exceed the top.

    Example:
        >>> spread([0.0, 10.0, 11.0, 12.0], [4.0, 4.0, 4.0, 4.0])
        [0.0, 7.0, 11.0, 15.0]
    """
    # With the heights below each label subtracted, places must only ascend: isotonic regression by merging groups.
    stack = [sum(heights[:i]) + heights[i] / 2 for i in range(len(heights))]
    groups: list[tuple[float, int]] = []
    for place, below in zip(places, stack, strict=True):
        total, count = place - below, 1
        while groups and groups[-1][0] / groups[-1][1] > total / count:
            before, more = groups.pop()
            total, count = total + before, count + more
        groups.append((total, count))
    # Limits on all labels are limits on the level of each group, so clipping still gives the least squares.
    levels = [(max(bottom, min(total / count, top - sum(heights))), count) for total, count in groups]
    ground = [level for level, count in levels for _ in range(count)]
    return [below + level for below, level in zip(stack, ground, strict=True)]


def _saved(figure: Figure, kind: str) -> bytes:
    picture = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(picture, format=kind, dpi=200, metadata=metadata, facecolor=figure.get_facecolor())
    return picture.getvalue()


def on_page(figure: Figure, title: str) -> str:
    """Returns a laid-out figure as an `<svg>` element that is safe on the report's page.

    Its title is escaped, its ids are unique, and it takes colours and fonts from the page.
    """
    svg = _saved(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Ids such as figure_1 repeat in every figure and nothing refers to them; the ids of clips are salted.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    # A style rule inside the figure would apply to the whole page; the page has the same rule for figures only.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    for colour, name in PAGE.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    # The page inserts the figure unescaped, so the title is escaped here.
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
