"""The study of β on the carry task: one resumable command, one cell a setting.

    python -m benchmarks.beta_study --output_dir runs/beta --cells constant budget cosine

A cell trains the shipped base on pairs of its own drafts, then draws greedy and sampled answers to sums in and out of
distribution. Finished cells are lines of `journal.jsonl` in the folder, and are not repeated. `--cells` names groups of
`GROUPS`; `--report` prints the journal as a table and trains nothing. Use one thread: `OMP_NUM_THREADS=1`.
`benchmarks.beta_tables` answers the study's questions from the journal.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging

from srpo.data.read import read_prompts
from srpo.judge.single import exact_match
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.tasks.carry import SPLITS, label, sums, write_rows
from srpo.tasks.carry_run import EVALUATION, PAIRS, VALIDATION, CarryConfig, StageLog, evaluation_rows, start_run
from srpo.tasks.stages import run_stage
from srpo.train.collapse import CollapseLight, StillLight
from srpo.train.config import SRPOConfig
from srpo.train.trainer import SRPOTrainer

JOURNAL, NEW_TOKENS, DRAW_BATCH = "journal.jsonl", 7, 500
BETAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
NEAREST = (0.1, 0.3, 0.03, 1.0, 0.01, 3.0, 0.003)  # the same, from the best constant β of seed 0 outwards
WAYS = ("constant", "budget")
HEAD = (
    "| objective | collector | β | schedule | learning rate | α | seed | greedy in / out | T = 1 in, k = 0 1 2 "
    "| out, k = 0 1 2 | out, best k | KL drafts | KL revisions | chosen | chosen revised | loss | last β "
    "| warned at | still at |\n" + "| --- " * 19 + "|"
)
LOGGED = 5  # steps between two logs
REWARDED = 400  # training pairs whose implied rewards are measured
HEATS = {"cold": 0.5, "hot": 1.5, "biased": 1.0}  # skewed collector of pairs → sampling temperature of its drafts
TRIED = {"srpo": (0.1, 0.3, 0.03), "dpo": (3.0, 1.0, 10.0), "ipo": (0.1, 0.3, 0.03)}  # β of each objective under them


@dataclass(frozen=True)
class Cell:
    """Settings of one training: starting β, its schedule, learning rate, α, seed, objective and collector of pairs."""

    beta: float
    schedule: str = "constant"
    learning_rate: float = 2e-4
    alpha: float = 0.5
    seed: int = 0
    objective: str = "srpo"
    collector: str = "base"

    @property
    def name(self) -> str:
        """Key of the cell in the journal; the oldest keys have no collector, so that of the base is left out."""
        settings = asdict(self)
        if self.collector == "base":
            del settings["collector"]
        return " ".join(f"{key}={value}" for key, value in settings.items())


def schedule_of(cell: Cell) -> dict[str, Any]:
    """Settings of a cell's β; a cosine starts ten times above the cell's β and ends there."""
    if cell.schedule == "cosine":
        return {"beta": 10 * cell.beta, "beta_schedule": "cosine", "beta_end": cell.beta}
    return {"beta": cell.beta, "beta_schedule": cell.schedule}


GROUPS: dict[str, list[Cell]] = {
    "constant": [Cell(beta) for beta in BETAS],
    "budget": [Cell(beta, "budget") for beta in BETAS],
    "cosine": [Cell(beta, "cosine") for beta in BETAS],
    "rate": [Cell(beta, way, rate) for way in WAYS for rate in (5e-5, 8e-4) for beta in (0.01, 0.1, 1.0)],
    "alpha": [Cell(0.1, way, alpha=alpha) for alpha in (0.0, 0.2, 0.8, 1.0) for way in WAYS],
    "seeds": [Cell(beta, way, seed=seed) for beta in NEAREST for seed in (1, 2) for way in WAYS],
    "base": [Cell(1.0, objective="base")],
    "others": [Cell(beta, objective=name) for name in ("dpo", "ipo") for beta in (0.1, 1.0)],
    "rewards": [cell for seed in (1, 2) for cell in (Cell(0.01, seed=seed), Cell(0.1, seed=seed, objective="dpo"))],
    "collectors": [
        Cell(TRIED[name][i], objective=name, collector=way) for i in range(3) for name in TRIED for way in HEATS
    ],
}


def main() -> None:
    """Trains and draws every missing cell of the chosen groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/beta")
    parser.add_argument("--cells", nargs="+", choices=sorted(GROUPS), default=sorted(GROUPS))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--sampled", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("srpo").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    folder = Path(args.output_dir)
    config = CarryConfig(sampled=args.sampled, steps=args.steps, batch=args.batch, prompts=args.prompts)
    sizes = {name: getattr(args, name) for name in ("steps", "batch", "sampled", "prompts")}
    done = {row["name"]: row for row in read_journal(folder) if row["sizes"] == sizes}
    for cell in dict.fromkeys(cell for group in args.cells for cell in GROUPS[group]):
        if args.report or cell.name in done:
            continue
        run = folder / "base"  # the base is the package's; pairs and sums depend on the cell's seed
        start_run(run, config, 0, StageLog())
        row = {"name": cell.name, "sizes": sizes, **asdict(cell), **measured(cell, run, folder / "model", config)}
        done[cell.name] = row
        with (folder / JOURNAL).open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(line_of(row), flush=True)
    if args.report:
        print(HEAD)
        for row in sorted(done.values(), key=lambda row: (row["objective"], row["schedule"], row["beta"], row["name"])):
            print(line_of(row))


