"""Writes the files of an evaluation: report.html, tables, figures and data; all numbers are computed elsewhere.

The page is one file that loads nothing: style, script and figures are inside it, and a policy in its head forbids
external resources. Every combination of split, temperature and seed is in the page; a short script hides all but the
selected one. Without script all are visible, each under its caption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo.disk import writable_folder, write_file
from srpo.report.cases import CaseSample, show_sample
from srpo.report.curves import PAGE, colours, draw, panel_svg
from srpo.report.page_tables import measure_names, tables
from srpo.report.small_figures import FIGURES, Figure, figure_svg
from srpo.report.text_table import as_markdown
from srpo.score.results import POOL, Results, SystemComparison, capital, heat
from srpo.score.results_file import as_csv, as_json
from srpo.statistics.percent import percent

TEMPLATE = "page.html.jinja"


def write_evaluation(
    output_dir: str | Path,
    results: Results,
    *,
    title: str,
    samples: Sequence[CaseSample] = (),
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Writes report.html, curve.png, curve.svg, table.md, results.json, results.csv and wins.csv into a folder.

    Args:
        output_dir: folder for the files; made when missing.
        results: results of the evaluation, from `summarise`.
        title: title of the report.
        samples: example trails, from `sample_cases`.
        run: facts about the run, such as command, versions and seconds of each part, in the order shown; may be nested.

    Returns:
        The path of the report.

    Raises:
        OutputError: the folder or a file in it cannot be written.
    """
    files = {
        "results.json": as_json(results).encode(),
        "results.csv": as_csv(results.rows).encode(),
        "wins.csv": as_csv(results.wins).encode(),
        "table.md": as_markdown(results).encode(),
        "curve.png": draw(results, "png"),
        "curve.svg": draw(results, "svg"),
        "report.html": render(results, title=title, samples=samples, run=run).encode(),
    }
    folder = writable_folder(Path(output_dir))
    for name, content in files.items():
        write_file(folder / name, content)
    return folder / "report.html"


def render(
    results: Results, *, title: str, samples: Sequence[CaseSample] = (), run: Mapping[str, Any] | None = None
) -> str:
    """Returns the HTML text of the report; the arguments are those of `write_evaluation`."""
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
    # A single seed equals the pool of seeds, so only the pool is shown.
    seeds = [POOL, *(results.seeds if len(results.seeds) > 1 else [])]
    places = [(*place, seed) for place in results.places for seed in seeds if results.curves(*place, seed)]
    shown = [
        table
        for place in places
        for table in tables(results, *place, _filter_keys(results, *place), _caption(results, *place))
    ]
    used = sorted({int(table["at"]["measure"]) for table in shown})
    return environment.get_template(TEMPLATE).render(
        title=title,
        results=results,
        measure=capital(results.label(results.settings.get("judge", "score"))),
        groups=_groups(results, scale),
        ticks=_ticks(scale),
        filters=_filters(results),
        panels=[_panel(results, *place) for place in places],
        tables=shown,
        measures=[(number, names[number]) for number in used],
        figures=[_figure(results, *place, figure) for place in results.places for figure in FIGURES],
        legend=[(results.label(name), PAGE[colours(results)[name]]) for name in results.drawn],
        judging=[_judge_row(results, tally) for tally in results.judging],
        **_examples(results, samples),
        run=list(_flat(run or {})),
    )


# ---------------------------------------------------------------------- findings


def _scale(results: Results) -> tuple[float, float]:
    """The low and high end of the axis on which all differences between systems are drawn; it includes zero."""
    ends = [0.0]
    for each in results.comparisons:
        ends += [each.pool.low, each.pool.high, *(seed.difference for seed in each.seeds)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _position(share: float, scale: tuple[float, float]) -> float:
    """Position of a share on an axis with the ends `scale`, in percent of the axis's length."""
    return round(100 * (share - scale[0]) / (scale[1] - scale[0]), 2)


def _ticks(scale: tuple[float, float]) -> list[tuple[str, float]]:
    """Label and position in percent of the tick marks on an axis with the ends `scale`, at round percentages."""
    low, high = (100 * end for end in scale)
    step = next(
        digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5) if (high - low) / digit / 10.0**power <= 6
    )
    numbers = (step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1))
    return [(f"{number:+g}".replace("-", "−") if number else "0", _position(number / 100, scale)) for number in numbers]


