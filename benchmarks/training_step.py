"""Time of a training step: packed, flat, six padded rows, and TRL's DPO step on the same pairs.

    python -m benchmarks.training_step                                   every shape and template, a long run
    python -m benchmarks.training_step --shapes 350,40 --templates turn --parts step --modes full
    python -m benchmarks.training_step --model FOLDER --dtype bfloat16 --pairs FILE --batch 2 --modes lora --ways trl

Ways run interleaved in one process on one thread; times are processor time, ratios are of medians. Three parts:

    logps   forward and backward of the six log-probs of `--logps_batch` pairs: packed, flat, padded
    plan    making the plan of `--batch` pairs alone, during which a GPU may be idle
    step    a whole optimiser step of `--batch` pairs, reference live, clipping and AdamW included: packed, flat, and
            `trl`, DPOTrainer's step, which scores two sequences a pair where SRPO scores six; `dpo` and `ipo`, steps
            of SRPO's trainer with these objectives, which score the same two sequences as `trl`

With `--model` the step is that of a saved model on random pairs of `--pairs`, in its own tokens and default template.
A line of JSON per case goes to standard output, and to `--out` as it is known: `first` has the seconds of the first
step, self-checks included, and `peak_GB` the memory of the process, which is that of a way if it is measured alone.
Memory for the backward pass, weights left out, is counted in a pass of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shapes import TEMPLATES, Lengths, lengths_in, llama, loaded, padded_logps, real_trees, trees_of
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.progress import peak_memory
from srpo.sequences.tree import PrefixTree
from srpo.train.free_memory import FreeMemory

SHAPES = ("256,64", "1024,128", "64,256", "350,40")
VOCABULARY = 8192
# A sum in which every log-prob has a weight of its own, signs mixed as an objective's are.
WEIGHTS = torch.tensor([1.0, -0.9, 0.8, -0.7, 0.6, -0.5], dtype=torch.float64)

Ways = dict[str, Callable[[], Any]]


def main() -> None:
    """Measures every case that the flags ask for."""
    torch.set_num_threads(1)
    args = _arguments()
    if args.model:
        trees = real_trees(args.model, args.pairs, args.batch)
        row = _measured_ways(_steps(trees, True, args.ways.split(","), partial(loaded, args.model, args.dtype)), args)
        print(
            json.dumps({"model": Path(args.model).name, "dtype": args.dtype, "tokens": _tokens(trees)} | row),
            flush=True,
        )
        return
    for shape, lengths in _shapes(args):
        for template in args.templates.split(","):
            for mode in args.modes.split(","):
                for part in args.parts.split(","):
                    case = {"part": part, "shape": shape, "template": template, "mode": mode}
                    row = case | _measured(part, shape, lengths, template, mode == "lora", args)
                    line = json.dumps(row)
                    print(line, flush=True)
                    if args.out:
                        with Path(args.out).open("a", encoding="utf-8") as file:
                            file.write(line + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=" ".join(SHAPES), help="prompt,answer in tokens; several by spaces")
    parser.add_argument("--pairs", help="a JSONL file of pairs: lengths are drawn from it as well")
    parser.add_argument("--model", default="", help="folder of a saved model, whose LoRA step is measured")
    parser.add_argument("--dtype", default="float32", help="precision of the base of --model")
    parser.add_argument("--templates", default=",".join(TEMPLATES))
    parser.add_argument("--modes", default="full,lora")
    parser.add_argument("--parts", default="logps,step")
    parser.add_argument("--ways", default="packed,flat,padded,trl")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--logps_batch", type=int, default=1, help="pairs of a forward and backward")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", help="a file that lines are appended to")
    return parser.parse_args()


def _shapes(args: argparse.Namespace) -> Iterator[tuple[str, list[Lengths]]]:
    pairs = max(args.batch, args.logps_batch)
    for shape in args.shapes.split():
        x, y = map(int, shape.split(","))
        yield shape, [(x, y, y)] * pairs
    if args.pairs:
        yield Path(args.pairs).stem, lengths_in(args.pairs, pairs)


def _measured(
    part: str, shape: str, lengths: list[Lengths], template: str, lora: bool, args: argparse.Namespace
) -> dict[str, Any]:
    pairs = lengths[: args.logps_batch if part == "logps" else args.batch]
    instruction = 16 if max(x + y for x, y, _ in pairs) < 1000 and min(y for _, y, _ in pairs) < 200 else 32
    trees = trees_of(pairs, template, instruction=instruction, vocabulary=VOCABULARY)
    wanted = args.ways.split(",")
    if part == "plan":
        ways: Ways = {"packed": lambda: Forest.plant(trees)}
    else:
        new = partial(llama, vocabulary=VOCABULARY)
        ways = _steps(trees, lora, wanted, new) if part == "step" else _logps(trees, lora, wanted)
    return {"pairs": len(pairs), "tokens": _tokens(trees)} | _measured_ways(ways, args)


def _tokens(trees: Sequence[PrefixTree]) -> dict[str, int]:
    """Tokens of the pairs: packed, in six rows, and in the two rows of DPO."""
    return {
        "packed": sum(map(len, trees)),
        "flat": sum(tree.flat_tokens for tree in trees),
        "dpo": sum(len(context) + len(answer) for tree in trees for context, answer in tree.unpack()[:2]),
    }


def _measured_ways(ways: Ways, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of each way, and their ratios."""
    first, seconds = interleaved(ways, args.repeat)
    peak = peak_memory() / 1e9
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    packed = medians.get("packed", math.nan)
    return {
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "first": {name: round(value, 4) for name, value in first.items()},
        "peak_GB": round(peak, 2),
        "spread": {name: [round(min(times), 4), round(max(times), 4)] for name, times in seconds.items()},
        "packed_to": {name: round(packed / value, 3) for name, value in medians.items() if name != "packed"},
        "to_trl": {name: round(value / medians["trl"], 3) for name, value in medians.items() if "trl" in medians},
        "times_faster": {name: round(value / packed, 2) for name, value in medians.items() if name != "packed"},
        "saved_MiB": {} if args.model else {name: round(saved_bytes(way) / 2**20) for name, way in ways.items()},
    }


