"""`Results` as results.json and results.csv, and back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo.errors import DataError, InputError
from srpo.score.results import Choice, Comparison, Difference, Results, Side


def as_json(results: Results) -> str:
    """The text of results.json; `verdict` and `advice` stand there for readers and are computed again on reading."""
    numbers = asdict(results) | {"verdict": results.verdict, "advice": results.advice}
    numbers["choices"] = [each._asdict() for each in results.choices]
    for each in numbers["comparisons"]:
        for key in ("a", "b", "pool"):
            each[key] = each[key]._asdict()
        each["seeds"] = [seed._asdict() for seed in each["seeds"]]
    return json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of results.csv or wins.csv: the rows, each secondary score in three columns, an empty field for None."""
    flat = []
    for row in rows:
        cells: dict[str, Any] = {key: value for key, value in row.items() if key != "secondary"}
        for name, numbers in row.get("secondary", {}).items():
            cells |= {f"{name}_{part}": number for part, number in zip(("mean", "low", "high"), numbers, strict=True)}
        flat.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def read_results(path: str | Path) -> Results:
    """Reads what `as_json` wrote.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        comparisons = [_comparison(each) for each in found["comparisons"]]
        choices = [Choice(**each) for each in found["choices"]]
        return Results(
            found["rows"],
            comparisons,
            found["highlight"],
            found["labels"],
            found["settings"],
            wins=found["wins"],
            choices=choices,
            judging=found["judging"],
        )
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="results.json of an evaluation") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not results: {error}", where=str(path), expected="results.json of an evaluation") from None


def _comparison(found: dict[str, Any]) -> Comparison:
    return Comparison(
        a=Side(**found["a"]),
        b=Side(**found["b"]),
        split=found["split"],
        temperature=found["temperature"],
        pool=Difference(**found["pool"]),
        seeds=tuple(Difference(**seed) for seed in found["seeds"]),
    )
