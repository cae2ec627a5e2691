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

from srpo.disk import writable_folder, write_file
from srpo.report.cases import Sample, show_sample
from srpo.report.curves import PAGE, colours, draw, panel_svg
from srpo.report.page_tables import measure_names, tables
from srpo.report.small_figures import FIGURES, Figure, figure_svg
from srpo.report.text_table import as_markdown
from srpo.score.results import (
    POOL,
    Results,
    Row,
    SystemComparison,
    capital,
    heat,
)
from srpo.score.results_file import as_csv, as_json
from srpo.statistics.percent import percent

TEMPLATE = "page.html.jinja"


def write_evaluation(
    output_dir: str | Path,
    results: Results,
    *,
    title: str,
    samples: Sequence[Sample] = (),
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Writes results.json, results.csv, wins.csv, table.md, curve.png, curve.svg and report.html.

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
    write_file(folder / "wins.csv", as_csv(results.wins).encode())
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
    names = measure_names(results)
    # One seed is its own pool: shown once.
    seeds = [POOL, *(results.seeds if len(results.seeds) > 1 else [])]
    places = [(split, at, seed) for split, at in _places(results) for seed in seeds]
    shown = [
        table
        for place in places
        if _curves(results, *place)
        for table in tables(results, *place, _keys(results, *place), _caption(results, *place))
    ]
    used = sorted({int(table["at"]["measure"]) for table in shown})
    return environment.get_template(TEMPLATE).render(
        title=title,
        results=results,
        measure=capital(results.label(results.settings.get("judge", "score"))),
        groups=_groups(results, scale),
        ticks=_ticks(scale),
        filters=_filters(results),
        panels=[_panel(results, *place) for place in places if _curves(results, *place)],
        tables=shown,
        measures=[(number, names[number]) for number in used],
        figures=[_figure(results, *place, what) for place in _places(results) for what in FIGURES],
        legend=[(results.label(name), PAGE[colours(results)[name]]) for name in results.drawn],
        judging=[_judged(results, each) for each in results.judging],
        **_shown_cases(results, samples),
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


def _finding(results: Results, comparison: SystemComparison, scale: tuple[float, float]) -> dict[str, Any]:
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


def _figure(results: Results, split: str, temperature: float | None, what: Figure) -> dict[str, Any]:
    """One of the smaller figures, of all seeds together; its drawing is empty where there is nothing to draw."""
    where = _heading(results, split, temperature)
    return {
        "at": _keys(results, split, temperature),
        "caption": what.title + (f", {where[:1].lower()}{where[1:]}" if where else ""),
        "svg": figure_svg(results, split, temperature, what),
    }


def _judged(results: Results, tally: Mapping[str, Any]) -> list[str]:
    """One line of the table of what judges were asked."""

    def share(of: float | None) -> str:
        return "" if of is None else percent(of)

    against = "own draft" if tally["against"] == "draft" else results.label(tally["against"])
    counts = [f"{tally[name]:,}" for name in ("comparisons", "identical", "unscored")]
    return [
        tally["judge"],
        against,
        *counts,
        *(share(tally[name]) for name in ("ties", "flips", "disagreement", "agreement")),
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


# ---------------------------------------------------------------------- the run


def _shown_cases(results: Results, samples: Sequence[Sample]) -> dict[str, Any]:
    """The cases, and the choices above them."""
    outcomes = list(dict.fromkeys(sample.outcome for sample in samples))
    systems = list(dict.fromkeys(sample.system for sample in samples))
    return {
        "samples": [
            show_sample(results, sample, _keys(results, sample.split, sample.temperature), systems.index(sample.system))
            for sample in samples
        ],
        "outcomes": [(name, capital(name)) for name in outcomes],
        "systems": [(str(place), results.label(name)) for place, name in enumerate(systems)],
    }


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
