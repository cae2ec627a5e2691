"""`Results` and sample trails in, report.html and its companions out: lays out, computes nothing.

The page is one file that loads nothing: style, script and figures stand inside it, and a policy in its head forbids the
rest. Every combination of split, temperature and seed is in the page; a few lines of script hide all but the chosen.
Without script all of them show, each under its caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo.evaluate.cases import Sample
from srpo.evaluate.plot import PAGE, colours, draw, panel_svg
from srpo.evaluate.results import (
    POOL,
    Comparison,
    Results,
    Row,
    capital,
    counted,
    heat,
    percent,
    points,
)
from srpo.evaluate.stored import as_csv, as_json
from srpo.evaluate.table import as_markdown
from srpo.output import writable_folder, write_file

TEMPLATE = "report.html.jinja"


def write_evaluation(
    output_dir: str | Path,
    results: Results,
    *,
    title: str,
    samples: Sequence[Sample] = (),
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Writes results.json, results.csv, table.md, curve.png, curve.svg and report.html.

    Args:
        output_dir: folder for the files; made when missing.
        results: from `summarise`.
        title: of the report.
        samples: trails to show, from `sample_cases`.
        run: what was run, in the order to be shown: command, versions, seconds per stage; values may be nested.

    Returns:
        Where the report is.

    Raises:
        OutputError: the folder or a file in it cannot be written.
    """
    folder = writable_folder(Path(output_dir))
    write_file(folder / "results.json", as_json(results).encode())
    write_file(folder / "results.csv", as_csv(results.rows).encode())
    write_file(folder / "table.md", as_markdown(results).encode())
    write_file(folder / "curve.png", draw(results, "png"))
    write_file(folder / "curve.svg", draw(results, "svg"))
    write_file(folder / "report.html", render(results, title=title, samples=samples, run=run).encode())
    return folder / "report.html"


def render(
    results: Results, *, title: str, samples: Sequence[Sample] = (), run: Mapping[str, Any] | None = None
) -> str:
    """The text of report.html; arguments as in `write_evaluation`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scale = _scale(results)
    names = [name for name, _, _ in _measures(results)]
    # One seed is its own pool: shown once.
    seeds = [POOL, *(results.seeds if len(results.seeds) > 1 else [])]
    places = [(split, at, seed) for split, at in _places(results) for seed in seeds]
    tables = [table for place in places if _curves(results, *place) for table in _tables(results, *place)]
    used = dict.fromkeys(table["at"]["measure"] for table in tables)
    return environment.get_template(TEMPLATE).render(
        title=title,
        results=results,
        measure=capital(results.label(results.settings.get("judge", "score"))),
        groups=_groups(results, scale),
        ticks=_ticks(scale),
        filters=_filters(results),
        panels=[_panel(results, *place) for place in places if _curves(results, *place)],
        tables=tables,
        measures=[(number, names[int(number)]) for number in used],
        samples=[_sample(results, sample) for sample in samples],
        run=list(_flat(run or {})),
    )


def _places(results: Results) -> list[tuple[str, float | None]]:
    return list(dict.fromkeys((row["split"], row["temperature"]) for row in results.rows))


def _curves(results: Results, split: str, temperature: float | None, seed: int | str) -> dict[str, list[Row]]:
    found = {system: results.curve(system, split, temperature, seed) for system in results.values("system")}
    return {system: rows for system, rows in found.items() if rows}


# ---------------------------------------------------------------------- findings


def _scale(results: Results) -> tuple[float, float]:
    """The ends of the one axis that all differences share; zero is on it."""
    ends = [0.0]
    for each in results.comparisons:
        ends += [each.pool.low, each.pool.high, *(seed.difference for seed in each.seeds)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _place(share: float, scale: tuple[float, float]) -> float:
    """Percent of the way along the axis."""
    return round(100 * (share - scale[0]) / (scale[1] - scale[0]), 2)


def _ticks(scale: tuple[float, float]) -> list[tuple[str, float]]:
    """Round numbers of points along the axis, at most six, and where they stand."""
    low, high = (100 * end for end in scale)
    step = next(
        digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5) if (high - low) / digit / 10.0**power <= 6
    )
    numbers = (step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1))
    return [(f"{number:+g}".replace("-", "−") if number else "0", _place(number / 100, scale)) for number in numbers]


def _groups(results: Results, scale: tuple[float, float]) -> list[dict[str, Any]]:
    """The comparisons by split and temperature."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for each in results.comparisons:
        groups.setdefault((each.split, each.temperature), []).append(_finding(results, each, scale))
    return [{"heading": _heading(results, *place), "findings": findings} for place, findings in groups.items()]


