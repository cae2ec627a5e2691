"""Orders, total first: the stage where a revision knows what no draft can; gated steps, one resumable command.

    python -m benchmarks.orders --output_dir runs/orders --seeds 0 1 2

For each seed:

1. a base that drafts orders (benchmarks/tasks/orders.py); three of four training answers have a wrong total. It
   trains in cycles of `--base_steps` until its drafts of other orders work the total out, `--cycles` at most
2. the second role, on the base's own drafts: their revisions have their own last running total at the head;
   `calibrate --before` on the model before and after it
3. pairs of the model's own drafts, one with the right total and one with a wrong total; SRPO, DPO, IPO, SFT and an SFT
   reviser from that model on the same pairs in the same number of steps, and SRPO from the base without a second role
4. rounds are left out
5. drafts and revisions against every opponent (benchmarks/orders_tables.py)

Each step keeps its numbers in `gates.json`, and the command stops at a gate that fails. Finished stages stay in the
folder; the same command goes on where it stopped. `--model FOLDER` starts from a pretrained model, with the part of
its vocabulary that orders use (benchmarks/tasks/pruned.py): the orders are in words, all of 3 items.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from benchmarks.orders_stages import (
    GATES,
    METHOD_SIZES,
    PAIR_SIZES,
    PAIRS,
    READY,
    ROLE,
    ROLE_SIZES,
    GateClosed,
    Sizes,
    Stage,
)
from benchmarks.orders_tables import tables
from benchmarks.tasks import orders as task
from benchmarks.tasks import pictured_orders
from benchmarks.tasks.orders import right, worked_out
from benchmarks.tasks.pruned import prune_vocabulary
from benchmarks.when_pays import percent_of
from srpo.data.read import read_prompts
from srpo.disk import write_file
from srpo.evaluate.gate import measure_gate
from srpo.model.weights.load import load_model, load_processor, load_tokenizer
from srpo.revise.settings import RevisionSettings
from srpo.sequences.render import Renderer
from srpo.tasks.carry import write_rows
from srpo.tasks.carry_run import CarryConfig, MethodSettings, train_method
from srpo.tasks.pretraining import fit
from srpo.tasks.stages import STAGE_FILE

# Method → objective. `srpo_no_role` is SRPO from the base, which never saw a revision.
METHODS = {name: name for name in ("srpo", "dpo", "ipo", "sft", "sft_reviser")} | {"srpo_no_role": "srpo"}
GATE_BETAS = (0.1, 0.2)
TOOK = "seconds of training"
# Least and largest values that let a step pass; of step 1 shares of greedy drafts, of step 3 points lost by SRPO.
LAST_TOTAL, HEAD, MEND_OVER_RIGHT, KEEP, LOST = {"in": 0.9, "out": 0.7}, 0.2, 2.0, 0.8, 0.1
# The base trains on in cycles until its shares on other orders are ABOVE over those of LAST_TOTAL.
ABOVE, CYCLE = 0.02, 100  # CYCLE separates the seeds of the cycles
LOGGED = 10  # steps between two lines of a pretrained model's training

HELP = {
    "base_steps": "optimiser steps of a cycle of step 1",
    "cycles": "largest number of these cycles",
    "base_learning_rate": "learning rate of step 1 with --model",
    "ready": "orders that end the cycles, a split",
    "labelled": "labelled orders of each gate, a split",
    "role_prompts": "drafts from which the second role is learnt",
    "role_steps": "optimiser steps of the second role, every other one on drafts",
    "role_learning_rate": "learning rate of the second role",
    "pair_prompts": "orders from which pairs are made",
    "draws": "totals drawn for each of them",
    "least_pairs": "smallest number of pairs that lets step 3 go on",
    "steps": "optimiser steps of each method",
    "batch": "pairs per step",
    "beta": "weight of the divergence, for every method",
    "learning_rate": "learning rate of each method",
    "prompts": "orders of the evaluation, a split and seed",
    "revisions": "largest number of revisions",
    "batch_size": "prompts answered at once",
}


# ---------------------------------------------------------------------- step 1


def draft_base(stage: Stage) -> None:
    """Step 1: a model that drafts, with right lines and a total that it cannot know."""
    stage.done("base", partial(base_in_cycles, stage), "cycles", "ready")
    cycles = stage.run / "base" / "cycles.json"
    found: dict[str, Any] = {"cycles": json.loads(cycles.read_text("utf-8"))} if cycles.exists() else {}
    for split in stage.splits:
        rows = stage.rows(stage.sizes.labelled, split, GATES)
        (greedy,), (drawn,) = stage.drafts("base", rows, 0.0), stage.drafts("base", rows, 1.0)
        found[f"right total, greedy, {split}"] = right(greedy, rows)
        found[f"right total, T = 1, {split}"] = right(drawn, rows)
        found[f"last running total right, greedy, {split}"] = worked_out(greedy, rows)
    stage.note("1 drafts", found)
    for split, least in LAST_TOTAL.items():  # longer orders have no gate
        last, head = found[f"last running total right, greedy, {split}"], found[f"right total, greedy, {split}"]
        few = f"step 1: {last:.0%} of the drafts work the total out ({split}), fewer than {least:.0%}"
        stage.expect(last >= least, few)
        known = f"step 1: {head:.0%} of the drafts open with the right total ({split}): one pass suffices"
        stage.expect(head <= HEAD, known)


def base_in_cycles(stage: Stage, folder: Path) -> None:
    """Trains the base in cycles, each a stage of its own, and copies the last one; keeps the shares after each."""
    shares: list[dict[str, float]] = []
    for at in range(stage.sizes.cycles):
        cycle = stage.run / f"cycle{at}"
        stage.done(cycle.name, partial(pretrained_cycle if stage.model else base_cycle, stage, at))
        rows = {split: stage.rows(stage.sizes.ready, split, READY) for split in LAST_TOTAL}  # orders that no gate reads
        shares.append({split: worked_out(stage.drafts(cycle.name, rows[split], 0.0)[0], rows[split]) for split in rows})
        if all(shares[at][split] >= least + ABOVE for split, least in LAST_TOTAL.items()):
            break
    shutil.copytree(cycle, folder, ignore=shutil.ignore_patterns(STAGE_FILE), dirs_exist_ok=True)
    write_file(folder / "cycles.json", json.dumps(shares).encode())


def base_cycle(stage: Stage, at: int, folder: Path) -> None:
    """Trains the model of the cycle before, or one with random weights, for `base_steps` steps on further orders."""
    config = task.OrdersConfig(steps=stage.sizes.base_steps, seed=stage.seed + CYCLE * at)
    start = load_model(str(stage.run / f"cycle{at - 1}")).requires_grad_() if at else None
    for _, _, model in (pictured_orders if stage.pictured else task).train_base(config, start):  # noqa: B007
        pass
    for each in (model, pictured_orders.pictured_processor() if stage.pictured else task.orders_tokenizer()):
        each.save_pretrained(folder)
    stage.wording.template.save(folder)


def pretrained_cycle(stage: Stage, at: int, folder: Path) -> None:
    """Trains the model of the cycle before, or the pretrained one, for `base_steps` steps on further orders."""
    stage.done("pretrained", partial(pretrained, stage))
    before, sizes = str(stage.run / (f"cycle{at - 1}" if at else "pretrained")), stage.sizes
    model, tokenizer = load_model(before), load_tokenizer(before)
    config = task.OrdersConfig(batch=sizes.batch, seed=stage.seed + CYCLE * at)
    batches = task.pretrained_batches(config, Renderer(tokenizer, stage.wording.template), stage.wording)
    how = {"steps": sizes.base_steps, "learning_rate": sizes.base_learning_rate}
    for step, loss, _ in fit(model, batches, mistakes=0.0, **how):
        if step % LOGGED == 0:
            print(f"seed {stage.seed}, {folder.name}: step {step} of {sizes.base_steps}, loss {loss:.3f}", flush=True)
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    stage.wording.template.save(folder)


def pretrained(stage: Stage, folder: Path) -> None:
    """Saves the pretrained model with the vocabulary that orders need, and the template of orders."""
    wording, texts = stage.wording, list[str]()
    for split in stage.splits:
        for lines_first in (False, True):
            rows = task.orders(1000, split, seed=stage.seed, wording=wording, lines_first=lines_first)
            texts += [row["prompt"] + row["gold"] for row in rows]
    texts += [wording.template.fill_revision(text, "") for text in texts]
    prune_vocabulary(stage.model, folder, texts)
    stage.wording.template.save(folder)


def train(stage: Stage, folder: Path, start: Path, pairs: Path, method: str, *, steps: int) -> None:
    """Trains one method from a model on a file of pairs, with the product's trainer."""
    settings = MethodSettings(METHODS[method], stage.sizes.beta, stage.sizes.learning_rate)
    config = CarryConfig(steps=steps, batch=stage.sizes.batch, methods={method: settings})
    train_method(folder, start, pairs, config, method, stage.seed)


