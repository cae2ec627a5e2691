"""One tree per prompt: tokens of an epoch and time of its steps, pairs drawn at random and by prompt.

    python -m benchmarks.prompts --pairs pandalm_train.jsonl
    python -m benchmarks.prompts --pairs oasst_en100.jsonl --timed 48
    python -m benchmarks.prompts --pairs pandalm_train.jsonl --model FOLDER --batch 8

Token ids are pieces of at most six letters, as in benchmarks/shapes.py; the instruction is 16 tokens. Tokens are those
of a whole epoch in batches of `--batch` pairs. `--timed N` also takes optimiser steps, reference live, clipping and
AdamW included, over the pairs of random whole prompts, N pairs or a few more, the two orders in turns; times are
processor time on one thread. `--model` counts in the tokens and the default template of a saved model, and adds
`products to trl`: products of a LoRA step, attention left out, over those of a step of TRL's DPO on the same batches,
whose rows are padded to the longest and pass the head at every position. The output is a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import training_step
from benchmarks.shapes import _PIECE, llama, real_trees
from srpo.model.packed.forest import Forest
from srpo.sequences.tree import PrefixTree, merge_prompts
from srpo.train.microbatches import tokens_of
from srpo.train.prompts import batches_of

VOCABULARY, INSTRUCTION = 8192, 16


def main() -> None:
    """Counts the tokens of both orders, and times them if asked."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="a JSONL file of pairs")
    parser.add_argument("--template", default="turn", choices=("turn", "quote"))
    parser.add_argument("--model", default="", help="folder of a saved model, in whose tokens pairs are counted")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--timed", type=int, default=0, help="pairs whose steps are timed")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    trees = real_trees(args.model, args.pairs) if args.model else trees_in(args.pairs, args.template)
    groups = _groups(trees)
    row: dict[str, Any] = {"file": Path(args.pairs).stem, "pairs": len(trees), "prompts": len(groups)}
    row["template"], row["batch"] = "of the model" if args.model else args.template, args.batch
    orders = both_orders(groups, args.batch, seed=0)
    row["tokens"] = {
        "tree per pair": sum(map(len, trees)),
        **{name: sum(tokens_of([trees[i] for i in b], "path") for b in order) for name, order in orders.items()},
        "tree per prompt, any batch": sum(map(len, merge_prompts(trees)[0])),
    }
    if args.model:
        weights = linear_weights(args.model)
        row["products to trl"] = {name: round(products_to_trl(trees, o, *weights), 2) for name, o in orders.items()}
    if args.timed:
        row |= _timed(trees, groups, args)
    print(json.dumps(row))


def linear_weights(model: str) -> tuple[int, int]:
    """Returns the numbers of weights in the linear layers of a saved model: without its head, and of its head."""
    with torch.device("meta"):
        found: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = found.get_output_embeddings()
    linear = [module for module in found.modules() if isinstance(module, nn.Linear) and module is not head]
    return sum(module.weight.numel() for module in linear), head.weight.numel()


def products_to_trl(trees: Sequence[PrefixTree], order: Sequence[Sequence[int]], body: int, head: int) -> float:
    """Products of weights and tokens in packed steps over those in padded rows of two drafts a pair.

    Args:
        order: the batches, each a list of indices of trees.
        body: number of weights in the linear layers without the head.
        head: number of weights in the head.
    """
    ours = theirs = 0
    for batch in order:
        forest = Forest.plant([trees[i] for i in batch])
        ours += body * forest.ids_1S.shape[1] + head * len(forest.parents_P)
        rows = [len(context) + len(answer) for i in batch for context, answer in trees[i].unpack()[:2]]
        theirs += (body + head) * len(rows) * max(rows)
    return ours / theirs


def trees_in(file: str, template: str) -> list[PrefixTree]:
    """Returns the prefix tree of each pair in a file whose answers differ; a token is a piece of text."""
    known: dict[str, int] = {}

    def ids(text: Any) -> list[int]:
        words = text if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
        found = [known.setdefault(piece, len(known)) for piece in _PIECE.findall(words)] or [0]
        return [INSTRUCTION + 3 + number % (VOCABULARY - INSTRUCTION - 3) for number in found]

    ask = list(range(3, 3 + INSTRUCTION))
    trees = []
    for line in Path(file).read_text("utf-8").splitlines():
        row = json.loads(line)
        x, answers = ids(row["prompt"]), [ids(row["chosen"]), ids(row["rejected"])]
        if answers[0] != answers[1]:
            before, after = (x + ask, []) if template == "quote" else (x, ask)
            six = [(x, each) for each in answers]
            six += [(before + draft + after, each) for draft in answers for each in answers]
            trees.append(PrefixTree.pack(six))
    return trees


def both_orders(groups: Sequence[Sequence[int]], batch: int, seed: int) -> dict[str, list[list[int]]]:
    """Makes batches of the same pairs in both orders, drawn at random and by prompt; pairs are given as indices.

    Args:
        groups: the pairs of each prompt.
    """
    source = random.Random(seed)
    pairs = [index for group in groups for index in group]
    single = [[index] for index in source.sample(pairs, len(pairs))]
    whole = source.sample(list(groups), len(groups))
    return {"at random": batches_of(single, batch), "by prompt": batches_of(whole, batch)}


def _groups(trees: Sequence[PrefixTree]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, tree in enumerate(trees):
        groups.setdefault(tree.prompt, []).append(index)
    return list(groups.values())


def _model(args: argparse.Namespace) -> Any:
    return llama(vocabulary=VOCABULARY, hidden=args.hidden, layers=args.layers)


def _timed(trees: list[PrefixTree], groups: list[list[int]], args: argparse.Namespace) -> dict[str, Any]:
    some: list[list[int]] = []
    for group in random.Random(0).sample(groups, len(groups)):
        if sum(map(len, some)) < args.timed:
            some.append(group)
    orders = both_orders(some, args.batch, seed=1)
    trainer, _ = training_step.srpo(trees[:1], _model(args), "path")
    steps = {}
    for name, order in orders.items():
        batches = [training_step.batch_of([trees[i] for i in batch]) for batch in order]
        steps[name] = [training_step.optimiser_step(trainer, batch) for batch in batches]
    next(iter(steps.values()))[0]()  # warming up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repeat):
        for name, epoch in steps.items():
            start = time.process_time()
            for step in epoch:
                step()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "timed": sum(map(len, some)),
        "timed_tokens": {
            name: sum(tokens_of([trees[i] for i in b], "path") for b in order) for name, order in orders.items()
        },
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "spread": {name: [round(min(times), 2), round(max(times), 2)] for name, times in seconds.items()},
        "times_faster": round(medians["at random"] / medians["by prompt"], 2),
    }


if __name__ == "__main__":
    main()
