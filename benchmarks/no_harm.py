"""Does the calibrated default do harm? `policy auto` against the draft and every other choice, on several tasks.

    python -m benchmarks.no_harm --output_dir runs/columns --seeds 0
    python -m benchmarks.no_harm --task orders --models runs/orders/seed0/role runs/orders/seed0/srpo

Without `--models` the columns task (benchmarks/tasks/columns.py) makes its own: a base, pairs of its drafts, SRPO at
the carry task's settings. The model is calibrated on labelled prompts in distribution, at each temperature. Other
prompts, of every split of the task, are then answered by `auto`, by the draft, by every policy (`fixed:K` with each K
below `--revisions`), by every selector on the chain of `if_preferred`, and by the most frequent of as many drafts or
the one that a selector chooses. At temperature 0 all drafts are equal, so choices among drafts and `greedy` are the
draft. A line ends in MISS if `auto` is more than 1 point below the draft, or in distribution more than 2 points below
the best choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging

from benchmarks.tasks.columns import column_sums, columns
from benchmarks.tasks.orders import LETTERS, orders, total
from benchmarks.tasks.orders import SPLITS as ORDERS
from benchmarks.tasks.repair import LONGEST, SHAPES, sentences
from srpo.data.read import read_prompts
from srpo.evaluate.calibrate import calibrate
from srpo.evaluate.controls import keep_best, majority, several_drafts
from srpo.judge.single import Judge, exact_match
from srpo.revise.policy import AUTO, NAMES
from srpo.revise.reviser import Reviser
from srpo.revise.select import select
from srpo.revise.settings import LAST, SELECTORS, RevisionSettings
from srpo.revise.trail import Trail
from srpo.statistics.bootstrap import bootstrap
from srpo.tasks.carry import SPLITS, TEMPLATE, BaseConfig, carry_tokenizer, label, sums, train_base, write_rows
from srpo.train.config import SRPOConfig
from srpo.train.trainer import SRPOTrainer

BELOW_DRAFT, BELOW_BEST = 0.01, 0.02
CALIBRATION, EVALUATION = 3_000_000, 5_000_000  # first seeds
BASE_STEPS, STEPS = 1600, 300


class Task(NamedTuple):
    """A generated task.

    Attributes:
        rows: function from a count, a split and a seed to rows of prompt and gold answer.
        tokens: largest number of tokens of an answer.
        judge: judge of single answers.
        splits: names of the splits.
    """

    rows: Callable[..., list[dict[str, str]]]
    tokens: int
    judge: Judge = exact_match
    splits: Sequence[str] = SPLITS


TASKS = {
    "columns": Task(column_sums, 7),
    "carry": Task(sums, 7),
    "repair": Task(sentences, LONGEST + 1, splits=tuple(SHAPES)),
    "orders": Task(orders, LETTERS.tokens, total, ORDERS),
}
TOKENS = TASKS["columns"].tokens


def make(folder: Path, seed: int, base_steps: int, steps: int) -> tuple[Path, Path]:
    """Trains base and SRPO model of the columns task, unless they are in `folder` already; returns their folders."""
    base, model = folder / "base", folder / "srpo"
    if not (model / "config.json").exists():
        for _, _, trained in train_base(BaseConfig(steps=base_steps, seed=seed), columns):  # noqa: B007
            pass
        for each in (trained, carry_tokenizer()):
            each.save_pretrained(base)
        TEMPLATE.save(base)
        rows, drafter = column_sums(8000, "in", seed=1_000_000 + seed), Reviser(str(base), batch_size=1000)
        first, second = (
            [t.after(0).text for t in drafter.revise(rows, 0, seed=draw, max_new_tokens=TOKENS)] for draw in (1, 2)
        )
        write_rows(folder / "pairs.jsonl", label(rows, first, second))
        args = SRPOConfig(
            output_dir=str(model),
            beta=0.2,
            alpha=0.5,
            learning_rate=2e-4,
            max_steps=steps,
            per_device_train_batch_size=64,
            seed=seed + 1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SRPOTrainer(str(base), args=args, train_dataset=str(folder / "pairs.jsonl"))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    return base, model


def policies(settings: RevisionSettings) -> list[str]:
    """Returns "auto" and the policies to compare with it; those whose answer is always the draft are left out."""
    fixed = [f"fixed:{k}" for k in range(1, settings.revisions)]
    plain = [name for name in NAMES if name not in ("drafts", "fixed:K")]
    return [AUTO, *(name for name in plain if settings.temperature or name not in ("greedy", "vote")), *fixed]


def ways(reviser: Reviser, rows: Sequence[dict[str, str]], settings: RevisionSettings) -> dict[str, list[str]]:
    """Returns way of answering → final answers: `auto`, the draft, and every other way at about the same cost."""
    read, how = read_prompts(list(rows)), asdict(settings)
    k = how.pop("revisions")
    found: dict[str, Sequence[Trail]] = {
        policy: reviser.revise(rows, k, **{**how, "policy": policy}) for policy in policies(settings)
    }
    selectors = [by for by in SELECTORS if by != LAST]
    chain = found["if_preferred"]
    found |= {f"if_preferred + {by}": select(reviser, read, chain, by) for by in selectors}
    if settings.temperature:
        drafts = list(several_drafts(reviser, read, settings))
        found["drafts + majority"] = majority(drafts)
        found |= {f"drafts + {by}": list(keep_best(reviser, read, drafts, by)) for by in selectors}
    return {"draft": [t.after(0).text for t in chain], **{n: [t.after(k).text for t in ts] for n, ts in found.items()}}


def line(scores: dict[str, torch.Tensor], split: str) -> str:
    """Returns a line on `auto`: its score, its differences from the draft and from the best other way, maybe MISS.

    Differences have 95 % intervals. The line ends in MISS if one of them is too low; see the top of this file.
    """
    best = max((name for name in scores if name != "auto"), key=lambda name: float(scores[name].mean()))
    text, missed = f"auto {100 * scores['auto'].mean():.1f}", False
    for name, bound in (("draft", BELOW_DRAFT), (best, BELOW_BEST if split == "in" else 1.0)):
        gain = bootstrap((scores["auto"] - scores[name])[:, None])
        mean, low, high = (100 * float(each[0]) for each in (gain.mean, gain.low, gain.high))
        text += f", {name} {100 * scores[name].mean():.1f}: {mean:+.1f} ({low:+.1f} to {high:+.1f})"
        missed |= mean < -100 * bound
    return text + (" MISS" if missed else "")


def main() -> None:
    """Calibrates, answers, and prints a line for each model, temperature and split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", help="folder of the columns task's models")
    parser.add_argument("--task", choices=TASKS, default="columns")
    parser.add_argument("--models", nargs=2, metavar=("BASE", "MODEL"), help="models that are there, for one seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--base_steps", type=int, help=f"optimiser steps of the base; {BASE_STEPS}")
    parser.add_argument("--steps", type=int, help=f"optimiser steps of SRPO; {STEPS}")
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--revisions", type=int, default=3)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.0])
    args = parser.parse_args()
    making = [name for name in ("output_dir", "base_steps", "steps") if getattr(args, name) is not None]
    if args.models and making:
        parser.error(f"--{making[0]}: --models makes no models; leave one of the two out")
    if args.models and len(args.seeds) > 1:
        parser.error("--seeds: --models are the models of one seed; expected one number")
    base_steps = BASE_STEPS if args.base_steps is None else args.base_steps
    steps = STEPS if args.steps is None else args.steps
    if not args.models and (args.task != "columns" or not args.output_dir):
        parser.error("expected --output_dir for the columns task, or --models BASE MODEL")
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    task = TASKS[args.task]
    for seed in args.seeds:
        base, model = args.models or make(Path(args.output_dir) / f"seed{seed}", seed, base_steps, steps)
        for heat in args.temperature:
            reviser = Reviser(str(model), reference=str(base), batch_size=500)
            settings = RevisionSettings(args.revisions, heat, seed, task.tokens)
            labelled = read_prompts(task.rows(args.labelled, "in", seed=CALIBRATION + seed))
            reviser.calibration = calibrate(reviser, labelled, task.judge, settings)
            print(f"{args.task}, seed {seed}, T = {heat:g}: {reviser.calibration.choice.sentence()}", flush=True)
            for split in task.splits:
                rows = task.rows(args.prompts, split, seed=EVALUATION + seed)
                scores = {
                    name: torch.tensor(
                        [task.judge("", a, r["gold"]) for a, r in zip(texts, rows, strict=True)]
                    ).double()
                    for name, texts in ways(reviser, rows, settings).items()
                }
                print(f"  {split}: {line(scores, split)}", flush=True)


if __name__ == "__main__":
    main()
