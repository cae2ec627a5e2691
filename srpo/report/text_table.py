"""Tables of `Results` for a terminal of 100 columns, and in Markdown for a page or a model card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from srpo.score.results import POOL, Results, Row, capital, counted, heat
from srpo.statistics.percent import bare

if TYPE_CHECKING:
    from rich.console import Console

BEST = "*"
NAME_WIDTH = 14  # columns of the terminal reserved for names of systems
GAP = 3  # columns between two cells


def print_table(results: Results, console: Console | None = None, *, seed: int | str = POOL) -> None:
    """Prints scores in per cent: per split and temperature a table with a row per system and a column per revision.

    The best number of each row has a star.

    Args:
        console: console to print on; None prints to standard output.
        seed: a seed, or `POOL` for all seeds pooled.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    for title, curves in _tables(results, seed):
        # In a narrow terminal the interval moves below its number, so that no name or column is cut off.
        widths = (max(len(cell) for cell in column) for column in zip(*map(_cells, curves), strict=False))
        roomy = NAME_WIDTH + sum(GAP + width for width in widths) < console.width
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in _heading(curves):
            table.add_column(heading, justify="right", no_wrap=True)
        table.columns[0].justify, table.columns[0].no_wrap = "left", False
        for rows in curves:
            main = rows[0]["system"] == results.highlight
            cells = _cells(rows) if roomy else [cell.replace(" ", "\n") for cell in _cells(rows)]
            table.add_row(results.label(rows[0]["system"]), *cells, style="bold" if main else "")
        console.print(title, style="bold")  # a table's own title would wrap at the table's width
        console.print(table)
    console.print(_note(results), style="dim")


def as_markdown(results: Results, *, seed: int | str = POOL) -> str:
    """Returns the scores in per cent as Markdown tables: a row per system, a column per revision.

    Args:
        seed: a seed, or `POOL` for all seeds pooled.
    """
    lines: list[str] = []
    for title, curves in _tables(results, seed):
        heading = _heading(curves)
        lines += [f"{title}:", "", f"| {' | '.join(heading)} |", f"| --- |{' ---: |' * (len(heading) - 1)}"]
        for rows in curves:
            name = results.label(rows[0]["system"])
            name = f"**{name}**" if rows[0]["system"] == results.highlight else name
            lines.append(f"| {' | '.join([name, *_cells(rows)])} |")
        lines.append("")
    return "\n".join([*lines, _note(results), ""]).replace(BEST + " is", f"`{BEST}` is")


def _tables(results: Results, seed: int | str) -> Iterator[tuple[str, list[list[Row]]]]:
    """Yields, for each split and temperature, a title and one list per system of its rows by revision."""
    pooled = f", {len(results.seeds)} seeds pooled" if seed == POOL and len(results.seeds) > 1 else ""
    measure = results.label(results.settings.get("judge", "score"))
    for split, temperature in results.places:
        if curves := list(results.curves(split, temperature, seed).values()):
            place = results.label(split) if temperature is None else f"{results.label(split)}, {heat(temperature)}"
            yield f"{capital(place)}: {measure}, % ({counted(curves)}{pooled})", curves


def _heading(curves: list[list[Row]]) -> list[str]:
    return ["k =", *(str(row["revision"]) if row["revision"] else "draft" for row in max(curves, key=len))]


def _note(results: Results) -> str:
    return f"± is half of a {100 * results.level:g} % interval over prompts; {BEST} is the largest of its row."


def _cells(rows: list[Row]) -> list[str]:
    means = [row["mean"] for row in rows]
    cells = []
    for place, row in enumerate(rows):
        star = BEST if min(means) < row["mean"] and place == means.index(max(means)) else ""
        cells.append(f"{star}{bare(row['mean'])} ±{bare((row['high'] - row['low']) / 2)}")
    return cells