# ---------------------------------------------------------------------- step 2


def second_role(stage: Stage) -> None:
    """Step 2: revisions are trained on the base's own drafts, whose last running total becomes their total."""
    stage.done("role_rows", partial(role_rows, stage), "role_prompts")
    stage.done("role", partial(learn_role, stage), *ROLE_SIZES)
    found = {}
    for model, sizes in (("base", ()), ("role", ROLE_SIZES)):
        for split in stage.splits:
            folder = stage.run / f"gate.{model}.{split}"
            stage.done(folder.name, partial(gate, stage, model, split), "labelled", *sizes)
            read = json.loads((folder / "srpo_gate.json").read_text("utf-8"))
            found[model, split] = {key: value[0] for key, value in read["rates"].items()}
            numbers = {key: percent_of(value) for key, value in read["rates"].items()}
            stage.note(f"2 calibrate --before, {model}, {split}", {"verdict": read["verdict"], **numbers})
    rates = found["role", "in"]
    least, mend, keep = MEND_OVER_RIGHT * rates["right"], rates["mend"], rates["keep"]
    stage.expect(mend >= least, f"step 2: revisions mend {mend:.0%} of wrong drafts, fewer than {least:.0%}")
    stage.expect(keep >= KEEP, f"step 2: revisions keep {keep:.0%} of right drafts, fewer than {KEEP:.0%}")


