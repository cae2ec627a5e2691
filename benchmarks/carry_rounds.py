"""Rounds on the carry task: training on the model's own drafts, against as many more steps and labels offline.

    python -m benchmarks.carry_rounds --seeds 3 --first_seed 3 --runs runs/demo3 --output_dir runs/rounds

Base and offline pairs of each seed are those of `srpo demo` (in `--runs`; made if missing). From the same base, with
as many optimiser steps and labels a round:

    srpo        offline, then rounds on drafts and revisions of its own
    dpo, ipo    offline, then rounds on drafts of its own (and asked to revise at evaluation, as everywhere)
    offline     SRPO without rounds: the steps and labels of all rounds go into more offline pairs

Offline settings are those of docs/lab-book/05-search-on-two-bases.md. Learning rate and steps of a round are those of
one earlier run on another base (1e-4, 150 steps of 64 pairs); benchmarks/rounds_search.py chose the number of sums.
Evaluated on fresh sums, T = 1, every revision kept, and the best of k+1 drafts by implied
reward. Prints Markdown tables; everything is in `results.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds_plots import TITLES, plot
from srpo.evaluate.controls import best_of
from srpo.judge.single import exact_match, per_character
from srpo.judge.verdict import Verdict
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.rounds.plan import RoundsArguments
from srpo.rounds.run import run_rounds
from srpo.statistics.bootstrap import bootstrap
from srpo.tasks.carry import SPLITS, sums, write_rows
from srpo.tasks.carry_run import CHOSEN, CarryConfig, StageLog, evaluation_rows, make_pairs, start_run
from srpo.tasks.stages import run_stage, side_by_side
from srpo.train.run import train_with

ROUNDS, STEPS, BATCH, LEARNING_RATE = 3, 150, 64, 1e-4
PROMPTS = 20_000  # sampled from in each round
ASKED = {"srpo": "draft-revision,revision-revision,draft-draft", "dpo": "draft-draft", "ipo": "draft-draft"}
OFFLINE = {"srpo": CHOSEN["srpo_always"], "dpo": CHOSEN["dpo"], "ipo": CHOSEN["ipo"]}
SAMPLING, VALIDATION = 4_000_000, 5_000_000  # seeds of sums that nothing else draws
NEW_TOKENS = 7
LAST = 5  # revisions, or further drafts, at the end


class RightDigits:
    """The exact judge of the carry task: prefers the answer with more right digits."""

    identity = "carry: right digits"

    def compare(self, comparisons: Any) -> Iterator[Verdict]:
        for each in comparisons:
            one, other = (per_character(each.prompt, text, each.gold) for text in (each.first, each.second))
            yield Verdict(0.5 + 0.5 * ((one > other) - (one < other)))


@dataclass(frozen=True)
class Job:
    """One method to train and evaluate on one seed, with its sizes."""

    run: str
    out: str
    method: str
    seed: int
    labels: int
    prompts: int
    sampled: int = PROMPTS

    @property
    def name(self) -> str:
        return self.method if self.labels == BATCH * STEPS else f"{self.method}-{self.labels}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/demo")
    parser.add_argument("--output_dir", default="runs/rounds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=2000, help="sums per split in the evaluation")
    parser.add_argument("--sampled", type=int, default=PROMPTS, help="sums that a round draws answers to")
    parser.add_argument("--labels", type=int, nargs="*", default=[2000], help="smaller label budgets a round, for SRPO")
    args = parser.parse_args()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    log = StageLog(lambda what, seconds: print(f"{what}: {seconds:.0f} s", flush=True))
    jobs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        run = Path(args.runs) / f"seed{seed}"
        start_run(run, CarryConfig(), seed, log)
        out = str(Path(args.output_dir) / f"seed{seed}")
        for method in ("srpo", "offline", "ipo", "dpo"):
            jobs.append(Job(str(run), out, method, seed, BATCH * STEPS, args.prompts, args.sampled))
        jobs += [Job(str(run), out, "srpo", seed, labels, args.prompts, args.sampled) for labels in args.labels]
    jobs.sort(key=lambda job: job.seed)
    results = []
    for job, found in zip(jobs, side_by_side(work, jobs), strict=True):
        results += found
        print(f"seed {job.seed}, {job.name}: done", flush=True)
        (Path(args.output_dir) / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    show(results)
    compare(Path(args.output_dir), range(args.first_seed, args.first_seed + args.seeds))
    plot(results, Path(args.output_dir))


def work(job: Job) -> list[dict[str, Any]]:
    """Trains a job's method, draws its answers, returns a row of results per round. Finished stages are kept."""
    from transformers.utils import logging as hf_logging

    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    out = Path(job.out) / job.name
    models = offline(job, out) if job.method == "offline" else rounds(job, out)
    rows = []
    for number, (model, labels, steps) in enumerate(models):
        drawn = out / f"evaluated{number}"
        run_stage(drawn, {"model": str(model), "prompts": job.prompts}, lambda folder, m=model: draw(folder, m, job))
        for system in ("revised", "best_of"):
            for split in SPLITS:
                rows.append(
                    {
                        "seed": job.seed,
                        "method": job.name,
                        "round": number,
                        "labels": labels,
                        "steps": steps,
                        "system": system,
                        "split": split,
                        "exact": rights(drawn / f"{system}.{split}.jsonl").mean(0).tolist(),
                    }
                )
    return rows


