"""The study of β on the carry task: one resumable command, one cell a setting.

    python -m benchmarks.beta_study --output_dir runs/beta --cells constant budget cosine

A cell trains the shipped base on pairs of its own drafts, then draws greedy and sampled answers to sums in and out of
distribution. Finished cells are lines of `journal.jsonl` in the folder, and are not repeated. `--cells` names groups of
`GROUPS`; `--report` prints the tables of the journal and trains nothing. Use one thread: `OMP_NUM_THREADS=1`.
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
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.tasks.carry import SPLITS
from srpo.tasks.carry_run import EVALUATION, VALIDATION, CarryConfig, StageLog, evaluation_rows, start_run
from srpo.train.collapse import CollapseLight
from srpo.train.config import SRPOConfig
from srpo.train.trainer import SRPOTrainer

JOURNAL, NEW_TOKENS, DRAW_BATCH = "journal.jsonl", 7, 500
BETAS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
WAYS = ("constant", "budget")
HEAD = (
    "| objective | β | schedule | learning rate | α | seed | greedy in / out | T = 1 in, k = 0 1 2 | out, k = 0 1 2 "
    "| out, best k | KL drafts | KL revisions | chosen | chosen revised | loss | last β | warned at |\n"
    + "| --- " * 17
    + "|"
)
LOGGED = 5  # steps between two logs


@dataclass(frozen=True)
class Cell:
    """Settings of one training: starting β, its schedule, learning rate, α, seed and objective."""

    beta: float
    schedule: str = "constant"
    learning_rate: float = 2e-4
    alpha: float = 0.5
    seed: int = 0
    objective: str = "srpo"

    @property
    def name(self) -> str:
        """Key of the cell in the journal."""
        return " ".join(f"{key}={value}" for key, value in asdict(self).items())


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
    "alpha": [Cell(beta, way, alpha=alpha) for way in WAYS for alpha in (0.2, 0.8) for beta in (0.01, 0.1, 1.0)],
    "seeds": [
        Cell(beta, way, seed=seed)
        for seed in (1, 2)
        for way, beta in (("constant", 0.1), ("budget", 0.01), ("budget", 1.0), ("budget", 0.1))
    ],
    "base": [Cell(1.0, objective="base")],
    "others": [Cell(beta, objective=name) for name in ("dpo", "ipo") for beta in (0.1, 1.0)],
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
    trainer = SRPOTrainer(str(run / "base"), args=args, train_dataset=str(run / "pairs" / "pairs.jsonl"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    trained = time.process_time() - began
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {**answers_of(into, cell, config), "log": log, "train_s": trained, "all_s": time.process_time() - began}


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
    settings = [row["objective"], f"{row['beta']:g}", row["schedule"], f"{row['learning_rate']:g}", f"{row['alpha']:g}"]
    return f"| {' | '.join([*settings, str(row['seed']), greedy, *curves, best, *last_values, warned_at(row)])} |"


def warned_at(row: dict[str, Any]) -> str:
    """Step at which the collapse warning was due, from the logged means of every `LOGGED` steps; "–" if it was not."""
    light, before = CollapseLight(), 0
    for entry in row["log"]:
        for step in range(before + 1, entry["step"] + 1):
            if light.see(entry, entry["beta"]):
                return str(step)
        before = entry["step"]
    return "–"


if __name__ == "__main__":
    main()