def asked(row: Mapping[str, str]) -> dict[str, str]:
    """The prompt of a row, with its picture if it has one."""
    return {name: row[name] for name in ("prompt", "image") if name in row}


def role_rows(stage: Stage, folder: Path) -> None:
    """The base's own drafts, each with the same draft as its revision but for the total: its own last running total."""
    rows, found = stage.rows(stage.sizes.role_prompts, "in", ROLE), []
    for row, draft in zip(rows, *stage.drafts("base", rows, 1.0, seeds=(1,)), strict=True):
        value = task.last_total(draft)
        if value is not None:
            found.append({**asked(row), "draft": draft, "revision": task.with_total(draft, value)})
    if not found:
        raise GateClosed(f"seed {stage.seed}: step 2: no draft of the base works a total out: nothing to learn")
    write_rows(folder / "rows.jsonl", found)


def learn_role(stage: Stage, folder: Path) -> None:
    """Trains the base on batches of drafts and of revisions in turn, so that drafting stays as it was."""
    base, sizes = str(stage.run / "base"), stage.sizes
    model, tokenizer = load_model(base), (load_processor if stage.pictured else load_tokenizer)(base)
    rows = [json.loads(line) for line in (stage.run / "role_rows" / "rows.jsonl").open(encoding="utf-8")]
    batches = task.roles_in_turn(rows, Renderer(tokenizer, stage.wording.template), sizes.batch, stage.seed, model)
    for _ in fit(model, batches, steps=sizes.role_steps, learning_rate=sizes.role_learning_rate, mistakes=0.0):
        pass
    for each in (model, tokenizer):
        each.save_pretrained(folder)
    stage.wording.template.save(folder)


def gate(stage: Stage, model: str, split: str, folder: Path) -> None:
    """The gate of one of the seed's models on one split."""
    settings = RevisionSettings(3, 1.0, stage.seed, stage.wording.tokens)
    rows = read_prompts(stage.rows(stage.sizes.labelled, split, GATES))
    measure_gate(stage.reviser(model), rows, task.total, settings, betas=GATE_BETAS).save(folder)


# ---------------------------------------------------------------------- step 3