def _groups(results: Results, scale: tuple[float, float]) -> list[dict[str, Any]]:
    """The findings of all comparisons, grouped by split and temperature, as the HTML template reads them."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for claim in results.claims:
        groups.setdefault((claim[0].split, claim[0].temperature), []).append(_finding(*claim, scale))
    return [{"heading": capital(_heading(results, *place)), "findings": found} for place, found in groups.items()]


def _finding(comparison: SystemComparison, lead: str, rest: str, scale: tuple[float, float]) -> dict[str, Any]:
    pool, seeds = comparison.pool, comparison.seeds
    # Non-breaking spaces keep numbers on one line with their units.
    rest = rest.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0").replace(" points", "\u00a0points")
    return {
        "finding": comparison.finding,
        "lead": lead,
        "rest": rest + ".",
        "low": _position(pool.low, scale),
        "mean": _position(pool.difference, scale),
        "high": _position(pool.high, scale),
        "seeds": [_position(seed.difference, scale) for seed in seeds] if len(seeds) > 1 else [],
    }


def _heading(results: Results, split: str, temperature: float | None) -> str:
    """Split and temperature in words; each is left out if the results have only one, so "" is possible."""
    parts = [results.label(split)] if len(results.values("split")) > 1 else []
    if len(results.values("temperature")) > 1 or (parts and temperature is not None):
        parts.append(heat(temperature))
    return ", ".join(parts)


# ---------------------------------------------------------------------- curves and tables


def _filters(results: Results) -> list[dict[str, Any]]:
    """The filters by split, temperature and seed above curves and tables, without those with only one choice."""
    splits = [
        ("all", "all"),
        *((str(i), capital(results.label(each))) for i, each in enumerate(results.values("split"))),
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


def _filter_keys(results: Results, split: str, temperature: float | None, seed: int | str = "") -> dict[str, str]:
    """Name of a filter on the page → its value for a split, temperature and seed.

    Split and temperature are given by their index, since a user's name would need quoting in the script.
    """
    keys = {
        "split": str(results.values("split").index(split)),
        "heat": str(results.values("temperature").index(temperature)),
    }
    return keys | ({"seed": str(seed)} if seed != "" else {})


def _caption(results: Results, split: str, temperature: float | None, seed: int | str) -> str:
    parts = [capital(_heading(results, split, temperature))]
    if len(results.seeds) > 1:
        parts.append(f"{len(results.seeds)} seeds pooled" if seed == POOL else f"seed {seed}")
    return ", ".join(filter(None, parts)) or capital(results.label(split))


def _panel(results: Results, split: str, temperature: float | None, seed: int | str) -> dict[str, Any]:
    return {
        "at": _filter_keys(results, split, temperature, seed),
        "caption": _caption(results, split, temperature, seed),
        "svg": panel_svg(results, split, temperature, seed),
    }


def _figure(results: Results, split: str, temperature: float | None, figure: Figure) -> dict[str, Any]:
    """A small figure, all seeds pooled, as the HTML template reads it; its `svg` is empty without data."""
    where = _heading(results, split, temperature)
    return {
        "at": _filter_keys(results, split, temperature),
        "caption": figure.title + (f", {where[:1].lower()}{where[1:]}" if where else ""),
        "svg": figure_svg(results, split, temperature, figure),
    }


# ---------------------------------------------------------------------- judges, examples, the run


def _judge_row(results: Results, tally: Mapping[str, Any]) -> list[str]:
    """The cells of one row in the table of judges: judge, opponent, counts and shares of one tally."""
    against = "own draft" if tally["against"] == "draft" else results.label(tally["against"])
    counts = [f"{tally[name]:,}" for name in ("comparisons", "identical", "unscored")]
    shares = (tally[name] for name in ("ties", "flips", "disagreement", "agreement"))
    return [tally["judge"], against, *counts, *("" if share is None else percent(share) for share in shares)]


def _examples(results: Results, samples: Sequence[CaseSample]) -> dict[str, Any]:
    """The example trails with their filters by outcome and system, as the HTML template reads them."""
    systems = list(dict.fromkeys(sample.system for sample in samples))
    shown = [
        show_sample(results, each, _filter_keys(results, each.split, each.temperature), systems.index(each.system))
        for each in samples
    ]
    return {
        "samples": shown,
        "outcomes": list(dict.fromkeys((each["at"]["outcome"], each["head"]) for each in shown)),
        "systems": [(str(place), results.label(name)) for place, name in enumerate(systems)],
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as a flat list of (name, text); names of nested settings are joined by a dot."""
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
