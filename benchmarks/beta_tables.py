"""Tables that answer the questions of the study of β, from the journal of `benchmarks.beta_study`.

python -m benchmarks.beta_tables runs/beta
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.beta_study import BETAS, HEATS, TRIED, read_journal, score, still_at, warned_at

Row = dict[str, Any]
KINDS = {"T1": "sampled", "T0": "greedy"}
BELOW = 0.2  # a run is bad if the best run of its schedule and seed has this much more exact answers


def main() -> None:
    """Prints every table that the journal on the command line has cells for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path, help="folder of the study")
    rows = of_one_size(read_journal(parser.parse_args().journal))
    print("\n".join([*schedules(rows), "", *lights(rows), "", *collectors(rows), "", *rewards(rows)]))


def of_one_size(rows: Iterable[Row]) -> list[Row]:
    """The rows of a journal; stops if they are of trainings or evaluations of several sizes, which nothing compares."""
    found = list(rows)
    if len(sizes := {json.dumps(row["sizes"], sort_keys=True) for row in found}) > 1:
        raise SystemExit(f"cells of {len(sizes)} sizes in one journal: {', '.join(sorted(sizes))}; keep one of them")
    return found


def schedules(rows: Iterable[Row]) -> list[str]:
    """Exact answers out of distribution at the best k of 0 to 2 revisions, by schedule and β: every seed, and means.

    The last line of each kind has the best constant β of all, by the mean of the seeds it has.
    """
    lines = [
        "| answers | schedule | β | seed 0 | seed 1 | seed 2 | mean | below the best constant β |",
        "| --- " * 8 + "|",
    ]
    for heat, kind in KINDS.items():
        found: dict[tuple[str, float], dict[int, float]] = defaultdict(dict)
        for row in plain(rows):
            found[row["schedule"], row["beta"]][row["seed"]] = 100 * score(row, "out", heat)
        whole = [key for key, each in found.items() if key[0] == "constant" and len(each) == 3]
        if not whole:
            continue
        best = max(whole, key=lambda key: sum(found[key].values()))
        for key in sorted(found):
            seeds = found[key]
            values = [f"{seeds[seed]:.1f}" if seed in seeds else "–" for seed in range(3)]
            lost = sum(found[best][seed] - value for seed, value in seeds.items()) / len(seeds)
            mean = sum(seeds.values()) / len(seeds)
            lines.append(f"| {kind} | {key[0]} | {key[1]:g} | {' | '.join(values)} | {mean:.1f} | {lost:+.1f} |")
        lines.append(f"| {kind} | best constant with all seeds | {best[1]:g} |  |  |  |  |  |")
    return lines


def plain(rows: Iterable[Row]) -> list[Row]:
    """The cells of SRPO on the base's own pairs at the usual learning rate and α."""
    usual = [row for row in rows if row["objective"] == "srpo" and row.get("collector", "base") == "base"]
    return [row for row in usual if row["learning_rate"] == 2e-4 and row["alpha"] == 0.5]


def lights(rows: Iterable[Row]) -> list[str]:
    """Good and bad trainings by the message that they logged, and the latest step of a message as a share of the run.

    A training is bad if the best one of its schedule, learning rate, α and seed has 20 points more sampled answers
    right out of distribution, each at its best k. Groups without two cells are left out.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["objective"] == "srpo" and row.get("collector", "base") == "base":
            groups[row["schedule"], row["learning_rate"], row["alpha"], row["seed"]].append(row)
    counts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for group in groups.values():
        best = max(score(row, "out", "T1") for row in group)
        for row in group if len(group) > 1 else []:
            steps = {"collapsing": warned_at(row), "hardly moved": still_at(row)}
            message, step = next(((name, at) for name, at in steps.items() if at != "–"), ("none", "0"))
            kind = "bad" if best - score(row, "out", "T1") >= BELOW else "good"
            counts[kind, message].append(int(step) / row["log"][-1]["step"])
    lines = ["| trainings | message | number | latest message after |", "| --- " * 4 + "|"]
    for (kind, message), shares in sorted(counts.items()):
        at = f"{100 * max(shares):.0f} % of the steps" if message != "none" else ""
        lines.append(f"| {kind} | {message} | {len(shares)} | {at} |")
    return lines


def collectors(rows: Iterable[Row]) -> list[str]:
    """Sampled answers right at the best k by objective and collector, at the objective's β that is best on validation.

    The last column is the spread over the collectors, out of distribution.
    """
    cells = {(row["objective"], row["collector"], row["beta"]): row for row in rows if "collector" in row}
    lines = [f"| objective | {' | '.join(HEATS)} | spread |", "| --- " * (len(HEATS) + 2) + "|"]
    for name, betas in TRIED.items():
        best = []
        for way in HEATS:
            found = [cells[name, way, beta] for beta in betas if (name, way, beta) in cells]
            if len(found) == len(betas):
                best.append(max(found, key=validated))
        if len(best) == len(HEATS):
            values = [100 * score(row, "out", "T1") for row in best]
            shown = [f"{value:.1f} (β {row['beta']:g})" for value, row in zip(values, best, strict=True)]
            lines.append(f"| {name} | {' | '.join(shown)} | {max(values) - min(values):.1f} |")
    return lines


def validated(row: Row) -> float:
    """Mean share of exact sampled validation answers of both splits, at the best k."""
    curves = [found["curve"] for key, found in row["validation"].items() if key.endswith("T1")]
    return float(max(sum(values) / len(curves) for values in zip(*curves, strict=True)))


def rewards(rows: Iterable[Row]) -> list[str]:
    """Variances of the implied rewards of every cell on the base's pairs that has them."""
    lines = ["| objective | schedule | β | seed | variance, answers | variance, margins |", "| --- " * 6 + "|"]
    order = {beta: i for i, beta in enumerate(BETAS)}
    measured = [row for row in rows if "rewards" in row and row.get("collector", "base") == "base"]
    for row in sorted(measured, key=lambda row: (row["objective"], row["schedule"], order[row["beta"]], row["seed"])):
        settings = f"{row['objective']} | {row['schedule']} | {row['beta']:g} | {row['seed']}"
        lines.append(f"| {settings} | {row['rewards']['answers']:.3g} | {row['rewards']['margins']:.3g} |")
    return lines


if __name__ == "__main__":
    main()
