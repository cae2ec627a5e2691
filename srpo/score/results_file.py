"""Files of `Results`: writes results.json, results.csv and wins.csv, and reads results.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from srpo.errors import DataError, InputError
from srpo.score.results import BestRevision, Difference, Results, Side, SystemComparison


def as_json(results: Results) -> str:
    """Returns the text of results.json: all numbers, and sentences, which `read_results` ignores."""
    numbers = asdict(results) | {"verdict": results.verdict, "advice": results.advice}
    numbers["choices"] = [each._asdict() for each in results.choices]
    for each in numbers["comparisons"]:
        for key in ("a", "b", "pool"):
            each[key] = each[key]._asdict()
        each["seeds"] = [seed._asdict() for seed in each["seeds"]]
    return json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows such as `Results.rows` as CSV text; each secondary judge has three columns: mean, low and high."""
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
    """Reads the numbers of an evaluation from its results.json, which `as_json` writes.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: the file does not hold results.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        found = {name: value for name, value in found.items() if name not in ("verdict", "advice")}
        found["comparisons"] = [_comparison(each) for each in found["comparisons"]]
        found["choices"] = [BestRevision(**each) for each in found["choices"]]
        return Results(**found)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="results.json of an evaluation") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not results: {error}", where=str(path), expected="results.json of an evaluation") from None


def _comparison(found: dict[str, Any]) -> SystemComparison:
    sides = {side: Side(**found[side]) for side in ("a", "b")}
    numbers = {"pool": Difference(**found["pool"]), "seeds": tuple(Difference(**seed) for seed in found["seeds"])}
    return SystemComparison(**{**found, **sides, **numbers})