def _finding(results: Results, comparison: Comparison, scale: tuple[float, float]) -> dict[str, Any]:
    pool, seeds = comparison.pool, comparison.seeds
    lead, rest = comparison.claim(results.labels, results.level)
    return {
        "finding": comparison.finding,
        "lead": lead,
        "rest": _unbroken(rest) + ".",
        "low": _place(pool.low, scale),
        "mean": _place(pool.difference, scale),
        "high": _place(pool.high, scale),
        "seeds": [_place(seed.difference, scale) for seed in seeds] if len(seeds) > 1 else [],
    }


def _unbroken(text: str) -> str:
    """Numbers kept on one line with what they belong to."""
    return text.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0").replace(" points", "\u00a0points")


def _heading(results: Results, split: str, temperature: float | None, lead: Callable[[str], str] = capital) -> str:
    parts = [results.label(split)] if len(results.values("split")) > 1 else []
    if len(results.values("temperature")) > 1 or (parts and temperature is not None):
        parts.append(heat(temperature))
    return lead(", ".join(parts))


# ---------------------------------------------------------------------- curves and tables


def _filters(results: Results) -> list[dict[str, Any]]:
    """The choices above curves and tables; one that leaves no choice is left out."""
    splits = [
        ("all", "all"),
        *((str(i), capital(results.label(name))) for i, name in enumerate(results.values("split"))),
    ]
    heats = [
        (str(i), f"{at:g}" if at is not None else "not stated") for i, at in enumerate(results.values("temperature"))
    ]
    seeds = [(POOL, "pooled"), *((str(seed), f"seed {seed}") for seed in results.seeds)]
    filters = [("split", "Prompts", splits, 3), ("heat", "Temperature", heats, 2), ("seed", "Runs", seeds, 3)]
    return [
        {"name": name, "legend": legend, "options": options}
        for name, legend, options, least in filters
        if len(options) >= least
    ]


def _keys(results: Results, split: str, temperature: float | None, seed: int | str = "") -> dict[str, str]:
    """What the page's script compares with the chosen filters; numbers, so that no name needs quoting."""
    keys = {
        "split": str(results.values("split").index(split)),
        "heat": str(results.values("temperature").index(temperature)),
    }
    return keys | ({"seed": str(seed)} if seed != "" else {})


def _caption(results: Results, split: str, temperature: float | None, seed: int | str) -> str:
    parts = [_heading(results, split, temperature)]
    if len(results.seeds) > 1:
        parts.append(f"{len(results.seeds)} seeds pooled" if seed == POOL else f"seed {seed}")
    return ", ".join(filter(None, parts)) or capital(results.label(split))


def _panel(results: Results, split: str, temperature: float | None, seed: int | str) -> dict[str, Any]:
    return {
        "at": _keys(results, split, temperature, seed),
        "caption": _caption(results, split, temperature, seed),
        "svg": panel_svg(results, split, temperature, seed),
    }


def _tables(results: Results, split: str, temperature: float | None, seed: int | str) -> list[dict[str, Any]]:
    """One table per measure."""
    curves = _curves(results, split, temperature, seed)
    colour = colours(results)
    last = max(row["revision"] for rows in curves.values() for row in rows)
    tables = []
    for number, (name, note, cell) in enumerate(_measures(results)):
        lines: list[dict[str, Any]] = [
            {
                "system": results.label(system),
                "colour": PAGE[colour[system]],
                "main": system == results.highlight,
                "cells": _best([cell(row) for row in rows]),
            }
            for system, rows in curves.items()
        ]
        if any(each["text"] for line in lines for each in line["cells"]):
            caption = _caption(results, split, temperature, seed)
            n = counted(curves.values())
            at = {**_keys(results, split, temperature, seed), "measure": str(number)}
            tables.append(
                {"at": at, "measure": name, "note": note, "caption": caption, "n": n, "last": last, "lines": lines}
            )
    return tables


