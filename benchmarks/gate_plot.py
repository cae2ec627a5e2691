"""The figure of docs/when-revising-pays.md: where the gate says "worth training", and the measured models.

    python -m benchmarks.gate_plot docs/images/gate.png "carry, in=runs/pays/carry/seed0/gate.in/srpo_gate.json"

The lines are the closed form for prompts that are all alike and revisions that keep nine right drafts of ten; a gate of
a file has prompts that differ, and its own keep rate. Points are the measured rates with their 95 % intervals, green
squares where training paid (`--paid`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from srpo.maths.gate import Rates, reach

KEEP, BETAS = 0.9, (0.1, 0.2)
# Of names from their points, so that neighbours stay apart.
OFFSETS = ((12, -14), (16, -3), (-62, 16), (14, 8), (12, 10), (12, -12), (75, 9), (9, 1))
FAR = 40  # points between a name and its place from which a line joins them
FRESH = torch.linspace(0.01, 0.6, 40, dtype=torch.float64)


def least_mend(beta: float) -> list[float]:
    """Smallest mend rate with which one revision of SRPO beats two drafts of IPO or of SRPO, for each of `FRESH`."""
    mend_M = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    found = []
    for fresh in FRESH:
        same_M = torch.full_like(mend_M, float(fresh))
        each = reach(Rates(same_M, same_M, mend_M, torch.full_like(mend_M, KEEP), torch.zeros_like(mend_M)), beta)
        wins_M = each.revised > torch.maximum(each.ipo_best_of_2, each.drawn_best_of_2)
        found.append(float(mend_M[wins_M].min()) if bool(wins_M.any()) else float("nan"))
    return found


def main() -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("gates", nargs="*", metavar="NAME=FILE", help="files that `srpo calibrate --before` wrote")
    parser.add_argument("--paid", nargs="*", default=[], metavar="NAME", help="gates whose training paid")
    args = parser.parse_args()
    unknown = {*args.paid} - {spec.rsplit("=", 1)[0] for spec in args.gates}
    if unknown:
        parser.error(f"--paid: no gate is named {', '.join(sorted(unknown))}")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", facecolor="white")
    axis = figure.subplots()
    x = 100 * FRESH
    axis.fill_between(x, x, 0, color="#c0392b", alpha=0.08, linewidth=0)
    axis.plot(x, x, color="#c0392b", label="m = f: a second draft does as well")
    for beta, style in zip(BETAS, ("-", "--"), strict=True):
        label = f"one revision beats two drafts after training, β = {beta:g}"
        axis.plot(x, [100 * mend for mend in least_mend(beta)], color="#1e6091", linestyle=style, label=label)
    for place, spec in enumerate(args.gates):
        name, file = spec.rsplit("=", 1)
        rates = json.loads(Path(file).read_text("utf-8"))["rates"]
        (fresh, *ends), (mend, *tops) = ([100 * value for value in rates[key]] for key in ("fresh", "mend"))
        axis.errorbar(
            fresh,
            mend,
            xerr=[[fresh - ends[0]], [ends[1] - fresh]],
            yerr=[[mend - tops[0]], [tops[1] - mend]],
            color="#1e8449" if name in args.paid else "#333333",
            marker="s" if name in args.paid else "o",
            markersize=5 if name in args.paid else 4,
        )
        offset = OFFSETS[place % len(OFFSETS)]
        line = {"arrowstyle": "-", "linewidth": 0.6} if offset[0] > FAR else None
        axis.annotate(
            name, (fresh, mend), xytext=offset, textcoords="offset points", fontsize=8.5, arrowprops=line, va="bottom"
        )
    axis.set_xlabel("f: second draft right where the first is wrong, %")
    axis.set_ylabel("m: revision right where the draft is wrong, %")
    axis.set(xlim=(0, 60), ylim=(0, 100))
    axis.legend(fontsize=8.5, loc="upper left", framealpha=1)
    figure.savefig(args.output, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
