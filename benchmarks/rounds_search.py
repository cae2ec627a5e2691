"""Chooses how a round on the carry task is run, on bases and sums that no reported number uses.

    OMP_NUM_THREADS=1 python -m benchmarks.rounds_search --ways before prompts-20k --output_dir runs/rounds_search

Each way is three rounds (or `--rounds`) from one offline SRPO training, in which one thing differs: the number of
sampled sums, the training of a round, its pairs, or the choice of comparisons. A way's score is the share of exact
answers after five revisions of the last round, T = 1, averaged over both splits and all bases. Finished runs are not
repeated. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.carry_rounds import BATCH, NEW_TOKENS, ROUNDS, STEPS, Job, RightDigits, plan_of, rights, settings_of
from srpo.revise.reviser import Reviser
from srpo.rounds.run import run_rounds
from srpo.tasks.carry import SPLITS, BaseConfig
from srpo.tasks.carry_run import VALIDATION, CarryConfig, StageLog, evaluation_rows, start_run
from srpo.tasks.stages import run_stage
from srpo.train.run import train_with


@dataclass(frozen=True)
class Way:
    """Differences from a round of the first measurement (docs/lab-book/13-rounds-on-the-carry-task.md).

    Attributes:
        prompts: number of sums that are sampled in each round.
        plan: fields of `RoundsArguments`.
        train: how a round trains: "afresh", with "kept" moments of the optimiser, or on "all" pairs so far.
    """

    prompts: int = 5_000
    plan: Mapping[str, Any] = field(default_factory=dict)
    train: str = "afresh"


WAYS: Mapping[str, Way] = {
    "before": Way(),
    "prompts-20k": Way(20_000),
    "prompts-20k lr-2e-4": Way(20_000, {"round_learning_rate": 2e-4}),
    "prompts-20k steps-300": Way(20_000, {"round_steps": 300}),
    "prompts-20k all-pairs": Way(20_000, train="all"),
    "prompts-20k hotter": Way(20_000, {"sample_temperature": 1.5}),
    "prompts-20k lr-5e-5": Way(20_000, {"round_learning_rate": 5e-5}),
    "prompts-20k moving": Way(20_000, {"round_reference": "moving"}),
    "prompts-20k half-offline": Way(20_000, {"offline_share": 0.5}),
    "prompts-20k quarter-offline": Way(20_000, {"offline_share": 0.25}),
    "prompts-40k": Way(40_000),
    "all-pairs": Way(train="all"),
    "half-offline": Way(plan={"offline_share": 0.5}),
    "hotter": Way(plan={"sample_temperature": 1.5}),
    "labels-1000 random": Way(plan={"labels_per_round": 1000}),
    "labels-1000 uncertain": Way(plan={"labels_per_round": 1000, "choose": "uncertain"}),
    "depth-1": Way(plan={"ask": "draft-revision,draft-draft"}),
    "depth-3": Way(plan={"sample_revisions": 3}),
    "moving": Way(plan={"round_reference": "moving"}),
    "kept-optimiser": Way(train="kept"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/search", help="bases and offline pairs; made where they are not there")
    parser.add_argument("--output_dir", default="runs/rounds_search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000])
    parser.add_argument("--threads", type=int, default=1, help="of a base's training; another number is another base")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--prompts", type=int, default=1000, help="validation sums per split")
    args = parser.parse_args()
    quiet()
    log = StageLog(lambda what, seconds: print(f"{what}: {seconds:.0f} s", flush=True))
    found = []
    for seed in args.seeds:
        run = Path(args.runs) / f"seed{seed}"
        start_run(run, replace(CarryConfig(), base=BaseConfig(threads=args.threads)), seed, log)
        for name in args.ways:
            out = Path(args.output_dir) / f"seed{seed}" / name.replace(" ", "_")
            rows = measured(Job(str(run), str(out), "srpo", seed, BATCH * STEPS, args.prompts), name, args.rounds)
            show(rows[-1:])
            found += rows
    print()
    show(found)


def quiet() -> None:
    from transformers.utils import logging as hf_logging

    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("srpo").setLevel(logging.ERROR)


def measured(job: Job, name: str, rounds: int) -> list[dict[str, Any]]:
    """Trains one way on one base, draws its answers to the validation sums, and returns a row for each round."""
    way, out = WAYS[name], Path(job.out)
    begun = out.parent / "round0"  # the same in all ways
    if begun.exists() and way.train != "kept" and not (out / "round0").exists():
        shutil.copytree(begun, out / "round0")
    plan = plan_of(job, out.with_suffix(".prompts.jsonl"), way.prompts, rounds=rounds, **way.plan)
    train = {"afresh": train_with, "kept": Keeping(), "all": train_on_all}[way.train]
    done = run_rounds(str(out), settings_of(job, job.method), plan, RightDigits(), train)
    if not begun.exists():
        shutil.copytree(out / "round0", begun)
    rows, labels, pairs = [], 0, 0
    for each in done:
        labels, pairs = labels + each.labels, pairs + each.pairs
        model = (begun if each.round == 0 else out / f"round{each.round}") / "model"
        drawn = begun.parent / "validated0" if each.round == 0 else out / f"validated{each.round}"
        run_stage(drawn, {"model": str(model), "prompts": job.prompts}, lambda folder, m=model: draw(folder, m, job))
        exact = {split: rights(drawn / f"revised.{split}.jsonl").mean(0).tolist() for split in SPLITS}
        seconds = sum(each.seconds.values())
        row = {"seed": job.seed, "way": name, "round": each.round, "labels": labels, "pairs": pairs}
        rows.append({**row, "seconds": seconds, **exact})
    (out / "measured.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return rows


def draw(folder: Path, model: Path, job: Job) -> None:
    config = replace(CarryConfig(), prompts=job.prompts)
    reviser = Reviser(str(model), batch_size=1000)
    for split, rows in evaluation_rows(config, job.seed, VALIDATION).items():
        trails = reviser.revise(
            rows, config.revisions, seed=job.seed, max_new_tokens=NEW_TOKENS, policy="always", temperature=1.0
        )
        (folder / f"revised.{split}.jsonl").write_text("".join(t.to_json() + "\n" for t in trails), "utf-8")


def train_on_all(settings: dict[str, Any]) -> None:
    """Trains like `train_with`, but on the pairs of this round and of all rounds before it."""
    here = Path(settings["output_dir"]).parent
    files = sorted(here.parent.glob("round[1-9]/pairs.jsonl"))
    if here.name != "round0":
        mixed = here / "all.jsonl"
        mixed.write_bytes(b"".join(file.read_bytes() for file in files if file.parent.name <= here.name))
        settings = {**settings, "dataset_name": str(mixed)}
    train_with(settings)


class Keeping:
    """Trains like `train_with`, but starts from the optimiser's moments at the end of the training before.

    The moments are in memory alone, so an interrupted way has to start again.
    """

    def __init__(self) -> None:
        self.moments: dict[Any, Any] = {}

    def __call__(self, settings: dict[str, Any]) -> None:
        from transformers import TrainerCallback

        from srpo.model.weights.load import load_model
        from srpo.train.config import SRPOConfig
        from srpo.train.trainer import SRPOTrainer

        keeping = self

        class Carry(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **now: Any) -> None:
                begun = now["optimizer"].state_dict()  # learning rates are the new training's own
                now["optimizer"].load_state_dict({**begun, "state": keeping.moments})

            def on_train_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
                keeping.moments = now["optimizer"].state_dict()["state"]

        named = dict(settings)
        model, data, reference = (
            named.pop(key, None) for key in ("model_name_or_path", "dataset_name", "ref_model_name_or_path")
        )
        named.pop("use_peft", None)
        frozen = load_model(reference) if reference else None
        trainer = SRPOTrainer(model, ref_model=frozen, args=SRPOConfig(**named), train_dataset=data)
        trainer.add_callback(Carry())
        trainer.train()
        trainer.save_model()


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table with a line for each way, base and round."""
    print("| way | base | round | labels | pairs | in, revisions 0 1 … | out, revisions 0 1 … | score |")
    print("| --- | ---: | ---: | ---: | ---: | --- | --- | ---: |")
    for row in rows:
        curves = " | ".join(" ".join(f"{100 * share:.1f}" for share in row[split]) for split in SPLITS)
        score = sum(row[split][-1] for split in SPLITS) / len(SPLITS)
        print(
            f"| {row['way']} | {row['seed']} | {row['round']} | {row['labels']} | {row['pairs']} "
            f"| {curves} | {100 * score:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