def _best(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Marks the largest mean of a row, the earliest of equals, unless all of them are."""
    means = [cell.get("mean", 0.0) for cell in cells]
    best = means.index(max(means)) if max(means) > min(means) else None
    return [{**cell, "best": place == best} for place, cell in enumerate(cells)]


def _measures(results: Results) -> list[tuple[str, str, Any]]:
    """(name, what it is, row → cell) of each table."""
    interval = f"{100 * results.level:g} % interval"

    def share(mean: float, low: float, high: float) -> dict[str, Any]:
        return {"mean": mean, "text": f"{100 * mean:.1f}", "small": f"{100 * low:.1f}–{100 * high:.1f}"}

    def secondary(name: str) -> Any:
        return lambda row: share(*row["secondary"][name])

    def gain(row: Row) -> dict[str, str]:
        small = f"{points(row['gain_low'])} to {points(row['gain_high'])}"
        return {"text": points(row["gain"]), "small": small} if row["revision"] else {"text": "", "small": ""}

    def turned(row: Row) -> dict[str, str]:
        small = f"{100 * row['broken']:.1f}"
        return {"text": f"{100 * row['mended']:.1f}", "small": small} if row["revision"] else {"text": "", "small": ""}

    def changed(row: Row) -> dict[str, str]:
        return {"text": "" if row["changed"] is None else f"{100 * row['changed']:.1f}", "small": ""}

    def tokens(row: Row) -> dict[str, str]:
        return {"text": "" if row["tokens"] is None else f"{row['tokens']:,.0f}", "small": ""}

    primary = results.label(results.settings.get("judge", "score"))
    return [
        (primary, f"in %, below it the {interval}", lambda row: share(row["mean"], row["low"], row["high"])),
        *(
            (results.label(name), f"in %, below it the {interval}", secondary(name))
            for name in results.settings.get("secondary", ())
        ),
        ("gain over the draft", f"in points, paired by prompt, below it the {interval}", gain),
        ("mended and broken", "% of prompts that score higher than their draft, below it % that score lower", turned),
        ("changed", "% of answers that differ from the one a revision earlier", changed),
        ("forward tokens", "mean tokens that forward passes have read per prompt, up to here", tokens),
    ]


# ---------------------------------------------------------------------- trails and the run


def _sample(results: Results, sample: Sample) -> dict[str, Any]:
    worded = {
        "mended": ("Mended", "score higher after revision than their draft"),
        "broken": ("Broken", "score lower after revision than their draft"),
    }
    head, what = worded[sample.outcome]
    share = percent(sample.count / sample.total)
    return {
        "at": _keys(results, sample.split, sample.temperature),
        "head": head,
        "text": f"{sample.count:,} of {sample.total:,} ({share}) {what}.",
        "place": _heading(results, sample.split, sample.temperature, lead=str),
        "outcome": sample.outcome,
        "cases": [
            {
                "prompt": case.prompt,
                "gold": case.gold,
                "seed": case.seed,
                "steps": [
                    {
                        "name": _step_name(step.first, step.last),
                        "segments": step.segments,
                        "right": step.score == 1,
                        "score": "" if step.score in (0, 1) else f"{100 * step.score:.0f} %",
                    }
                    for step in case.steps
                ],
            }
            for case in sample.cases
        ],
    }


def _step_name(first: int, last: int) -> str:
    begin = "draft" if first == 0 else str(first)
    return begin if first == last else f"{begin}–{last}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text)."""
    rows: list[tuple[str, str]] = []
    for key, each in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(each, Mapping):
            rows += _flat(each, f"{name} · ")
        elif isinstance(each, list | tuple):
            rows.append((name, ", ".join(map(str, each))))
        else:
            rows.append((name, f"{each:.4g}" if isinstance(each, float) else str(each)))
    return rows
