"""The repair task, where a draft can be right in one pass: harm of revising, and whether a calibration prevents it.

    python -m benchmarks.second_task --seeds 0 1 --output_dir runs/repair

Base, offline SRPO and rounds of each seed (benchmarks/tasks/repair.py). β, α and learning rates are those of the carry
task (carry_run.CHOSEN, benchmarks/carry_rounds.py), with fewer steps for the smaller model; no reported number had a
part in a choice. Evaluated on fresh sentences of both splits: every revision kept, preferred revisions kept,
and (above T = 0) the best of as many drafts. A calibration on labelled sentences in distribution decides for each model
whether to revise, and is followed on both splits. Prints Markdown tables; everything is in `results.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from benchmarks.tasks.repair import (
    LONGEST,
    SHAPES,
    TEMPLATE,
    RepairConfig,
    per_word,
    repair_tokenizer,
    sentences,
    train_base,
)
from srpo.data.read import read_prompts
from srpo.evaluate.calibrate import calibrate, first_revisions
from srpo.evaluate.controls import best_of
from srpo.judge.load import ScoreJudge
from srpo.judge.single import Judge, exact_match
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.stored_calibration import Calibration
from srpo.revise.trail import Trail
from srpo.rounds.plan import RoundsArguments
from srpo.rounds.run import run_rounds
from srpo.statistics.bootstrap import bootstrap
from srpo.statistics.calibration import auc
from srpo.tasks.carry import label, write_rows
from srpo.tasks.carry_run import CHOSEN
from srpo.tasks.stages import run_stage
from srpo.train.run import train_with

SAMPLED, STEPS, BATCH = 8_000, 200, 32
ROUNDS, ROUND_STEPS, ROUND_LEARNING_RATE, ROUND_PROMPTS = 2, 100, 1e-4, 1_500
LABELLED, REVISIONS, NEW_TOKENS, DRAWN_TOGETHER = 500, 5, LONGEST + 1, 500
# Seeds of sentences that nothing else draws; a run's seed is added to each.
PAIRS, EVALUATION, CALIBRATION, SAMPLING = 1_000_000, 2_000_000, 3_000_000, 4_000_000
SYSTEMS = {"always": "every revision kept", "if_preferred": "kept if preferred", "best_of": "best of k+1 drafts"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/repair")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--prompts", type=int, default=800, help="sentences per split in the evaluation")
    parser.add_argument("--temperature", nargs="+", type=float, default=[1.0, 0.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    results: list[dict[str, Any]] = []
    for seed in args.seeds:
        began = time.process_time()
        results += run_seed(Path(args.output_dir) / f"seed{seed}", seed, args.prompts, args.temperature)
        print(f"seed {seed}: {time.process_time() - began:.0f} s of a core", flush=True)
        (Path(args.output_dir) / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    for heat in args.temperature:
        tell([row for row in results if row["temperature"] == heat], heat)


# ---------------------------------------------------------------------- a seed


def run_seed(run: Path, seed: int, prompts: int, heats: list[float]) -> list[dict[str, Any]]:
    """Trains the missing models of one seed, and returns the measurements of each model and temperature."""
    base, pairs = run / "base", run / "pairs"
    config = RepairConfig(seed=seed)
    run_stage(base, asdict(config), lambda folder: make_base(folder, config))
    run_stage(pairs, {**asdict(config), "sampled": SAMPLED}, lambda folder: make_pairs(folder, base, seed))
    write_rows(run / "prompts.jsonl", sentences(ROUND_PROMPTS, "in", seed=SAMPLING + seed))
    chosen = CHOSEN["srpo"]
    settings = {
        "model_name_or_path": str(base),
        "dataset_name": str(pairs / "pairs.jsonl"),
        "beta": chosen.beta,
        "alpha": chosen.alpha,
        "learning_rate": chosen.learning_rate,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "seed": seed + 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    plan = RoundsArguments(
        rounds=ROUNDS,
        sample_prompts=str(run / "prompts.jsonl"),
        sample_max_new_tokens=NEW_TOKENS,
        sample_batch_size=DRAWN_TOGETHER,
        labels_per_round=ROUND_STEPS * BATCH,
        round_steps=ROUND_STEPS,
        round_learning_rate=ROUND_LEARNING_RATE,
    )
    done = run_rounds(str(run / "rounds"), settings, plan, ScoreJudge("repair: right words", per_word), train_with)
    labels = 0
    results = []
    for account in done:
        labels += account.labels
        model = run / "rounds" / f"round{account.round}" / "model"
        for heat in heats:
            drawn = run / f"drawn{account.round}.T{heat:g}"
            run_stage(
                drawn,
                {"model": str(model), "prompts": prompts},
                lambda into, m=model, t=heat: draw(into, m, base, seed, prompts, t),
            )
            told = {"seed": seed, "round": account.round, "labels": labels, "temperature": heat}
            results.append({**told, "informative": account.informative, **measure(drawn)})
            print(json.dumps(results[-1]), flush=True)
    return results


def make_base(folder: Path, config: RepairConfig) -> None:
    """Trains the base model, and saves it with tokenizer and template in `folder`."""
    *_, (_, _, model) = train_base(config)
    for part in (model, repair_tokenizer()):
        part.save_pretrained(folder)
    TEMPLATE.save(folder)


def make_pairs(folder: Path, base: Path, seed: int) -> None:
    """Draws two drafts of the base for each sentence and writes them as pairs: more right words are preferred."""
    rows, reviser = sentences(SAMPLED, "in", seed=PAIRS + seed), Reviser(str(base), batch_size=1000)
    first, second = (
        [t.after(0).text for t in reviser.revise(rows, 0, seed=draw, max_new_tokens=NEW_TOKENS)] for draw in (1, 2)
    )
    write_rows(folder / "pairs.jsonl", label(rows, first, second, per_word))


def draw(folder: Path, model: Path, base: Path, seed: int, prompts: int, heat: float) -> None:
    """Calibrates a model, and draws the trails of each system on both splits into `folder`."""
    reviser = Reviser(str(model), reference=str(base), batch_size=DRAWN_TOGETHER)
    settings = RevisionSettings(REVISIONS, heat, seed, NEW_TOKENS)
    labelled = read_prompts(sentences(LABELLED, "in", seed=CALIBRATION + seed))
    calibrate(reviser, labelled, exact_match, settings).save(folder)
    for split in SHAPES:
        rows = sentences(prompts, split, seed=EVALUATION + seed)
        for system in SYSTEMS:
            if system == "best_of" and not heat:
                continue  # greedy drafts are all the same
            if system == "best_of":
                trails = best_of(reviser, rows, settings)
            else:
                trails = list(reviser.trails(read_prompts(rows), replace(settings, policy=system)))
            (folder / f"{system}.{split}.jsonl").write_text("".join(t.to_json() + "\n" for t in trails), "utf-8")


def measure(folder: Path) -> dict[str, Any]:
    """Returns the measurements of a model from the files that `draw` wrote.

    They are shares of exact answers after 0, 1, … revisions or further drafts, the calibration's decision and its gain,
    and the quality of the confidence.
    """
    calibration = Calibration.load(folder)
    assert calibration is not None
    choice = calibration.choice
    # Without a calibration `auto` weighs revisions where there is a reference, and keeps every one where there is none.
    ways = {
        "followed": (choice.policy, choice.revisions),
        "if_preferred": ("if_preferred", REVISIONS),
        "always": ("always", REVISIONS),
    }
    found: dict[str, Any] = {
        "decided": f"{choice.policy}, {choice.revisions}",
        "decision": choice.sentence(),
        "calibration_auc": calibration.auc,
    }
    for split in SHAPES:
        trails = {
            system: [Trail.from_json(line) for line in (folder / f"{system}.{split}.jsonl").open(encoding="utf-8")]
            for system in SYSTEMS
            if (folder / f"{system}.{split}.jsonl").exists()
        }
        right = {system: torch.tensor([graded(t, exact_match) for t in each]) for system, each in trails.items()}
        preferred, better = first_revisions(trails["always"], [graded(t, per_word)[:2] for t in trails["always"]])
        found[split] = {
            "exact": {system: right[system].double().mean(0).tolist() for system in right},
            "auc": auc(preferred, better) if 0 < sum(better) < len(better) else None,
            "judged_right": sum((p > 0.5) == bool(b) for p, b in zip(preferred, better, strict=True)),
            "changed": len(better),
            "better": sum(better),
            "gains": {name: gain(right, policy, revisions) for name, (policy, revisions) in ways.items()},
        }
    return found


def graded(trail: Trail, judge: Judge) -> list[float]:
    """Returns the scores of a trail's newest kept answer after 0, 1, … revisions."""
    return [judge(trail.prompt, trail.after(k).text, trail.meta["gold"]) for k in range(REVISIONS + 1)]


