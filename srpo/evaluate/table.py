"""`Results` as tables for a terminal of 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srpo.evaluate.results import POOL, Results, Row, capital, counted, heat

if TYPE_CHECKING:
    from rich.console import Console

BEST = "*"


def print_table(results: Results, console: Console | None = None, *, seed: int | str = POOL) -> None:
    """Prints one table per split and temperature: systems down, revisions across, the best of a row starred.

    Args:
        results: what to print.
        console: where; standard output, if none is given.
        seed: a seed, or the pool.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console(highlight=False)
    pooled = f", {len(results.seeds)} seeds pooled" if seed == POOL and len(results.seeds) > 1 else ""
    measure = results.label(results.settings.get("judge", "score"))
    for split, temperature in dict.fromkeys((row["split"], row["temperature"]) for row in results.rows):
        curves = [results.curve(system, split, temperature, seed) for system in results.values("system")]
        shown = [rows for rows in curves if rows]
        if not shown:
            continue
        place = results.label(split) if temperature is None else f"{results.label(split)}, {heat(temperature)}"
        title = f"{capital(place)}: {measure}, % ({counted(shown)}{pooled})"
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("k =", overflow="fold")
        for row in max(shown, key=len):
            table.add_column(str(row["revision"]) if row["revision"] else "draft", justify="right", no_wrap=True)
        for rows in shown:
            main = rows[0]["system"] == results.highlight
            table.add_row(results.label(rows[0]["system"]), *_cells(rows), style="bold" if main else "")
        console.print(table)
    console.print(
        f"± is half of a {100 * results.level:g} % interval over prompts; {BEST} is the largest of its row.",
        style="dim",
    )


def _cells(rows: list[Row]) -> list[str]:
    means = [row["mean"] for row in rows]
    cells = []
    for place, row in enumerate(rows):
        star = BEST if min(means) < row["mean"] and place == means.index(max(means)) else ""
        cells.append(f"{star}{100 * row['mean']:.1f} ±{50 * (row['high'] - row['low']):.1f}")
    return cells
