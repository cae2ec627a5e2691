"""Figures of the measurements of `benchmarks.carry_rounds`, from its `results.json` alone.

    python -m benchmarks.rounds_plots --output_dir runs/rounds

`rounds.png`: exact answers over revisions, round by round. `rounds-cost.png`: over the labels and the optimiser steps
that each method had used by then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo.tasks.carry import SPLITS

Rows = Sequence[dict[str, Any]]
COSTS = {"labels": "labels, without the offline pairs", "steps": "optimiser steps"}
TITLES = {"in": "In distribution", "out": "Out of distribution"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/rounds")
    folder = Path(parser.parse_args().output_dir)
    plot(json.loads((folder / "results.json").read_text("utf-8")), folder)


def plot(results: Rows, folder: Path) -> None:
    """Draws both figures into `folder`."""
    over_revisions(results, folder / "rounds.png")
    over_costs(results, folder / "rounds-cost.png")


def over_revisions(results: Rows, file: Path) -> None:
    """Draws exact answers by number of revisions: a line for each round of SRPO, and for each opponent's last round."""
    import matplotlib.pyplot as plt

    last, seeds = max(row["round"] for row in results), {row["seed"] for row in results}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curves = [(("srpo", n, "revised"), f"SRPO, round {n}", f"C0,{0.3 + 0.7 * n / last}") for n in range(last + 1)]
    curves += [
        (("offline", 0, "revised"), "SRPO offline, as many steps", "C1,1"),
        (("srpo", last, "best_of"), f"best of k+1 SRPO drafts, round {last}", "C2,1"),
        (("dpo", last, "best_of"), f"best of k+1 DPO drafts, round {last}", "C3,1"),
        (("ipo", last, "best_of"), f"best of k+1 IPO drafts, round {last}", "C7,1"),
        (("ipo", last, "revised"), f"IPO asked to revise, round {last}", "C7,1"),
    ]
    for axis, split in zip(axes, SPLITS, strict=True):
        for (method, number, system), label, look in curves:
            rows = [
                row["exact"]
                for row in results
                if (row["method"], row["round"], row["system"], row["split"]) == (method, number, system, split)
            ]
            if len(rows) < len(seeds):
                continue  # a mean of other seeds than its neighbours' would be no curve beside them
            colour, alpha = look.split(",")
            mean = [100 * sum(values) / len(rows) for values in zip(*rows, strict=True)]
            style = "-" if system == "revised" else "--"
            axis.plot(mean, style, marker="o", ms=3, color=colour, alpha=float(alpha), label=label)
        axis.set(title=TITLES[split], xlabel="revisions k (0 is the draft)", ylabel="exact match, %")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, dpi=150)


def over_costs(results: Rows, file: Path) -> None:
    """Draws exact last answers of each way of answering, by number of labels and by number of steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharey="row")
    lines = [
        ("srpo", "revised", -1, "SRPO, five revisions", "C0-"),
        ("srpo-2000", "revised", -1, "SRPO, at most 2,000 labels a round", "C9-"),
        ("offline", "revised", -1, "SRPO offline, five revisions", "C1-"),
        ("srpo", "best_of", -1, "best of six SRPO drafts", "C2--"),
        ("dpo", "best_of", -1, "best of six DPO drafts", "C3--"),
        ("dpo", "revised", 0, "DPO, draft", "C3-"),
        ("ipo", "best_of", -1, "best of six IPO drafts", "C7--"),
        ("ipo", "revised", 0, "IPO, draft", "C7-"),
    ]
    for row, split in zip(axes, reversed(SPLITS), strict=True):
        for axis, cost in zip(row, COSTS, strict=True):
            for method, system, k, label, look in lines:
                points = costs(results, method, system, split, cost, k)
                if method == "offline":  # it begins where SRPO's rounds do
                    points = costs(results, "srpo", system, split, cost, k)[:1] + points
                if points:
                    axis.plot(*zip(*points, strict=True), look[2:], color=look[:2], marker="o", ms=3, label=label)
            axis.set(title=TITLES[split], xlabel=COSTS[cost], ylabel="exact match, %" if cost == "labels" else "")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.3)
    axes[0][1].legend(fontsize=7, handlelength=3, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, dpi=150)


def costs(results: Rows, method: str, system: str, split: str, cost: str, k: int) -> list[tuple[float, float]]:
    """Returns, for each round, (labels or steps used by its end, exact answers in %), both means over the seeds.

    Args:
        cost: "labels" or "steps".
        k: index of the answer to count, such as −1 for the last revision.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    seeds = {row["seed"] for row in results}
    for row in results:
        if (row["method"], row["system"], row["split"]) == (method, system, split):
            found.setdefault(row["round"], []).append((row[cost], 100 * row["exact"][k]))
    return [
        (sum(used for used, _ in points) / len(points), sum(exact for _, exact in points) / len(points))
        for _, points in sorted(found.items())
        if len(points) == len(seeds)  # see above
    ]


if __name__ == "__main__":
    main()