def settings_of(job: Job, method: str) -> dict[str, Any]:
    """Settings of a method's training from the seed's base on its offline pairs."""
    tuned = OFFLINE[method]
    return {
        "model_name_or_path": f"{job.run}/base",
        "dataset_name": f"{job.run}/pairs/pairs.jsonl",
        "objective": tuned.objective,
        "beta": tuned.beta,
        "alpha": tuned.alpha,
        "learning_rate": tuned.learning_rate,
        "max_steps": CarryConfig().steps,
        "per_device_train_batch_size": BATCH,
        "seed": job.seed + 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def plan_of(job: Job, file: Path, prompts: int, **changed: Any) -> RoundsArguments:
    """Settings of a method's rounds; writes the sums to sample from to the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_rows(file, sums(prompts, "in", seed=SAMPLING + job.seed))
    settings: dict[str, Any] = {
        "rounds": ROUNDS,
        "sample_prompts": str(file),
        "samples_per_prompt": 2 if job.method == "srpo" else 4,
        "sample_revisions": 2 if job.method == "srpo" else 0,
        "sample_max_new_tokens": NEW_TOKENS,
        "sample_batch_size": 1000,
        "ask": ASKED[job.method],
        "labels_per_round": job.labels,
        "round_steps": STEPS,
        "round_learning_rate": LEARNING_RATE,
    }
    return RoundsArguments(**{**settings, **changed})


def rounds(job: Job, out: Path) -> list[tuple[Path, int, int]]:
    """Runs the rounds; returns (model, labels so far, steps so far) after the offline training and after each round."""
    plan = plan_of(job, out.with_suffix(".prompts.jsonl"), job.sampled)
    done = run_rounds(str(out), settings_of(job, job.method), plan, RightDigits(), train_with)
    labels = [sum(each.labels for each in done[: n + 1]) for n in range(len(done))]
    steps = [CarryConfig().steps + n * STEPS for n in range(len(done))]
    return [(out / f"round{n}" / "model", labels[n], steps[n]) for n in range(len(done))]


def offline(job: Job, out: Path) -> list[tuple[Path, int, int]]:
    """Trains SRPO once, from the base, with the steps and labels of all rounds: on that many more offline pairs.

    Returns (model, further labels, steps) as the only item of a list.
    """
    config = CarryConfig()
    extra = ROUNDS * job.labels
    more = replace(config, sampled=config.sampled + extra)
    pairs, base = out / "pairs", Path(job.run) / "base"
    run_stage(pairs, {"sampled": more.sampled}, lambda folder: make_pairs(folder, base, more, 10_000 + job.seed))
    model, steps = out / "model", config.steps + ROUNDS * STEPS
    settings = settings_of(job, "srpo") | {
        "dataset_name": str(pairs / "pairs.jsonl"),
        "output_dir": str(model),
        "max_steps": steps,
    }
    run_stage(model, settings, lambda folder: train_with(settings))
    return [(model, extra, steps)]


def draw(folder: Path, model: Path, job: Job) -> None:
    """Draws two systems' answers to the evaluation sums into `folder`: every revision kept, and best of drafts."""
    config = replace(CarryConfig(), prompts=job.prompts)
    rows = evaluation_rows(config, job.seed)
    reviser = Reviser(str(model), reference=f"{job.run}/base", batch_size=1000)
    plain = Reviser(str(model), batch_size=1000)  # no log-ratios where none are needed
    for split in SPLITS:
        settings = RevisionSettings(config.revisions, 1.0, job.seed, NEW_TOKENS)
        for system, trails in (
            ("revised", plain.revise(rows[split], **asdict(settings))),
            ("best_of", best_of(reviser, rows[split], settings)),
        ):
            (folder / f"{system}.{split}.jsonl").write_text("".join(t.to_json() + "\n" for t in trails), "utf-8")


def rights(file: Path) -> Tensor:
    """[N, K] true where a trail's newest kept answer after k revisions is exactly right; `file` has N trails."""
    trails = [Trail.from_json(line) for line in file.open(encoding="utf-8")]
    ks = range(len(trails[0].answers))
    return torch.tensor([[exact_match(t.prompt, t.after(k).text, t.meta["gold"]) for k in ks] for t in trails])


def compare(folder: Path, seeds: Sequence[int]) -> None:
    """Prints the gain of SRPO's last round, paired over prompts, over round 0 and over opponents at equal cost."""
    ours = ("srpo", ROUNDS, "revised", LAST)
    rivals = {
        "round 0, its best k": ("srpo", 0, "revised", None),
        "its own best k": (*ours[:3], None),
        "best of six of its own drafts": ("srpo", ROUNDS, "best_of", LAST),
        "as many steps and labels offline, its best k": ("offline", 0, "revised", None),
        "best of six of those": ("offline", 0, "best_of", LAST),
        "IPO after its rounds, draft": ("ipo", ROUNDS, "revised", 0),
        "best of six of those drafts": ("ipo", ROUNDS, "best_of", LAST),
        "DPO after its rounds, draft": ("dpo", ROUNDS, "revised", 0),
        "best of six DPO drafts": ("dpo", ROUNDS, "best_of", LAST),
    }
    for split in reversed(SPLITS):

        def column(seed: int, method: str, number: int, system: str, k: int | None, split: str = split) -> Tensor:
            right_NK = rights(folder / f"seed{seed}" / method / f"evaluated{number}" / f"{system}.{split}.jsonl")
            return right_NK[:, int(right_NK.mean(0).argmax()) if k is None else k]

        print(f"\n{TITLES[split]}, SRPO after {ROUNDS} rounds at k = {LAST} minus, points:\n")
        print(
            "| | pooled | "
            + " | ".join(f"seed {seed}" for seed in seeds)
            + " |\n| --- |"
            + " ---: |" * (1 + len(seeds))
        )
        for said, rival in rivals.items():
            a, b = ([column(seed, *each) for seed in seeds] for each in (ours, rival))
            differences_N1 = (torch.cat(a) - torch.cat(b))[:, None]
            pooled = bootstrap(differences_N1, strata=[len(each) for each in a]).column(0)
            alone = " | ".join(f"{100 * float((x - y).mean()):+.1f}" for x, y in zip(a, b, strict=True))
            print(
                f"| {said} | {100 * pooled.mean:+.1f} ({100 * pooled.low:.1f} to {100 * pooled.high:.1f}) | {alone} |"
            )


def show(results: list[dict[str, Any]]) -> None:
    """Prints tables of exact answers by method and round, for each seed and pooled."""
    for split in reversed(SPLITS):
        for system, said in (("revised", "revisions"), ("best_of", "further drafts")):
            print(f"\n{TITLES[split]}, exact answers in % after 0, 1, … {said}:\n")
            print("| method | round | labels, mean | steps | pooled | by seed, last |")
            print("| --- | ---: | ---: | ---: | --- | --- |")
            cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for row in results:
                if (row["split"], row["system"]) == (split, system):
                    cells.setdefault((row["method"], row["round"]), []).append(row)
            for (method, number), rows in cells.items():
                pooled = [sum(values) / len(rows) for values in zip(*(row["exact"] for row in rows), strict=True)]
                curve = " ".join(f"{100 * value:.0f}" for value in pooled)
                last = " ".join(f"{100 * row['exact'][-1]:.1f}" for row in rows)
                labels, steps = sum(row["labels"] for row in rows) / len(rows), rows[0]["steps"]
                print(f"| {method} | {number} | {labels:.0f} | {steps} | {curve} | {last} |")


if __name__ == "__main__":
    main()