def gain(right: dict[str, torch.Tensor], policy: str, revisions: int) -> list[float]:
    """Returns the mean difference of final answers and drafts of the same prompts, and the ends of its 95 % interval.

    Args:
        right: policy → [N, K] 1 where the answer to prompt n after k revisions is right.
    """
    if policy == "drafts":
        return [0.0, 0.0, 0.0]
    found = bootstrap((right[policy][:, revisions] - right[policy][:, 0]).double()[:, None])
    return [float(each[0]) for each in (found.mean, found.low, found.high)]


# ---------------------------------------------------------------------- the output


def tell(results: list[dict[str, Any]], heat: float) -> None:
    """Prints the Markdown tables of one temperature, a line for each model."""
    for split in reversed(SHAPES):
        print(f"\nT = {heat:g}, {split} of distribution, exact answers in % after 0, 1, … revisions or drafts:\n")
        print("| seed | round | labels | " + " | ".join(SYSTEMS.values()) + " |")
        print("| ---: | ---: | ---: |" + " --- |" * len(SYSTEMS))
        for row in results:
            exact = row[split]["exact"]
            curves = [" ".join(f"{100 * value:.1f}" for value in exact.get(system, [])) for system in SYSTEMS]
            print(f"| {row['seed']} | {row['round']} | {row['labels']} | " + " | ".join(curves) + " |")
    print(
        f"\nT = {heat:g}, decision from labelled prompts in distribution; final answers less drafts in points, followed"
    )
    print(f"and at {REVISIONS} revisions without it; first revisions that matter:\n")
    print(
        "| seed | round | decision | split | followed | if preferred | always | AUC | changed | judged right | better |"
    )
    print("| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in results:
        for split in SHAPES:
            part = row[split]
            area = "" if part["auc"] is None else f"{part['auc']:.3f}"
            shares = f"{part['changed']} | {part['judged_right']} | {part['better']}"
            gains = " | ".join(points(interval) for interval in part["gains"].values())
            print(f"| {row['seed']} | {row['round']} | {row['decided']} | {split} | {gains} | {area} | {shares} |")


def points(interval: list[float]) -> str:
    """Returns a mean and its 95 % interval in points, as text."""
    mean, low, high = (f"{100 * each:+.1f}".replace("-", "−") for each in interval)
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
