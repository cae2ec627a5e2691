"""`srpo demo`: base, pairs, training, revision and report on a generated task, offline."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.settings import setting


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo demo`, which shows training and revising on generated sums."""

    output_dir: str = setting("runs/demo", "Folder for models, trails and the report.")
    seeds: int = setting(1, "Number of independent runs, each from its own base model.")
    first_seed: int = setting(0, "Seed of the first run; every further run adds one.")
    prompts: int = setting(2000, "Number of sums in each split of the evaluation.")
    prepare: bool = setting(False, "Stop after base model, pairs and prompts, the input of recipes/carry.yaml.")


def main(argv: list[str]) -> int:
    """Runs the demonstration from pairs to report, and prints the results of every stage."""
    description = "Train a base, make pairs, train SRPO, DPO and IPO, revise, evaluate: the carry task."
    args = parse("demo", description, Arguments, argv)

    import time
    from dataclasses import replace
    from pathlib import Path

    from rich.console import Console

    from srpo.report.cases import sample_cases
    from srpo.report.page import write_evaluation
    from srpo.report.text_table import print_table
    from srpo.tasks.carry_run import CarryConfig, StageLog, start_run
    from srpo.tasks.demo import run_demo, settings_shown, verdict

    quiet_transformers()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # for a file
    config = replace(CarryConfig(), prompts=args.prompts)
    times: dict[str, float] = {}

    def stage(name: str, seconds: float) -> None:
        times[name] = seconds
        console.print(f"{name:<34} " + (f"{seconds:7.1f} s" if seconds else "  reused"))

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"  base model: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr)

    if args.prepare:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            start_run(Path(args.output_dir) / f"seed{seed}", config, seed, StageLog(stage, progress))
        return 0
    began = time.perf_counter()
    scored = run_demo(
        args.output_dir, seeds=args.seeds, first_seed=args.first_seed, config=config, log=StageLog(stage, progress)
    )
    judging = time.perf_counter()
    results = verdict(scored, config)
    stage("evaluation", time.perf_counter() - judging)
    stage("in all, until the report", time.perf_counter() - began)
    run = {
        "command": " ".join(["srpo demo", *argv]),
        "settings": settings_shown(config),
        "seconds": {name: f"{seconds:.1f}" if seconds else "reused" for name, seconds in times.items()},
    }
    title = "The carry task: drafts and revisions of SRPO, DPO and IPO"
    report = write_evaluation(
        Path(args.output_dir), results, title=title, samples=sample_cases(scored, results.highlight), run=run
    )
    print_table(results, console)
    for sentence in results.verdict:
        console.print(sentence)
    console.print(f"report: {report}", soft_wrap=True)
    return 0
