"""Measurements on one GPU: time and memory of a training step, and speed of decoding revisions.

    python -m benchmarks.card step                    packed both ways, flat, and TRL's DPO step, bfloat16
    python -m benchmarks.card step --modes lora --shapes "350,40"
    python -m benchmarks.card step --shapes "" --pairs FILE --ways flex,flex_compiled,dpo,trl,trl_compiled,trl_liger
    python -m benchmarks.card step --device cpu --tiny --shapes 24,8 --ways path,dpo,trl       its code, without a GPU
    python -m benchmarks.card decode                  transformers' `generate`, its prompt lookup, and ours

`step` is an optimiser step of `--batch` pairs in mixed precision, the reference scored live, clipping and AdamW
included, on a random Llama of 1.2B weights (hidden size 2,048, 16 layers, 32 heads, 8 of keys and values, vocabulary
128,256). Every way has the GPU to itself, `--rounds` times in turns. The output is the median of all its steps after
two of warming up in each round, the smallest and largest, and the peak of memory above weights, reference and moments.
`dpo` is srpo's DPO step by `flex`, by `path` on a CPU. `_compiled` compiles the decoder layers, of TRL's two models as
well; `trl_liger` is TRL with the kernels of Liger. `--pairs` draws ragged lengths from a file of pairs.

`decode` is benchmarks/revision.py's scripted subject with 1.0B weights in bfloat16. Times are wall times that include
waiting for the GPU to finish.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from benchmarks import training_step
from benchmarks.chains import Scripted
from benchmarks.revision import in_words, measure
from benchmarks.shapes import Lengths, lengths_in, llama, trees_of
from srpo.model.packed.forest import Forest
from srpo.sequences.tree import PrefixTree
from srpo.train.compiled import compile_layers

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
VOCABULARY = 128_256
WAYS = ("path", "flex", "flat", "dpo", "trl")
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY_VOCABULARY = 512
WARMING_UP = 2


def main() -> None:
    """Measures every requested case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "decode"))
    parser.add_argument("--shapes", default="350,40 1024,128 64,256", help="prompt,answer in tokens; several by spaces")
    parser.add_argument("--templates", default="turn,quote")
    parser.add_argument("--modes", default="full")
    parser.add_argument(
        "--ways", default="", help="ways of a step; of `decode`, ways of benchmarks/revision.py by semicolons"
    )
    parser.add_argument("--batch", default="", help="pairs of a step, 8; rows of a chain, 1; several by commas")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5, help="steps timed in a round")
    parser.add_argument("--cases", default="converging,steady 5%,steady 30%")
    parser.add_argument("--seeds", type=int, default=3, help="chains")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", default="", help="a JSONL file of pairs whose lengths are drawn, besides --shapes")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, to try the code of `step`")
    args = parser.parse_args()
    hf_logging.set_verbosity_error()
    if args.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        print(f"{card.name}, torch {torch.__version__}", flush=True)
    (_step if args.what == "step" else _decode)(args)


# ---------------------------------------------------------------------- training


def _step(args: Namespace) -> None:
    words = TINY_VOCABULARY if args.tiny else VOCABULARY
    for batch in map(int, (args.batch or "8").split(",")):
        cases = {shape: [_lengths(shape)] * batch for shape in args.shapes.split()}
        if args.pairs:
            cases[Path(args.pairs).stem] = lengths_in(args.pairs, batch)
        for shape, lengths in cases.items():
            instruction = 16 if max(x + y for x, y, _ in lengths) < 1000 and min(y for _, y, _ in lengths) < 200 else 32
            for template in args.templates.split(","):
                trees = trees_of(lengths, template, instruction=instruction, vocabulary=words)
                for mode in args.modes.split(","):
                    case = {"shape": shape, "template": template, "mode": mode, "pairs": batch}
                    print(json.dumps(case | _measured(trees, mode == "lora", args)), flush=True)


def _lengths(shape: str) -> Lengths:
    x, y = map(int, shape.split(","))
    return x, y, y