def read_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the finished cells of the journal; a line that was cut short is left out, so that its cell runs again."""
    file = folder / JOURNAL
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def measured(cell: Cell, run: Path, into: Path, config: CarryConfig) -> dict[str, Any]:
    """Trains the cell's model, draws its answers, and returns scores and logged metrics."""
    began = time.process_time()
    if cell.objective == "base":
        return {**answers_of(run / "base", cell, config), "log": [{"step": 0, "beta": cell.beta}]}
    shutil.rmtree(into, ignore_errors=True)
    args = SRPOConfig(
        output_dir=str(into),
        objective=cell.objective,
        alpha=cell.alpha,
        allow_unidentified=cell.alpha in (0.0, 1.0),
        learning_rate=cell.learning_rate,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch,
        seed=cell.seed + 1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=LOGGED,
        **schedule_of(cell),
    )
    trainer = SRPOTrainer(str(run / "base"), args=args, train_dataset=str(pairs_of(cell.collector, run, config)))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    trained = time.process_time() - began
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {**answers_of(into, cell, config), "log": log, "rewards": implied_rewards(trainer)}
    return {**found, "train_s": trained, "all_s": time.process_time() - began}


def pairs_of(collector: str, run: Path, config: CarryConfig) -> Path:
    """Returns the file of a collector's pairs; draws them if they are missing."""
    if collector == "base":
        return run / "pairs" / "pairs.jsonl"
    folder = run / f"pairs {collector}"
    made_from = {"collector": collector, "heat": HEATS[collector], "sampled": config.sampled}
    run_stage(folder, made_from, lambda into: collect(into, run / "base", collector, config))
    return folder / "pairs.jsonl"


def collect(into: Path, base: Path, collector: str, config: CarryConfig) -> None:
    """Writes a collector's pairs: two drafts of the base to the sums of the usual pairs, at a temperature of `HEATS`.

    "biased" leaves out all pairs with an answer of 100,000 or more: every answer it collects begins with 0.
    """
    rows = sums(config.sampled, "in", digits=config.base.digits, seed=PAIRS)
    reviser = Reviser(str(base), batch_size=DRAW_BATCH, device="cpu")
    prompts, ways = read_prompts(rows), [RevisionSettings(0, HEATS[collector], draw, NEW_TOKENS) for draw in (1, 2)]
    first, second = ([trail.after(0).text for trail in reviser.trails(prompts, way)] for way in ways)
    pairs = label(rows, first, second)
    if collector == "biased":
        pairs = [pair for pair in pairs if pair["chosen"][0] == pair["rejected"][0] == "0"]
    write_rows(into / "pairs.jsonl", pairs)


@torch.no_grad()
def implied_rewards(trainer: SRPOTrainer) -> dict[str, float]:
    """Variances of implied rewards, β (log π − log π_ref) of a whole draft, over `REWARDED` pairs of the training data.

    Returns `answers`, the variance over both answers of all pairs, and `margins`, that of chosen minus rejected.
    """
    model: Any = trainer.model
    model.eval()
    rewards, count = [], min(REWARDED, len(trainer.pairs))
    for start in range(0, count, 50):
        trees = [trainer.pairs.tree(at) for at in range(start, min(start + 50, count))]
        forest, backend = Forest.plant(trees), trainer.settled_backend(model, trees)
        ours, theirs = six_logps(model, forest, backend), trainer.reference.six_logps(forest, backend)
        rewards.append(trainer.temperature.last * torch.stack([ours.w - theirs.w, ours.l - theirs.l]).double())
    rewards_2B = torch.cat(rewards, 1)
    margins_B = rewards_2B[0] - rewards_2B[1]
    return {"answers": float(rewards_2B.var(correction=0)), "margins": float(margins_B.var(correction=0))}


