"""The tables of the report, one for each measure, and the tables of win rates; the numbers are computed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from srpo.report.curves import PAGE, colours
from srpo.score.results import POOL, Results, Row, WinRow, counted
from srpo.statistics.percent import bare, points

TableCell = dict[str, Any]
EMPTY: TableCell = {"text": "", "small": ""}


class Measure(NamedTuple):
    """Definition of one table of the report: name, note below the caption, function from a row of scores to a cell."""

    name: str
    note: str
    cell: Callable[[Row], TableCell]


class Table(NamedTuple):
    """Content of one table of the report: name, note, (system, cells) for each line, number of prompts as text."""

    name: str
    note: str
    lines: list[tuple[str, list[TableCell]]]
    n: str


def tables(
    results: Results, split: str, temperature: float | None, seed: int | str, at: dict[str, str], caption: str
) -> list[dict[str, Any]]:
    """Returns the tables that have data for one split, temperature and seed, as dicts that the HTML template reads.

    Args:
        at: name of a filter on the page → its value for this split, temperature and seed; each table adds its number
            as `measure`.
        caption: split, temperature and seed in words.
    """
    found = []
    for number, table in enumerate(_all(results, split, temperature, seed)):
        shown = [(system, cells) for system, cells in table.lines if any(cell["text"] for cell in cells)]
        if shown:
            found.append(
                {
                    "at": {**at, "measure": str(number)},
                    "measure": table.name,
                    "note": table.note,
                    "caption": caption,
                    "n": table.n,
                    "last": max(len(cells) for _, cells in shown) - 1,
                    "lines": [_line(results, system, cells) for system, cells in shown],
                }
            )
    return found


def measure_names(results: Results) -> list[str]:
    """Returns the names of all tables of the report, those of win rates last, in the order of the tables' numbers."""
    return [each.name for each in _measures(results)] + [_against(results, name) for name in _opponents(results)]


def _all(results: Results, split: str, temperature: float | None, seed: int | str) -> Iterator[Table]:
    """Yields the tables of all measures, then those of win rates, which exist for pooled seeds only."""
    curves = results.curves(split, temperature, seed)
    n = counted(curves.values())
    for name, note, cell in _measures(results):
        yield Table(name, note, [(system, [cell(row) for row in rows]) for system, rows in curves.items()], n)
    note = (
        f"in %, ties as half, below it the {100 * results.level:g} % interval; where lengths differ, also the win rate "
        f"at equal length and by how many {results.settings.get('unit', 'words')} our answers are longer"
    )
    for opponent in _opponents(results):
        rates = {system: results.rate(system, opponent, split, temperature) for system in curves}
        lines = [(system, [_win(row) for row in rows]) for system, rows in rates.items() if rows and seed == POOL]
        counts = {row["n"] for rows in rates.values() for row in rows} or {0}
        n = f"n = {min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
        yield Table(_against(results, opponent), note, lines, n)


def _line(results: Results, system: str, cells: list[TableCell]) -> dict[str, Any]:
    return {
        "system": results.label(system),
        "colour": PAGE.get(colours(results).get(system, ""), "rule"),  # systems that no figure shows get a faint dot
        "main": system == results.highlight,
        "cells": _best(cells),
    }


def _opponents(results: Results) -> list[str]:
    return list(dict.fromkeys(row["opponent"] for row in results.wins))


def _against(results: Results, opponent: str) -> str:
    return "win rate against " + ("their own drafts" if opponent == "draft" else results.label(opponent))


def _win(row: WinRow) -> TableCell:
    if row["opponent"] == "draft" and not row["revision"]:
        return EMPTY
    cell = _share(row["win"], row["low"], row["high"])
    if row["controlled"] is not None and abs(row["longer"]) >= 0.05:
        longer = f"{row['longer']:+.1f}".replace("-", "−")
        cell["small"] += f" · {bare(row['controlled'])} at equal length ({longer})"
    return cell


def _share(mean: float, low: float, high: float) -> TableCell:
    return {"mean": mean, "text": bare(mean), "small": f"{bare(low)}–{bare(high)}"}


def _best(cells: list[TableCell]) -> list[TableCell]:
    """Marks the cell with the largest mean in a row, the first of equals; marks nothing if all are equal."""
    means = [cell.get("mean", 0.0) for cell in cells]
    best = means.index(max(means)) if max(means) > min(means) else None
    return [{**cell, "best": place == best} for place, cell in enumerate(cells)]


def _measures(results: Results) -> list[Measure]:
    def only(text: str) -> TableCell:
        return {"text": text, "small": ""}

    def revised(row: Row, text: str, small: str) -> TableCell:
        return {"text": text, "small": small} if row["revision"] else EMPTY

    def secondary(name: str) -> Callable[[Row], TableCell]:
        return lambda row: _share(*row["secondary"][name])

    def gain(row: Row) -> TableCell:
        p = f" · p {row['p']:.2g}" if row["p"] is not None else ""
        return revised(row, points(row["gain"]), f"{points(row['gain_low'])} to {points(row['gain_high'])}{p}")

    interval = f"in %, below it the {100 * results.level:g} % interval"
    unit = results.settings.get("unit", "words")
    primary = results.label(results.settings.get("judge", "score"))
    any_unscored = any(row["unscored"] for row in results.rows)
    return [
        Measure(primary, interval, lambda row: _share(row["mean"], row["low"], row["high"])),
        *(Measure(results.label(name), interval, secondary(name)) for name in results.settings.get("secondary", ())),
        Measure(
            "gain over the draft",
            f"in points, paired by prompt, below it the {100 * results.level:g} % interval and p, adjusted for all "
            "revisions (Holm)",
            gain,
        ),
        Measure(
            "corrected and broken",
            "% of prompts that score higher than their draft, below it % that score lower",
            lambda row: revised(row, bare(row["mended"]), bare(row["broken"])),
        ),
        Measure(
            "changed",
            "% of answers that differ from the one a revision earlier",
            lambda row: only("" if row["changed"] is None else bare(row["changed"])),
        ),
        Measure(
            "edited and copied",
            f"% of {unit} edited since the draft, below it % copied from the draft",
            lambda row: revised(row, bare(row["edited"]), bare(row["copied"])),
        ),
        Measure("length", f"mean {unit} per answer", lambda row: only(f"{row['length']:,.1f}")),
        Measure(
            "forward tokens",
            "mean tokens per prompt read by forward passes, cumulative",
            lambda row: only("" if row["tokens"] is None else f"{row['tokens']:,.0f}"),
        ),
        Measure(
            "seconds",
            "mean seconds per prompt, cumulative; the rows of a batch share its time",
            lambda row: only("" if row["seconds"] is None else f"{row['seconds']:.3g}"),
        ),
        Measure(
            "unscored",
            "answers without a verdict of the judge",
            lambda row: only(f"{row['unscored']:,}" if any_unscored else ""),
        ),
    ]