def _measured(trees: Sequence[PrefixTree], lora: bool, args: Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {}
    held: dict[str, float] = {}
    for _ in range(args.rounds):
        for way in (args.ways or ",".join(WAYS)).split(","):
            try:
                times, above = _timed(_made(way, trees, lora, args), args)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                print(json.dumps({"way": way, "failed": f"{type(error).__name__}: {str(error)[:300]}"}), flush=True)
                continue
            seconds.setdefault(way, []).extend(times)
            held[way] = max(above, held.get(way, 0.0))
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    row: dict[str, Any] = {
        "seconds": {way: round(value, 4) for way, value in medians.items()},
        "spread": {way: [round(min(times), 4), round(max(times), 4)] for way, times in seconds.items()},
        "GiB": {way: round(value, 2) for way, value in held.items()},
        "planting": round(_planting(trees, args.device), 4),
    }
    if "trl" in medians:
        row["to_trl"] = {way: round(value / medians["trl"], 3) for way, value in medians.items() if way != "trl"}
    return row


def _made(way: str, trees: Sequence[PrefixTree], lora: bool, args: Namespace) -> tuple[Any, dict[str, Any]]:
    on_card = {"use_cpu": args.device == "cpu", "bf16": args.device != "cpu"}

    def new(lora: bool = False) -> Any:
        shape = SHAPE | {"num_hidden_layers": args.layers} | (TINY | {"num_hidden_layers": 2} if args.tiny else {})
        hidden, layers = shape.pop("hidden_size"), shape.pop("num_hidden_layers")
        words = TINY_VOCABULARY if args.tiny else VOCABULARY
        with torch.device(args.device):
            return llama(vocabulary=words, hidden=hidden, layers=layers, lora=lora, tie_word_embeddings=True, **shape)

    kind, _, option = way.partition("_")
    if kind == "trl":
        trainer, inputs = training_step.trl(trees, new, lora, **on_card, use_liger_kernel=option == "liger")
        if option == "compiled":
            for model in filter(None, (trainer.model, trainer.ref_model)):
                compile_layers(model)
        return trainer, inputs
    on_card["compile_layers"] = option == "compiled"
    if kind == "dpo":
        drafts = [PrefixTree.pack(tree.unpack()[:2]) for tree in trees]
        return training_step.srpo(
            drafts, new(lora), "path" if args.device == "cpu" else "flex", **on_card, objective=kind
        )
    return training_step.srpo(trees, new(lora), kind, **on_card)


def _timed(made: tuple[Any, dict[str, Any]], args: Namespace) -> tuple[list[float], float]:
    """Seconds of each step, and peak GiB above the memory between steps; releases the trainer."""
    run = training_step.optimiser_step(*made)
    del made
    wait = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    try:
        for _ in range(WARMING_UP):
            run()
        wait()
        standing = _memory(torch.cuda.memory_allocated, args)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(args.repeat):
            start = time.perf_counter()
            run()
            wait()
            times.append(time.perf_counter() - start)
        return times, _memory(torch.cuda.max_memory_allocated, args) - standing
    finally:
        del run
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def _memory(asked: Callable[[], int], args: Namespace) -> float:
    return asked() / 2**30 if args.device == "cuda" else 0.0


def _planting(trees: Sequence[PrefixTree], device: str) -> float:
    """Seconds to make the plan of a batch, which is Python on the host."""
    start = time.perf_counter()
    for _ in range(5):
        Forest.plant(trees, device)
    return (time.perf_counter() - start) / 5


# ---------------------------------------------------------------------- decoding


def _decode(args: Namespace) -> None:
    args.first_seed = 0
    with torch.device(args.device):
        made = Scripted(**(SHAPE | {"num_hidden_layers": args.layers}))
    made.model.to(torch.bfloat16 if args.device == "cuda" else torch.float32)
    ways = args.ways.split(";") if args.ways else ["generate", "lookup", "live", "live, drafted"]
    measure(made, "steady 0%", 1, ["live"], Namespace(first_seed=99, seeds=1), 0.0)  # the card's first kernels are slow
    for rows in map(int, (args.batch or "1").split(",")):
        for case in args.cases.split(","):
            asked = [way for way in ways if way != "lookup" or rows == 1]
            print(f"scripted {case}, batch {rows}, {args.seeds} chains")
            print("\n".join(in_words(measure(made, case, rows, asked, args, 0.0))), flush=True)


if __name__ == "__main__":
    main()
