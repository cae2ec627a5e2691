"""Does revising pay? The gate's prediction and every opponent, on generated tasks; one command, resumable.

    python -m benchmarks.when_pays --output_dir runs/pays --tasks carry columns --seeds 0

For each task and seed: a base, pairs of its drafts, the gate on the base (300 prompts a split), then SRPO, IPO, DPO,
SFT on the chosen answers and an SFT reviser, all from the same base on the same pairs, steps and batch. `srpo evaluate`
then draws SRPO with every selector, at T = 1 and greedily, in and out of distribution. Finished stages and answers stay
in the folder; the same command goes on where it stopped, and ends with the tables. `--base TASK=FOLDER` takes a base
that is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging as hf_logging

from benchmarks.tasks.columns import column_sums, columns
from srpo.data.read import read_prompts
from srpo.evaluate.gate import measure_gate, percent
from srpo.evaluate.plan import Plan
from srpo.evaluate.run import evaluate
from srpo.generate.engine import Completion, Decoding
from srpo.judge.single import exact_match
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.score.results import Results
from srpo.score.results_file import read_results
from srpo.tasks.carry import SPLITS, TEMPLATE, BaseConfig, carry_tokenizer, label, sums, train_base, write_rows
from srpo.tasks.carry_run import CHOSEN, CarryConfig, MethodSettings, train_method
from srpo.tasks.stages import run_stage

BATCH, NEW_TOKENS, GATE_DRAFTS = 500, 7, 3
PAIRS, GATE, EVALUATION = 1_000_000, 6_000_000, 2_000_000  # first seeds: no two stages share sums
METHODS = {name: replace(CHOSEN[name], revisions=0) for name in ("srpo", "ipo", "dpo")}
METHODS |= {name: MethodSettings(name, beta=0.1, learning_rate=2e-4) for name in ("sft", "sft_reviser")}
BETAS = (0.1, METHODS["srpo"].beta)
OWN = ["draft_only", "greedy", "best_of_logp", "best_of_mean_logp", "best_of_vote", "majority"]
ALL = [*OWN, "best_of", "best_of_reference_logp", "oracle", "reference", "reference_greedy"]


class Task(NamedTuple):
    """A generated task: rows of a split by (count, split, seed), the right answers, and steps of its base."""

    rows: Callable[..., list[dict[str, str]]]
    right: Any
    base_steps: int


TASKS = {"carry": Task(sums, None, 3200), "columns": Task(column_sums, columns, 1600)}


class Handed:
    """An engine that drafts with one model and revises with another."""

    def __init__(self, drafts: Any, revisions: Any) -> None:
        self.drafts, self.revisions = drafts, revisions
        self.batch_size, self.same_batch_same_bits = revisions.batch_size, True
        self.pictured = getattr(revisions, "pictured", False)

    @property
    def max_length(self) -> int | None:
        """Largest number of tokens of context and answer."""
        return self.revisions.max_length  # type: ignore[no-any-return]

    def complete(
        self, contexts: Sequence[Sequence[int]], keys: Sequence[str], decoding: Decoding, **more: Any
    ) -> list[Completion]:
        """Completes with the drafting model if the keys are those of drafts, which end with /0."""
        engine = self.drafts if keys and keys[0].endswith("/0") else self.revisions
        return engine.complete(contexts, keys, decoding, **more)  # type: ignore[no-any-return]


def make_base(folder: Path, task: Task, seed: int, args: argparse.Namespace, given: str | None) -> None:
    """Trains the base of a task, or copies the files of a given one, into `folder`."""
    if given:
        shutil.copytree(given, folder, dirs_exist_ok=True)
        return
    steps = args.base_steps or task.base_steps
    for _, _, trained in train_base(BaseConfig(steps=steps, seed=seed, threads=1), task.right):  # noqa: B007
        pass
    for each in (trained, carry_tokenizer()):
        each.save_pretrained(folder)
    TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, task: Task, seed: int, sampled: int) -> None:
    """Two drafts of the base for each of `sampled` prompts, ordered by their number of right digits."""
    rows, drafter = task.rows(sampled, "in", seed=PAIRS + seed), Reviser(str(base), batch_size=BATCH)
    first, second = (
        [t.after(0).text for t in drafter.revise(rows, 0, seed=draw, max_new_tokens=NEW_TOKENS)] for draw in (1, 2)
    )
    write_rows(folder / "pairs.jsonl", label(rows, first, second))


def make_gate(folder: Path, base: Path, task: Task, seed: int, split: str, prompts: int) -> None:
    """Measures the gate (`srpo.evaluate.gate`) of a base on one split, and saves it in `folder`."""
    rows = read_prompts(task.rows(prompts, split, seed=GATE + seed))
    settings = RevisionSettings(GATE_DRAFTS, 1.0, seed, NEW_TOKENS)
    measure_gate(Reviser(str(base), batch_size=BATCH), rows, exact_match, settings, betas=BETAS).save(folder)


def handed_trails(run: Path, split: str, heat: float, seed: int, revisions: int) -> str:
    """Draws IPO's drafts, revised by the SFT reviser, into a file; returns `NAME=PATH` for a plan's `trails`."""
    path = run / "handed" / f"{split}.T{heat:g}.jsonl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        rows = read_prompts(str(run / "prompts" / f"{split}.jsonl"))
        drafter, reviser = (Reviser(str(run / name), batch_size=BATCH) for name in ("ipo", "sft_reviser"))
        reviser.engine = Handed(drafter.engine, reviser.engine)  # type: ignore[assignment]
        settings = RevisionSettings(revisions, heat, seed, NEW_TOKENS, "always")
        lines = [replace(t, meta={**t.meta, "split": split}).to_json() + "\n" for t in reviser.trails(rows, settings)]
        path.write_text("".join(lines), "utf-8")
    return f"ipo_then_sft_reviser={path}"


def table(run: Path, split: str, heat: float, seed: int, args: argparse.Namespace) -> Results:
    """Draws and scores every system on one split at one temperature, or reads the results that are there."""
    folder = run / f"{split}.T{heat:g}"
    if (folder / "results.json").exists():
        return read_results(folder / "results.json")
    controls = [name for name in ALL if heat or name in ("draft_only", "reference", "greedy", "reference_greedy")]
    own = [name for name in OWN if heat or name in ("draft_only", "greedy")]
    models: dict[str, Any] = {"srpo": {"model": str(run / "srpo"), "policy": "if_preferred", "controls": controls}}
    models["srpo_always"] = {"model": str(run / "srpo")}
    for select in ("logp", "vote", "reward"):
        models[f"srpo_select_{select}"] = {"model": str(run / "srpo"), "policy": "if_preferred", "select": select}
    models |= {name: {"model": str(run / name), "controls": own} for name in args.methods if name != "srpo"}
    handed = {"ipo", "sft_reviser"} <= set(args.methods)
    plan = Plan.of(
        {
            "models": models,
            "trails": [handed_trails(run, split, heat, seed, args.revisions)] if handed else [],
            "references": str(run / "base"),
            "prompts": {split: str(run / "prompts" / f"{split}.jsonl")},
            "seeds": [seed],
            "revisions": args.revisions,
            "temperature": [heat],
            "max_new_tokens": NEW_TOKENS,
            "batch_size": BATCH,
            "cache_dir": str(run / "drawn"),
            "curves": ["srpo", "srpo_always", "srpo/greedy", "srpo/reference_greedy"],
            "output_dir": str(folder),
            "device": "cpu",
        }
    )
    plan.check()
    return evaluate(plan, {"exact match": exact_match})[0]


def make_seed(run: Path, name: str, seed: int, args: argparse.Namespace) -> None:
    """Trains everything of one task and seed that is not there yet."""
    task, given = TASKS[name], dict(each.split("=", 1) for each in args.base).get(name)
    made = {"task": name, "seed": seed, "base": given or args.base_steps or task.base_steps, "sampled": args.sampled}
    base, pairs = run / "base", run / "pairs"
    run_stage(base, made, lambda into: make_base(into, task, seed, args, given))
    run_stage(pairs, made, lambda into: make_pairs(into, base, task, seed, args.sampled))
    for split in SPLITS:
        gate = run / f"gate.{split}"
        run_stage(
            gate,
            {**made, "gate": args.gate},
            lambda into, split=split: make_gate(into, base, task, seed, split, args.gate),
        )  # type: ignore[misc]
        (run / "prompts").mkdir(exist_ok=True)
        write_rows(run / "prompts" / f"{split}.jsonl", task.rows(args.prompts, split, seed=EVALUATION + seed))
    config, file = CarryConfig(steps=args.steps, methods=METHODS), pairs / "pairs.jsonl"
    for method in args.methods:
        took = run_stage(
            run / method,
            {**made, "steps": args.steps},
            lambda into, method=method: train_method(into, base, file, config, method, seed),  # type: ignore[misc]
        )
        print(f"{name}, seed {seed}: {method} trained in {took:.0f} s", flush=True)


def outcome(results: Results, split: str, heat: float, at: int) -> tuple[float, float, str]:
    """Compares SRPO's best system after `at` revisions with its strongest opponent.

    Returns the difference in points, half the width of its interval, and the opponent's name. The half width is the
    root of the sum of both systems' squared half widths, which is wider than a paired interval.
    """
    rows = {row["system"]: row for row in results.rows if row["revision"] == at and row["seed"] == "pool"}
    ours = max((name for name in rows if name in ("srpo", "srpo_always")), key=lambda name: rows[name]["mean"])
    chains = [name for name in rows if name.startswith("srpo") and "/" not in name]
    rivals = [name for name in rows if name not in (*results.bounds, *chains)]
    best = max(rivals, key=lambda name: rows[name]["mean"])
    half = sum(((rows[name]["high"] - rows[name]["low"]) / 2) ** 2 for name in (ours, best)) ** 0.5
    return 100 * (rows[ours]["mean"] - rows[best]["mean"]), 100 * half, best


def report(run: Path, name: str, seed: int, args: argparse.Namespace) -> str:
    """The tables of one task and seed as Markdown."""
    lines = []
    for split in SPLITS:
        gate = json.loads((run / f"gate.{split}" / "srpo_gate.json").read_text("utf-8"))
        for heat in args.temperature:
            results = table(run, split, heat, seed, args)
            lines += [f"### {name}, {split}, T = {heat:g}, seed {seed} (n = {args.prompts:,})", ""]
            if heat:
                rates = ", ".join(f"{key} {percent_of(value)}" for key, value in gate["rates"].items())
                lines += [f"Gate: **{gate['verdict']}**: {gate['why']}. Rates, %: {rates}.", ""]
            gap, half, best = outcome(results, split, heat, 1)
            lines += [f"After one revision: SRPO minus {best}: {gap:+.1f} ± {half:.1f} points.", ""]
            head = [f"k = {k}" for k in range(args.revisions + 1)]
            lines += ["| system | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
            for system in results.values("system"):
                means = [f"{100 * row['mean']:.1f}" for row in results.curve(system, split, heat)]
                lines.append(f"| {system} | " + " | ".join(means) + " |")
            lines.append("")
    return "\n".join(lines)


def percent_of(interval: Sequence[float]) -> str:
    """A stored interval as text in per cent."""
    from srpo.statistics.bootstrap import Interval

    return percent(Interval(*interval))


def main() -> None:
    """Makes what is missing, then prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--base", nargs="*", default=[], metavar="TASK=FOLDER", help="bases that are there")
    parser.add_argument("--base_steps", type=int, default=0, help="steps of each base; 0: those of the task")
    parser.add_argument("--sampled", type=int, default=20_000, help="prompts with two drafts each, for the pairs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="srpo among them")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--gate", type=int, default=300, help="labelled prompts of the gate, a split")
    parser.add_argument("--prompts", type=int, default=2000, help="prompts of the evaluation, a split")
    parser.add_argument("--revisions", type=int, default=5)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    pages = []
    for name in args.tasks:
        for seed in args.seeds:
            run = Path(args.output_dir) / name / f"seed{seed}"
            make_seed(run, name, seed, args)
            pages.append(report(run, name, seed, args))
            (run / "tables.md").write_text(pages[-1], "utf-8")
    print("\n".join(pages))


if __name__ == "__main__":
    main()
