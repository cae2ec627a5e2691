"""Time saved by a cached reference: a whole optimiser step with reference log-probs on disk, against one that computes
them.

    python -m benchmarks.reference_cache
    python -m benchmarks.reference_cache --shapes "350,40" --templates turn,quote --modes full

Both steps run interleaved in one process on one thread; times are processor time, ratios are of medians. Model and
shapes are those of `benchmarks.training_step`. A line of JSON per case goes to standard output, and one for the rest:
seconds to hash half a gigabyte of weights, and to find 100,000 rows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import llama, trees_of
from benchmarks.training_step import VOCABULARY, batch_of, interleaved, optimiser_step, quiet_settings
from srpo.model.reference.logp_store import DIGEST, LogpStore
from srpo.model.weights.fingerprint import fingerprint
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import TreeStore
from srpo.tasks.carry import carry_tokenizer
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset
from srpo.train.trainer import SRPOTrainer

ROWS = 100_000


def main() -> None:
    """Measures every case that the flags ask for."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="350,40 1024,128", help="prompt,answer in tokens; several by spaces")
    parser.add_argument("--templates", default="turn")
    parser.add_argument("--modes", default="full,lora")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(around()), flush=True)
    for shape in args.shapes.split():
        x, y = map(int, shape.split(","))
        for template in args.templates.split(","):
            trees = trees_of(
                [(x, y, y)] * args.batch, template, instruction=16 if x < 1000 else 32, vocabulary=VOCABULARY
            )
            for mode in args.modes.split(","):
                row = {"shape": shape, "template": template, "mode": mode, "pairs": args.batch}
                print(json.dumps(row | measured(trees, mode == "lora", args.repeat)), flush=True)


def measured(trees: Sequence[PrefixTree], lora: bool, repeat: int) -> dict[str, Any]:
    """Returns medians and spreads of a step with cached reference log-probs and of one without, and their ratio."""
    live, kept = trainer(trees, lora, None), trainer(trees, lora, tempfile.mkdtemp(prefix="srpo-kept-"))
    before = kept.reference.scored
    _, seconds = interleaved(
        {"live": optimiser_step(live, batch_of(trees)), "kept": optimiser_step(kept, batch_of(trees))}, repeat
    )
    assert kept.reference.scored == before, "a step scored the reference"
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "spread": {name: [round(min(times), 3), round(max(times), 3)] for name, times in seconds.items()},
        "kept_to_live": round(medians["kept"] / medians["live"], 3),
        "models_in_memory": {"live": 1 if lora else 2, "kept": 1 if kept.reference.model in (None, kept.model) else 2},
    }


def trainer(trees: Sequence[PrefixTree], lora: bool, folder: str | None) -> SRPOTrainer:
    """Returns a trainer on pairs; reference log-probs are cached in `folder`, or computed live if that is None."""
    args = SRPOConfig(
        **quiet_settings(),
        backend="path",
        revision_template="plain",
        reference_cache=folder,
        precompute_ref_log_probs=folder is not None,
    )
    where = [f"pair {n}" for n in range(len(trees))]
    data = TreeDataset(TreeStore.of(trees), where, [], {}, 0, "benchmark")
    return SRPOTrainer(
        llama(vocabulary=VOCABULARY, lora=lora), args=args, train_dataset=data, processing_class=carry_tokenizer()
    )


def around() -> dict[str, Any]:
    """Measures the other costs of a cache: to hash the weights, and to read its rows."""
    plain = llama(vocabulary=VOCABULARY, lora=False)
    start = time.process_time()
    fingerprint(plain)
    hashing = time.process_time() - start
    megabytes = sum(p.numel() * p.element_size() for p in plain.parameters()) / 1e6
    source = random.Random(0)
    digests = [source.randbytes(DIGEST) for _ in range(ROWS)]
    folder = Path(tempfile.mkdtemp(prefix="srpo-kept-"))
    LogpStore(folder, b"", 6).add(digests, [[-1.5] * 6] * ROWS)
    start = time.process_time()
    store = LogpStore(folder, b"", 6)
    opening = time.process_time() - start
    start = time.process_time()
    for digest in digests:
        store.get(digest)
    finding = time.process_time() - start
    tracemalloc.start()
    again = LogpStore(folder, b"", 6)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "hash_seconds_per_500MB": round(hashing * 500 / megabytes, 2),
        "rows": len(again),
        "file_bytes_a_row": next(folder.glob("*.logps")).stat().st_size / ROWS,
        "memory_bytes_a_row": round(held / ROWS),
        "open_seconds": round(opening, 2),
        "microseconds_a_lookup": round(finding / ROWS * 1e6, 2),
    }


if __name__ == "__main__":
    main()