def methods(stage: Stage, names: Sequence[str]) -> None:
    """Step 3: every method from the model of step 2 on the same pairs of that model's own drafts."""
    stage.done("pairs", partial(own_pairs, stage), *PAIR_SIZES)
    file, least = stage.run / "pairs" / "pairs.jsonl", stage.sizes.least_pairs
    count = len(file.read_text("utf-8").splitlines())
    stage.note("3 pairs", {"pairs": count, "of orders": stage.sizes.pair_prompts})
    stage.expect(count >= least, f"step 3: {count} pairs, fewer than {least}: more pair_prompts or draws")
    rows = stage.rows(stage.sizes.labelled, "in", GATES)
    (greedy,) = stage.drafts("role", rows, 0.0)
    before = worked_out(greedy, rows)
    stage.note("3 before", {"right total, greedy": right(greedy, rows), "last running total right, greedy": before})
    for name in names:
        start = stage.run / ("base" if name == "srpo_no_role" else "role")
        work = partial(train, stage, start=start, pairs=file, method=name, steps=stage.sizes.steps)
        if took := stage.done(name, work, *METHOD_SIZES):
            stage.note(f"3 {name}", {TOOK: round(took)})
        (greedy,) = stage.drafts(name, rows, 0.0)
        last = worked_out(greedy, rows)
        numbers = {"right total, greedy": right(greedy, rows), "last running total right, greedy": last}
        stage.note(f"3 {name}", {**numbers, TOOK: stage.noted().get(f"3 {name}", {}).get(TOOK)})
        lost = f"step 3: greedy drafts of {name} work the total out in {last:.0%}, {before:.0%} before"
        stage.expect(name != "srpo" or last >= before - LOST, f"{lost}: a smaller learning_rate or a larger beta")


def own_pairs(stage: Stage, folder: Path) -> None:
    """Pairs of own drafts, right total against wrong total: totals are drawn first, then the rest of two drafts.

    Both drafts have to work the total out: a third of the others would teach revisions that no draft supports.
    """
    sizes = stage.sizes
    rows, heads = stage.rows(sizes.pair_prompts, "in", PAIRS), dict[tuple[int, bool], str]()
    draws = stage.drafts("role", rows, 1.0, seeds=range(1, sizes.draws + 1), tokens=stage.wording.head_tokens)
    for draw in draws:
        for at, text in enumerate(draw):
            head = text.partition(":")[0] + ":"
            if task.first_total(head) is not None:
                heads.setdefault((at, task.total("", head, rows[at]["gold"]) == 1), head)
    both = [at for at in range(len(rows)) if (at, True) in heads and (at, False) in heads]
    begun = [
        {**asked(rows[at]), "prompt": rows[at]["prompt"] + heads[at, is_right]}
        for at in both
        for is_right in (True, False)
    ]
    (rest,) = stage.drafts("role", begun, 1.0, seeds=(sizes.draws + 1,)) if begun else ([],)
    pairs = []
    for at, ends in zip(both, zip(rest[::2], rest[1::2], strict=True), strict=True):
        chosen, rejected = (heads[at, is_right] + end for is_right, end in zip((True, False), ends, strict=True))
        if task.last_total(chosen) == task.last_total(rejected) == task.first_total(rows[at]["gold"]):
            pairs.append({**asked(rows[at]), "chosen": chosen, "rejected": rejected})
    if not pairs:
        raise GateClosed(f"seed {stage.seed}: step 3: no order has a draft with the right total and one with another")
    write_rows(folder / "pairs.jsonl", pairs)


# ---------------------------------------------------------------------- the command


def main() -> None:
    """Makes what is missing, then prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="0, or 0 1, or 0 1 2, …")
    parser.add_argument("--model", default="", metavar="FOLDER", help="pretrained model; unset trains one from scratch")
    parser.add_argument("--pictures", action="store_true", help="amounts in pictures, for a small LLaVA from scratch")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--splits", nargs="+", choices=task.SPLITS, default=["in", "out"], help="of the evaluation")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.0], help="0 decodes greedily")
    parser.add_argument("--ignore_gates", action="store_true", help="go on after a gate that fails, to try the command")
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{HELP[name]}; {default}")
    args = parser.parse_args()
    if args.seeds != list(range(len(args.seeds))):
        parser.error("--seeds: expected 0 1 2 … without a gap: files of answers are numbered in this order")
    if args.pictures and args.model:
        parser.error("--pictures trains its own model: leave --model out")
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("srpo").setLevel(logging.ERROR)
    root, sizes = Path(args.output_dir), Sizes(**{name: getattr(args, name) for name in asdict(Sizes())})
    strict = not args.ignore_gates
    stages = [Stage(root / f"seed{seed}", seed, args.model, sizes, strict, args.pictures) for seed in args.seeds]
    for stage in stages:
        draft_base(stage)
        second_role(stage)
        methods(stage, args.methods)
    tables(root, stages, args.methods, args.splits, args.temperature)


if __name__ == "__main__":
    main()
