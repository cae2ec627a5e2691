"""Chooses β and learning rate of every method for the carry task, by the same small search on validation sums.

    python -m benchmarks.carry_search --output_dir runs/search

Base, pairs and sums come from a seed that the demo never uses. Each method gets twelve settings, each one run of as
many steps on the same pairs, and two ways to be drawn: SRPO revises always or if it prefers the revision, DPO and IPO
are asked to revise or give the best of as many drafts. A setting's score is the share of exact answers at T = 1,
averaged over both splits, at the number of revisions, or further drafts, that serves it best. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

from srpo.evaluate.judges import exact_match
from srpo.revise.trail import Trail
from srpo.tasks.carry import SPLITS, BaseConfig
from srpo.tasks.carry_run import (
    VALIDATION,
    CarryConfig,
    Job,
    MethodSettings,
    Say,
    start_run,
    trail_file,
    trail_folder,
    work,
)
from srpo.tasks.stages import side_by_side

SEED = 1000
LEARNING_RATES = (1e-4, 2e-4, 4e-4)
BETAS = {"srpo": (0.05, 0.1, 0.2, 0.4), "dpo": (0.3, 1.0, 3.0, 10.0), "ipo": (0.03, 0.1, 0.3, 1.0)}
SYSTEMS = {
    "srpo": ("srpo", "srpo_if_preferred"),
    "dpo": ("dpo", "dpo_best_of"),
    "ipo": ("ipo", "ipo_best_of"),
}


def main() -> None:
    """Runs the search; what is there already is not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/search")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--base_steps", type=int, default=BaseConfig().steps)
    args = parser.parse_args()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    folder = Path(args.output_dir) / f"seed{SEED}"
    base = BaseConfig(steps=args.base_steps)
    config = replace(CarryConfig(), base=base, prompts=args.prompts, temperatures=(1.0,))
    say = Say(lambda what, seconds: print(f"{what}: {seconds:.0f} s", flush=True))
    config = start_run(folder, config, SEED, say)
    jobs = [
        Job(
            str(folder),
            method,
            SYSTEMS[method],
            replace(config, methods={method: MethodSettings(method, beta=beta, learning_rate=rate)}),
            SEED,
            VALIDATION,
            name=f"{method}-beta{beta:g}-lr{rate:g}",
        )
        for method, betas in BETAS.items()
        for beta, rate in itertools.product(betas, LEARNING_RATES)
    ]
    found = []
    for job, seconds in zip(jobs, side_by_side(work, jobs), strict=True):
        print(f"{job.name}: {sum(seconds.values()):.0f} s", flush=True)
        found += [measured(job, system) for system in job.systems]
    (Path(args.output_dir) / "search.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    show(found)


def measured(job: Job, system: str) -> dict[str, object]:
    """Exact answers of one system by split and revision, and its score."""
    exact = {}
    for split in SPLITS:
        lines = (trail_folder(job, system) / trail_file(split, 1.0)).read_text("utf-8").splitlines()
        trails = [Trail.from_json(line) for line in lines]
        exact[split] = [
            sum(exact_match(t.prompt, t.after(k).text, t.meta["gold"]) for t in trails) / len(trails)
            for k in range(job.config.revisions + 1)
        ]
    means = [sum(both) / 2 for both in zip(*exact.values(), strict=True)]
    settings = job.config.methods[job.method]
    return {
        "method": job.method,
        "system": system,
        "beta": settings.beta,
        "learning_rate": settings.learning_rate,
        **exact,
        "score": max(means),
        "revisions": means.index(max(means)),
    }


def show(found: list[dict[str, object]]) -> None:
    """The table and, per system, the winner."""
    print("\n| system | β | learning rate | in, revisions 0 1 2 … | out, revisions 0 1 2 … | best k | score |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        curves = (" ".join(f"{100 * share:.0f}" for share in row[split]) for split in SPLITS)
        print(
            f"| {row['system']} | {row['beta']:g} | {row['learning_rate']:g} | {' | '.join(curves)} "
            f"| {row['revisions']} | {100 * row['score']:.1f} |"
        )
    for system in (system for systems in SYSTEMS.values() for system in systems):
        best = max((row for row in found if row["system"] == system), key=lambda row: row["score"])
        print(f"\n{system}: β {best['beta']:g}, learning rate {best['learning_rate']:g}, ", end="")
        print(f"revisions {best['revisions']}, score {100 * best['score']:.1f}")


if __name__ == "__main__":
    main()
