"""Does SRPO help a model that sees? Drafts and revisions of the counting task against every opponent, one command.

    python -m benchmarks.count_shapes --output_dir runs/count_shapes --seeds 0 1 2

For each seed a base from scratch (benchmarks/tasks/count_shapes.py), pairs of its own drafts ordered by right digits,
and from that base SRPO, DPO, IPO and SFT on the same pairs in the same number of steps, with frozen towers. Then drafts
and revisions of all of them, sampled and greedy, on three splits. β, α and learning rates are those of the carry task
(`srpo.tasks.carry_run.CHOSEN`); no number of this task had a part in a choice.

Finished stages stay in the folder: the same command goes on where it stopped. Tables are printed and in `tables.md`.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from benchmarks.tasks import count_shapes as task
from srpo.data.read import read_prompts
from srpo.evaluate.plan import Plan
from srpo.evaluate.run import evaluate
from srpo.judge.single import exact_match, per_character
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.score.results import Results
from srpo.tasks.carry import label, write_rows
from srpo.tasks.carry_run import CHOSEN, CarryConfig, MethodSettings, train_method
from srpo.tasks.stages import run_stage

METHODS = {name: CHOSEN[name] for name in ("srpo", "dpo", "ipo")} | {"sft": MethodSettings("sft", 0.1, 2e-4)}
TOKENS = task.DIGITS + 1  # an answer and its end
PAIRS, EVALUATION = 1_000_000, 2_000_000  # first seeds of pictures; a run's seed is added
DRAWN = ["draft_only", "greedy", "best_of_logp", "best_of_vote", "majority"]
GREEDY = ["draft_only"]  # greedy drafts are all equal: nothing to choose among


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--splits", nargs="+", choices=task.SPLITS, default=list(task.SPLITS))
    parser.add_argument("--temperature", nargs="+", type=float, default=[1.0, 0.0], help="0 decodes greedily")
    parser.add_argument("--base_steps", type=int, default=task.CountConfig().steps)
    parser.add_argument("--sampled", type=int, default=4000, help="pictures with two drafts each, for the pairs")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each method")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--prompts", type=int, default=700, help="pictures of the evaluation, a split and seed")
    parser.add_argument("--revisions", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    for seed in args.seeds:
        train_seed(Path(args.output_dir) / f"seed{seed}", seed, args)
    tables = []
    for split in args.splits:
        for heat in args.temperature:
            results, _ = evaluate(plan_of(args, split, heat), {"exact": exact_match, "digits": per_character})
            tables.append(table(results, split, heat))
            print(tables[-1], flush=True)
    (Path(args.output_dir) / "tables.md").write_text("\n".join(tables), "utf-8")


# ---------------------------------------------------------------------- training


def train_seed(run: Path, seed: int, args: argparse.Namespace) -> None:
    """Trains the base and each method of one seed, unless its folder holds them."""
    base, pairs = run / "base", run / "pairs"
    config = replace(task.CountConfig(), seed=seed, steps=args.base_steps)
    done(base, asdict(config), partial(make_base, config=config))
    drawn = {**asdict(config), "sampled": args.sampled}
    done(pairs, drawn, partial(make_pairs, base=base, n=args.sampled, seed=seed))
    how = CarryConfig(steps=args.steps, batch=args.batch, methods=METHODS)
    for name in args.methods:
        settings = {**drawn, "pair_steps": args.steps, "pair_batch": args.batch, **asdict(METHODS[name])}
        work = partial(train_method, base=base, pairs=pairs / "pairs.jsonl", config=how, method=name, seed=seed)
        done(run / name, settings, work)


def done(folder: Path, settings: dict[str, Any], work: Any) -> None:
    """Does a stage once, and prints the processor seconds that it took."""
    began = time.process_time()
    if run_stage(folder, settings, work):
        print(f"{folder}: {time.process_time() - began:.0f} s of a core", flush=True)


def make_base(folder: Path, config: task.CountConfig) -> None:
    """Trains the base model and saves it with its processor and template."""
    *_, (_, _, model) = task.train_base(config)
    for part in (model, task.count_processor()):
        part.save_pretrained(folder)
    task.TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, n: int, seed: int) -> None:
    """Draws two drafts of the base for each of `n` pictures; the one with more right digits is chosen."""
    rows = task.rows(n, "in", folder / "pictures", seed=PAIRS + seed)
    reviser = Reviser(str(base), batch_size=1000, device="cpu")
    first, second = (
        [trail.after(0).text for trail in reviser.trails(read_prompts(rows), RevisionSettings(0, 1.0, draw, TOKENS))]
        for draw in (1, 2)
    )
    write_rows(folder / "pairs.jsonl", label(rows, first, second))


# ---------------------------------------------------------------------- evaluation


def plan_of(args: argparse.Namespace, split: str, heat: float) -> Plan:
    """The plan of an evaluation of all seeds on one split at one temperature, with fresh pictures."""
    root = Path(args.output_dir)
    for seed in args.seeds:
        folder = root / f"seed{seed}" / "prompts" / split
        made = {"split": split, "seed": seed, "prompts": args.prompts}
        run_stage(folder, made, partial(make_prompts, split=split, n=args.prompts, seed=seed))
    each = {"controls": DRAWN if heat else GREEDY}
    models: dict[str, dict[str, Any]] = {name: {"model": name, **each} for name in ("base", *args.methods)}
    if "srpo" in args.methods:
        models["srpo_if_preferred"] = {"model": "srpo", "policy": "if_preferred"}
    plan = Plan.of(
        {
            "models": {name: {**how, "model": str(root / "seed{seed}" / how["model"])} for name, how in models.items()},
            "references": str(root / "seed{seed}" / "base"),
            "prompts": {split: str(root / "seed{seed}" / "prompts" / split / "prompts.jsonl")},
            "seeds": args.seeds,
            "revisions": args.revisions,
            "temperature": [heat],
            "max_new_tokens": TOKENS,
            "batch_size": 500,
            "highlight": "srpo" if "srpo" in args.methods else "base",
            "cache_dir": str(root / "drawn"),
            "output_dir": str(root / f"{split}.T{heat:g}"),
            "device": "cpu",
        }
    )
    plan.check()
    return plan


def make_prompts(folder: Path, split: str, n: int, seed: int) -> None:
    """Writes the pictures and prompts of an evaluation."""
    first = EVALUATION + 1000 * list(task.SPLITS).index(split)
    write_rows(folder / "prompts.jsonl", task.rows(n, split, folder / "pictures", seed=first + seed))


def table(results: Results, split: str, heat: float) -> str:
    """Right answers in % with 95 % intervals as Markdown: a row per system, a column per number of revisions."""
    curves = results.curves(split, heat)
    columns = max(map(len, curves.values()))
    lines = [f"### {split}, T = {heat:g}, seeds {', '.join(map(str, results.seeds))}", ""]
    heads = [*(f"k = {k}" for k in range(columns)), "last k, each seed", "last k, digits"]
    lines += [f"| system | {' | '.join(heads)} |"]
    lines += ["| --- |" + " ---: |" * (columns + 2)]
    for system, curve in curves.items():
        cells = [f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})" for row in curve]
        each = [f"{100 * results.curve(system, split, heat, seed)[-1]['mean']:.1f}" for seed in results.seeds]
        digits = 100 * curve[-1]["secondary"]["digits"][0]
        lines.append(f"| {results.label(system)} | {' | '.join(cells)} | {' '.join(each)} | {digits:.1f} |")
    for comparison in results.comparisons:
        pool = comparison.pool
        ends = f"{100 * pool.difference:+.1f} ({100 * pool.low:+.1f} to {100 * pool.high:+.1f})".replace("-", "−")
        a, b = (f"{results.label(side.system)} at {side.revision}" for side in (comparison.a, comparison.b))
        lines.append(f"- {a} − {b}: {ends}, n = {pool.n:,}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
