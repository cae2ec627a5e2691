"""Chooses β and learning rate of every method for the carry task, by the same small search on validation sums.

    python -m benchmarks.carry_search --output_dir runs/search

Bases, pairs and sums come from seeds that the demo never uses. Each method gets twelve settings, each run on every base
for as many steps on the same pairs, and two ways to be drawn: SRPO revises always or if it prefers the revision, DPO
and IPO are asked to revise or give the best of as many drafts. A setting's score is the share of exact answers at
T = 1, averaged over both splits and all bases, at its best number of revisions or further drafts.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from srpo.judge.single import exact_match
from srpo.revise.trail import Trail
from srpo.tasks.carry import SPLITS, BaseConfig
from srpo.tasks.carry_run import (
    VALIDATION,
    CarryConfig,
    Job,
    MethodSettings,
    StageLog,
    start_run,
    trail_file,
    trail_folder,
    work,
)
from srpo.tasks.stages import side_by_side

FIRST_SEED = 1000
# (β, learning rates). Where an earlier search was flat in one of the two, the points went to the other.
GRIDS = {
    "srpo": ((0.07, 0.1, 0.15, 0.2, 0.3, 0.4), (2e-4, 4e-4)),
    "dpo": ((1.0, 3.0, 10.0, 30.0), (5e-5, 1e-4, 2e-4)),
    "ipo": ((0.1, 0.2, 0.3, 1.0), (5e-5, 1e-4, 2e-4)),
}
SYSTEMS = {
    "srpo": ("srpo", "srpo_always"),
    "dpo": ("dpo", "dpo_best_of"),
    "ipo": ("ipo", "ipo_best_of"),
}


Row = dict[str, Any]


def main() -> None:
    """Runs the search; finished runs are not repeated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/search")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--bases", type=int, default=2)
    parser.add_argument("--base_steps", type=int, default=BaseConfig().steps)
    args = parser.parse_args()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    folder = Path(args.output_dir)
    base = BaseConfig(steps=args.base_steps)
    config = replace(CarryConfig(), base=base, prompts=args.prompts, temperatures=(1.0,))
    log = StageLog(lambda what, seconds: print(f"{what}: {seconds:.0f} s", flush=True))
    jobs = []
    for seed in range(FIRST_SEED, FIRST_SEED + args.bases):
        run = folder / f"seed{seed}"
        jobs += jobs_of(run, start_run(run, config, seed, log), seed)
    runs: dict[tuple[str, str], list[Row]] = {}
    for job, seconds in zip(jobs, side_by_side(work, jobs), strict=True):
        print(f"seed {job.seed}, {job.name}: {sum(seconds.values()):.0f} s", flush=True)
        for system in job.systems:
            runs.setdefault((job.name, system), []).append(measured(job, system))
    found = [scored(rows) for rows in runs.values()]
    (folder / "search.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    show(found)


def jobs_of(run: Path, config: CarryConfig, seed: int) -> list[Job]:
    """Returns a job for every setting of every method, on the base of one seed."""
    return [
        Job(
            str(run),
            method,
            SYSTEMS[method],
            replace(config, methods={method: MethodSettings(method, beta=beta, learning_rate=rate)}),
            seed,
            VALIDATION,
            name=f"{method}-beta{beta:g}-lr{rate:g}",
        )
        for method, grid in GRIDS.items()
        for beta, rate in itertools.product(*grid)
    ]


def measured(job: Job, system: str) -> Row:
    """Returns the settings of a job's method and, for each split, a system's shares of exact answers by revision."""
    settings = job.config.methods[job.method]
    row: Row = {"system": system, "beta": settings.beta, "learning_rate": settings.learning_rate}
    for split in SPLITS:
        lines = (trail_folder(job, system) / trail_file(split, 1.0)).read_text("utf-8").splitlines()
        trails = [Trail.from_json(line) for line in lines]
        row[split] = [
            sum(exact_match(t.prompt, t.after(k).text, t.meta["gold"]) for t in trails) / len(trails)
            for k in range(job.config.revisions + 1)
        ]
    return row


def scored(rows: list[Row]) -> Row:
    """Averages the rows of one setting over all bases.

    Returns the mean curves, the best number of revisions (`revisions`), the `score` there, and each base's score there.
    """
    curves = {split: _mean([row[split] for row in rows]) for split in SPLITS}
    means = _mean(list(curves.values()))
    best = means.index(max(means))
    by_base = [sum(row[split][best] for split in SPLITS) / len(SPLITS) for row in rows]
    return rows[0] | curves | {"score": max(means), "revisions": best, "by_base": by_base, "curves": rows}


def _mean(curves: list[list[float]]) -> list[float]:
    return [sum(values) / len(curves) for values in zip(*curves, strict=True)]


def show(found: list[Row]) -> None:
    """Prints the table of all settings and the best setting of each system."""
    print("\n| system | β | learning rate | in, revisions 0 1 … | out, revisions 0 1 … | best k | score | by base |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        curves = (" ".join(f"{100 * share:.0f}" for share in row[split]) for split in SPLITS)
        by_base = " ".join(f"{100 * share:.1f}" for share in row["by_base"])
        print(
            f"| {row['system']} | {row['beta']:g} | {row['learning_rate']:g} | {' | '.join(curves)} "
            f"| {row['revisions']} | {100 * row['score']:.1f} | {by_base} |"
        )
    for system in (system for systems in SYSTEMS.values() for system in systems):
        best = max((row for row in found if row["system"] == system), key=lambda row: row["score"])
        print(f"\n{system}: β {best['beta']:g}, learning rate {best['learning_rate']:g}, ", end="")
        print(f"revisions {best['revisions']}, score {100 * best['score']:.1f}")


if __name__ == "__main__":
    main()