def answers_of(model: Path, cell: Cell, config: CarryConfig) -> dict[str, Any]:
    """Scores of a model's answers to the evaluation sums, and to half as many validation sums, which choose k."""
    choosing = evaluation_rows(replace(config, prompts=config.prompts // 2), cell.seed, VALIDATION)
    return {
        "exact": drawn(model, evaluation_rows(config, cell.seed, EVALUATION), 2),
        "validation": drawn(model, choosing, 2),
    }


def drawn(model: Path, rows: Any, revisions: int) -> dict[str, Any]:
    """Draws a model's answers greedily and at temperature 1, for each split.

    Returns, for keys such as "in T1", `curve`, the shares of exact answers after 0, 1, … revisions, and `copies`, the
    share of first revisions equal to their draft.
    """
    reviser, found = Reviser(str(model), batch_size=DRAW_BATCH, device="cpu"), {}
    for split, heat in product(SPLITS, (0.0, 1.0)):
        settings = RevisionSettings(revisions, heat, 0, NEW_TOKENS, "always")
        trails = list(reviser.trails(read_prompts(rows[split]), settings))
        curve = [
            sum(exact_match(t.prompt, t.after(k).text, t.meta["gold"]) for t in trails) / len(trails)
            for k in range(revisions + 1)
        ]
        copies = sum(t.after(1).text == t.after(0).text for t in trails) / len(trails)
        found[f"{split} T{heat:g}"] = {"curve": curve, "copies": copies}
    return found


def score(row: dict[str, Any], split: str, heat: str) -> float:
    """Share of a cell's answers that are exact, at the number of revisions that is best on the validation sums."""
    curves = [row["validation"][f"{each} {heat}"]["curve"] for each in SPLITS]
    means = [sum(values) for values in zip(*curves, strict=True)]
    return float(row["exact"][f"{split} {heat}"]["curve"][means.index(max(means))])


def line_of(row: dict[str, Any]) -> str:
    """One row of a Markdown table: settings, exact answers in per cent, last metrics, and the step of the warning."""
    exact, last = row["exact"], row["log"][-1]
    greedy = " / ".join(f"{100 * exact[f'{split} T0']['curve'][0]:.0f}" for split in SPLITS)
    curves = [" ".join(f"{100 * share:.0f}" for share in exact[f"{split} T1"]["curve"]) for split in SPLITS]
    best = f"{100 * score(row, 'out', 'T1'):.1f}"
    names = ("kl/drafts", "kl/revisions", "drift/chosen", "drift/chosen_revised", "loss", "beta")
    last_values = [f"{last[name]:.3g}" if name in last else "–" for name in names]
    which = [row["objective"], row.get("collector", "base"), f"{row['beta']:g}", row["schedule"]]
    settings = [*which, f"{row['learning_rate']:g}", f"{row['alpha']:g}", str(row["seed"])]
    found = [greedy, *curves, best, *last_values, warned_at(row), still_at(row)]
    return f"| {' | '.join([*settings, *found])} |"


def warned_at(row: dict[str, Any]) -> str:
    """Step at which the collapse warning was due, from the logged means of every `LOGGED` steps; "–" if it was not."""
    light = CollapseLight()
    return next((str(step) for step, entry in by_step(row) if light.see(entry, entry["beta"])), "–")


def still_at(row: dict[str, Any]) -> str:
    """Step at which "hardly moved" was due, from the same means; "–" if it was not, or the schedule is a budget."""
    light, steps = StillLight(), row["log"][-1]["step"]
    if row["schedule"] == "budget":
        return "–"
    return next((str(step) for step, entry in by_step(row) if light.see(entry, entry["beta"], step, steps)), "–")


def by_step(row: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each step of a training with the logged means of the `LOGGED` steps that it belongs to."""
    before = 0
    for entry in row["log"]:
        yield from ((step, entry) for step in range(before + 1, entry["step"] + 1))
        before = entry["step"]


if __name__ == "__main__":
    main()