def interleaved(ways: Ways, repeat: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Calls the ways in turns; returns processor seconds of each way's first call and of its `repeat` others."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return {name: times[0] for name, times in seconds.items()}, {name: times[1:] for name, times in seconds.items()}


def saved_bytes(way: Callable[[], Any]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass; weights are not among them."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(kept.values())


# ---------------------------------------------------------------------- the ways


def _logps(trees: Sequence[PrefixTree], lora: bool, wanted: Sequence[str]) -> Ways:
    model = llama(vocabulary=VOCABULARY, lora=lora)

    def way(logps: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            ((logps().double() * WEIGHTS).sum() / 64).backward()

        return run

    known: dict[str, Callable[[], Tensor]] = {
        "packed": lambda: sequence_logps(model, Forest.plant(trees), "path"),
        "flat": lambda: sequence_logps(model, Forest.plant(trees), "flat"),
        "padded": lambda: padded_logps(model, trees),
    }
    return {name: way(logps) for name, logps in known.items() if name in wanted}


def _steps(trees: Sequence[PrefixTree], lora: bool, wanted: Sequence[str], new: Callable[..., Any]) -> Ways:
    known: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
        "packed": lambda: srpo(trees, new(lora=lora), "path"),
        "flat": lambda: srpo(trees, new(lora=lora), "flat"),
        "trl": lambda: trl(trees, new, lora),
    }
    drafts = [PrefixTree.pack(tree.unpack()[:2]) for tree in trees]
    for name in ("dpo", "ipo"):
        known[name] = lambda name=name: srpo(drafts, new(lora=lora), "path", objective=name)
    return {name: optimiser_step(*make()) for name, make in known.items() if name in wanted}


def optimiser_step(trainer: Any, inputs: dict[str, Any]) -> Callable[[], None]:
    """Returns a function that takes one optimiser step: forward, backward, clipping and AdamW, as in transformers."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.accelerator.prepare_model(trainer.model)  # in place: where precision is mixed, its forward is from now on
    optimizer = trainer.accelerator.prepare(trainer.optimizer)
    freeing = [each for each in trainer.callback_handler.callbacks if isinstance(each, FreeMemory)]

    def run() -> None:
        trainer.training_step(trainer.model, dict(inputs))
        norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer._get_grad_norm(trainer.model, grad_norm=norm)  # srpo's reads the results of the step here
        optimizer.step()
        trainer.model.zero_grad()
        for each in freeing:
            each.free()

    return run


def quiet_settings(**changes: Any) -> dict[str, Any]:
    """Returns settings of a trainer on the CPU, in float32, that reports and saves nothing; `changes` replace some."""
    folder = tempfile.mkdtemp(prefix="srpo-step-")
    quiet = {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return quiet | changes


def srpo(trees: Sequence[PrefixTree], model: Any, backend: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Returns SRPO's trainer, with a copy of the model as its reference, and a batch of the pairs `trees`."""
    from srpo.tasks.carry import carry_tokenizer
    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer

    args = SRPOConfig(**quiet_settings(**changes), backend=backend, revision_template="plain")
    return SRPOTrainer(model, args=args, processing_class=carry_tokenizer()), batch_of(trees)


def batch_of(trees: Sequence[PrefixTree]) -> dict[str, Any]:
    """Returns the pairs `trees` as a batch in the form of the trainer's collator."""
    return {"row": torch.arange(len(trees)), "trees": list(trees), "where": [f"pair {n}" for n in range(len(trees))]}


def trl(trees: Sequence[PrefixTree], new: Callable[..., Any], lora: bool, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Returns TRL's DPO trainer and a batch of the same pairs as drafts, collated by TRL.

    `new` makes the policy and the reference.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from srpo.tasks.carry import carry_tokenizer

    rows = Dataset.from_list([{"prompt": "1+2=", "chosen": "03", "rejected": "13"}])  # it wants some; not stepped on
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = DPOTrainer(
        new(lora=False),
        None if lora else new(lora=False),
        DPOConfig(**quiet_settings(**changes), max_length=None),
        train_dataset=rows,
        processing_class=carry_tokenizer(),
        peft_config=peft_config,
    )
    collate = DataCollatorForPreference(pad_token_id=0)
    drafts = [tree.unpack()[:2] for tree in trees]
    return trainer, collate([{"prompt_ids": w[0], "chosen_ids": w[1], "rejected_ids": l[1]} for w, l in drafts])


if __name__ == "__main__":
    main()
