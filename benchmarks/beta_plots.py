"""The figures of docs/choosing-beta.md and docs/chosen-reward.md, from the journal of `benchmarks.beta_study`.

python -m benchmarks.beta_plots runs/beta docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.beta_study import BETAS, read_journal, score
from benchmarks.beta_tables import of_one_size, plain
from srpo.train.collapse import FALL

WAYS = ("constant", "cosine", "budget")
TITLES = {"T1": "sampled, best of 0 to 2 revisions", "T0": "greedy draft"}
COLOURS = {0.01: "#c0392b", 0.03: "#e08e0b", 0.1: "#1e6091"}


def main() -> None:
    """Draws the figures of both pages from the journal on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path, help="folder of the study")
    parser.add_argument("images", type=Path)
    args = parser.parse_args()
    rows = [row for row in plain(of_one_size(read_journal(args.journal))) if row["seed"] == 0]
    cells = {(row["schedule"], row["beta"]): row for row in rows}
    heat(cells).savefig(args.images / "beta-heat.png", dpi=110)
    light(cells).savefig(args.images / "beta-light.png", dpi=110)


def heat(cells: dict[tuple[str, float], dict[str, Any]]) -> Figure:
    """Exact answers out of distribution by schedule and first β, one panel sampled and one greedy."""
    ways = [way for way in WAYS if any(schedule == way for schedule, _ in cells)]
    figure = Figure(figsize=(7.4, 1.5 + 0.8 * len(ways)), layout="constrained", facecolor="white")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (heat_name, title) in zip(axes, TITLES.items(), strict=True):
        values = [[_share(cells.get((way, beta)), heat_name) for beta in BETAS] for way in ways]
        axis.imshow(values, cmap="viridis", vmin=0, vmax=70, aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                shown = f"{value:.0f}" if value == value else "–"  # nan: the cell was not run
                axis.text(x, y, shown, ha="center", va="center", color="white" if value < 45 else "black")
        axis.set_yticks(range(len(ways)), ways)
        axis.set_title(f"exact answers out of distribution, %: {title}", fontsize=9.5)
    axes[-1].set_xticks(range(len(BETAS)), [f"{beta:g}" for beta in BETAS])
    axes[-1].set_xlabel("β asked for")
    return figure


def _share(row: dict[str, Any] | None, heat_name: str) -> float:
    if row is None:
        return float("nan")
    return 100 * (score(row, "out", heat_name) if heat_name == "T1" else row["exact"]["out T0"]["curve"][0])


def light(cells: dict[tuple[str, float], dict[str, Any]]) -> Figure:
    """Loss and the log-ratio of chosen answers by step, for a good β and two that are too small."""
    figure = Figure(figsize=(7.4, 3.1), layout="constrained", facecolor="white")
    losses, falls = figure.subplots(1, 2)
    for beta, colour in COLOURS.items():
        log = cells["constant", beta]["log"]
        steps = [entry["step"] for entry in log]
        losses.plot(steps, [entry["loss"] for entry in log], color=colour, label=f"β = {beta:g}")
        falls.plot(steps, [entry["drift/chosen_revised"] for entry in log], color=colour)
    entropy = cells["constant", 0.1]["log"][0]["entropy/reference"]
    falls.axhline(-FALL * entropy, color="#555555", linestyle="--", linewidth=1)
    falls.text(0, -FALL * entropy - 0.02, "warning", fontsize=8.5, va="top", color="#555555")
    losses.set(xlabel="step", title="loss: falls in every run")
    falls.set(xlabel="step", title="chosen answers as revisions,\nnats per token against the reference")
    losses.legend(fontsize=8.5)
    return figure


if __name__ == "__main__":
    main()
