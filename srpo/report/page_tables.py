"""The tables of the report: what a row of `Results` shows of one measure, and the win rates beside them.

Lays out, computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from srpo.report.curves import PAGE, colours
from srpo.score.results import POOL, Results, Row, WinRow, counted
from srpo.statistics.percent import bare, points

Cell = dict[str, Any]
NOTHING: Cell = {"text": "", "small": ""}


def tables(
    results: Results, split: str, temperature: float | None, seed: int | str, at: dict[str, str], caption: str
) -> list[dict[str, Any]]:
    """One table per measure that has anything to show there, each with its number in `at`.

    Args:
        at: what the page's script compares with the chosen filters.
        caption: where it is, in words.
    """
    found = []
    for number, (name, note, lines, n) in enumerate(_all(results, split, temperature, seed)):
        shown = [(system, cells) for system, cells in lines if any(cell["text"] for cell in cells)]
        if shown:
            found.append(
                {
                    "at": {**at, "measure": str(number)},
                    "measure": name,
                    "note": note,
                    "caption": caption,
                    "n": n,
                    "last": max(len(cells) for _, cells in shown) - 1,
                    "lines": [_line(results, system, cells) for system, cells in shown],
                }
            )
    return found


def measure_names(results: Results) -> list[str]:
    """The measures in the order of their numbers."""
    return [name for name, _, _ in _measures(results)] + [_against(results, name) for name in _opponents(results)]


def _all(results: Results, split: str, temperature: float | None, seed: int | str) -> Any:
    """(name, note, [(system, cells)], n) of every measure; win rates are of all seeds together."""
    curves = {system: results.curve(system, split, temperature, seed) for system in results.values("system")}
    curves = {system: rows for system, rows in curves.items() if rows}
    n = counted(curves.values())
    for name, note, cell in _measures(results):
        yield name, note, [(system, [cell(row) for row in rows]) for system, rows in curves.items()], n
    for opponent in _opponents(results):
        rates = {system: results.rate(system, opponent, split, temperature) for system in curves}
        lines = [(system, [_win(row) for row in rows]) for system, rows in rates.items() if rows and seed == POOL]
        count = {row["n"] for rows in rates.values() for row in rows} or {0}
        said = f"n = {min(count):,}" + (f" to {max(count):,}" if len(count) > 1 else "")
        note = (
            f"in %, ties as half, below it the {100 * results.level:g} % interval; then, where lengths differ, what it "
            f"would be at equal length, and by how many {results.settings.get('unit', 'words')} ours are longer"
        )
        yield _against(results, opponent), note, lines, said


def _line(results: Results, system: str, cells: list[Cell]) -> dict[str, Any]:
    return {
        "system": results.label(system),
        "colour": PAGE.get(colours(results).get(system, ""), "rule"),  # faint where no figure shows it
        "main": system == results.highlight,
        "cells": _best(cells),
    }


def _opponents(results: Results) -> list[str]:
    return list(dict.fromkeys(row["opponent"] for row in results.wins))


def _against(results: Results, opponent: str) -> str:
    return "win rate against " + ("their own drafts" if opponent == "draft" else results.label(opponent))


def _win(row: WinRow) -> Cell:
    if row["opponent"] == "draft" and not row["revision"]:
        return NOTHING
    cell = _share(row["win"], row["low"], row["high"])
    if row["controlled"] is not None and abs(row["longer"]) >= 0.05:
        longer = f"{row['longer']:+.1f}".replace("-", "−")
        cell["small"] += f" · {100 * row['controlled']:.1f} at equal length ({longer})"
    return cell


def _share(mean: float, low: float, high: float) -> Cell:
    return {"mean": mean, "text": bare(mean), "small": f"{100 * low:.1f}–{100 * high:.1f}"}


def _best(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Marks the largest mean of a row, the earliest of equals, unless all of them are."""
    means = [cell.get("mean", 0.0) for cell in cells]
    best = means.index(max(means)) if max(means) > min(means) else None
    return [{**cell, "best": place == best} for place, cell in enumerate(cells)]


def _measures(results: Results) -> list[tuple[str, str, Callable[[Row], Cell]]]:
    """(name, what it is, row → cell) of each table."""
    interval = f"{100 * results.level:g} % interval"

    def secondary(name: str) -> Any:
        return lambda row: _share(*row["secondary"][name])

    def gain(row: Row) -> Cell:
        small = f"{points(row['gain_low'])} to {points(row['gain_high'])}"
        small += f" · p {row['p']:.2g}" if row["p"] is not None else ""
        return {"text": points(row["gain"]), "small": small} if row["revision"] else NOTHING

    def turned(row: Row) -> Cell:
        small = bare(row["broken"])
        return {"text": bare(row["mended"]), "small": small} if row["revision"] else NOTHING

    def changed(row: Row) -> Cell:
        return {"text": "" if row["changed"] is None else bare(row["changed"]), "small": ""}

    def tokens(row: Row) -> Cell:
        return {"text": "" if row["tokens"] is None else f"{row['tokens']:,.0f}", "small": ""}

    def seconds(row: Row) -> Cell:
        return {"text": "" if row["seconds"] is None else f"{row['seconds']:.3g}", "small": ""}

    def length(row: Row) -> Cell:
        return {"text": f"{row['length']:,.1f}", "small": ""}

    def kept(row: Row) -> Cell:
        small = bare(row["copied"])
        return {"text": bare(row["edited"]), "small": small} if row["revision"] else NOTHING

    def unscored(row: Row) -> Cell:
        return {"text": f"{row['unscored']:,}" if any(each["unscored"] for each in results.rows) else "", "small": ""}

    unit = results.settings.get("unit", "words")
    primary = results.label(results.settings.get("judge", "score"))
    return [
        (primary, f"in %, below it the {interval}", lambda row: _share(row["mean"], row["low"], row["high"])),
        *(
            (results.label(name), f"in %, below it the {interval}", secondary(name))
            for name in results.settings.get("secondary", ())
        ),
        (
            "gain over the draft",
            f"in points, paired by prompt, below it the {interval} and p, adjusted for all revisions (Holm)",
            gain,
        ),
        ("mended and broken", "% of prompts that score higher than their draft, below it % that score lower", turned),
        ("changed", "% of answers that differ from the one a revision earlier", changed),
        ("edited and copied", f"% of {unit} edited since the draft, below it % that stand in it", kept),
        ("length", f"mean {unit} per answer", length),
        ("forward tokens", "mean tokens that forward passes have read per prompt, up to here", tokens),
        ("seconds", "mean seconds per prompt, up to here, a batch's shared by its rows", seconds),
        ("unscored", "answers that the judge gave no verdict on", unscored),
    ]
