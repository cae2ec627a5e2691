"""`srpo demo`: the whole story on a generated task, offline."""

from __future__ import annotations

import sys

from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("demo", "Train a base, make pairs, train SRPO, DPO and IPO, revise, evaluate: the carry task.")
    parser.add_argument("--output_dir", default="runs/demo", help="folder for models, trails and the report")
    parser.add_argument("--seeds", type=int, default=1, help="independent runs, each from its own base")
    parser.add_argument("--first_seed", type=int, default=0, help="seed of the first run; the others count on from it")
    parser.add_argument("--prompts", type=int, default=2000, help="sums per split in the evaluation")
    parser.add_argument("--prepare", action="store_true", help="stop at base, pairs and prompts: recipes/carry.yaml")
    args = parser.parse_args(argv)

    import time
    from dataclasses import replace
    from pathlib import Path

    from rich.console import Console
    from transformers.utils import logging as hf_logging

    from srpo.report.cases import sample_cases
    from srpo.report.page import write_evaluation
    from srpo.report.text_table import print_table
    from srpo.tasks.carry_run import CarryConfig, Say, start_run
    from srpo.tasks.demo import run_demo, settings_shown, verdict

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)  # a file has no width
    config = replace(CarryConfig(), prompts=args.prompts)
    times: dict[str, float] = {}

    def stage(what: str, seconds: float) -> None:
        times[what] = seconds
        console.print(f"{what:<34} " + (f"{seconds:7.1f} s" if seconds else "  reused"))

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 100 == 0:
            print(f"  base model: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr)

    if args.prepare:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            start_run(Path(args.output_dir) / f"seed{seed}", config, seed, Say(stage, progress))
        return 0
    began = time.perf_counter()
    scored = run_demo(
        args.output_dir, seeds=args.seeds, first_seed=args.first_seed, config=config, say=Say(stage, progress)
    )
    judging = time.perf_counter()
    results = verdict(scored, config)
    stage("evaluation", time.perf_counter() - judging)
    stage("in all, until the report", time.perf_counter() - began)
    run = {
        "command": " ".join(["srpo demo", *argv]),
        "settings": settings_shown(config),
        "seconds": {what: f"{seconds:.1f}" if seconds else "reused" for what, seconds in times.items()},
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
