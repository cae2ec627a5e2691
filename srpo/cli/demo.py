"""`srpo demo`: makes a base model and preference pairs, trains, revises and reports on generated sums, offline."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.settings import setting

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo demo`, which trains a tiny model on generated sums and shows that it revises its answers."""

    output_dir: str = setting("runs/demo", "Folder for models, trails and the report.")
    seeds: int = setting(1, "Number of independent runs, each from its own base model.")
    first_seed: int = setting(0, "Seed of the first run; every further run adds one.")
    prompts: int | None = setting(
        None, "Number of sums in each split of the evaluation; by default 500, or 2000 with `--full`.", least=1
    )
    full: bool = setting(
        False, "Run everything that the documentation's tables contain: twice the pairs and steps, all methods."
    )
    prepare: bool = setting(False, "Stop after base model, pairs and prompts, the input of recipes/carry.yaml.")


def main(argv: list[str]) -> int:
    """Runs `srpo demo`: trains SRPO and DPO on generated sums, revises, prints scores, writes a report; returns 0.

    --full trains IPO too; --prepare stops after base model, pairs and prompts.
    """
    description = "Make pairs, train SRPO and DPO (and IPO, with --full), revise, evaluate: the carry task."
    args = parse("demo", description, Arguments, argv)

    import time
    from dataclasses import replace
    from pathlib import Path

    from rich.console import Console

    from srpo.progress import clock
    from srpo.report.cases import sample_cases
    from srpo.report.page import write_evaluation
    from srpo.report.text_table import print_table
    from srpo.tasks.carry_run import CarryConfig, StageLog, start_run
    from srpo.tasks.demo import SHORT, run_demo, settings_shown, stages_of, verdict
    from srpo.tasks.live import shown
    from srpo.tasks.stages import Counts

    quiet_transformers()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # for a file
    config = CarryConfig() if args.full or args.prepare else SHORT
    config = replace(config, prompts=args.prompts or config.prompts)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    times: dict[str, float] = {}

    counts = Counts(name for seed in seeds for name in stages_of(config, seed))

    def stage(name: str, seconds: float) -> None:
        times[name] = seconds
        counts[name] = (1, 1) if not seconds or counts[name][1] == 0 else counts[name]  # a stage without steps
        if not console.is_terminal:
            console.print(f"{name:<40} " + (f"{seconds:7.1f} s" if seconds else "  reused"))

    log = StageLog(stage, counts)
    began = time.perf_counter()
    with shown(counts, console):
        if args.prepare:
            for seed in seeds:
                start_run(Path(args.output_dir) / f"seed{seed}", config, seed, log)
            return 0
        scored = run_demo(args.output_dir, seeds=args.seeds, first_seed=args.first_seed, config=config, log=log)
    results = verdict(scored, config)
    seconds = {name: f"{took:.1f}" if took else "reused" for name, took in times.items()}
    run = {"command": " ".join(["srpo demo", *argv]), "settings": settings_shown(config), "seconds": seconds}
    title = "The carry task: drafts and revisions of SRPO, DPO and IPO"
    samples = sample_cases(scored, results.highlight)
    report = write_evaluation(Path(args.output_dir), results, title=title, samples=samples, run=run)
    print_table(results, console)
    for sentence in results.verdict:
        console.print(sentence)
    _print_trails(Path(args.output_dir) / f"seed{args.first_seed}", console)
    console.print(f"report: {report}   ({clock(time.perf_counter() - began)})", soft_wrap=True)
    return 0


def _print_trails(run: Path, console: Console) -> None:
    """Prints the first ten answers of the demo's SRPO model to sums in distribution, each with its revisions."""
    from srpo.revise.trail_files import read_trails
    from srpo.tasks.carry_run import trail_file
    from srpo.tasks.live import as_lines

    trails = read_trails(run / "trails" / "srpo" / trail_file("in", 1.0), gold_key="gold")[:10]
    legend = "p: the model's estimate that a revision is better than the answer before; unchanged ones are left out"
    console.print(f"The first ten sums: draft → revisions ({legend})", style="bold")
    for line in as_lines(trails):
        console.print(line)
