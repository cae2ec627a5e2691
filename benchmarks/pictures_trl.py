"""Processor seconds of a training step on rows with pictures: SRPO, srpo's DPO, and TRL's DPO on the same rows.

    python -m benchmarks.count_shapes --output_dir runs/count_shapes --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.pictures_trl runs/count_shapes/seed0 [--batch 32] [--steps 10]

Base, processor and pairs are those of the counting task. Each trainer takes steps on the same pairs in the same number;
a step is everything between two ends of steps: pictures are decoded and prepared, policy and reference run, the
optimiser moves, and the tower is frozen. The first step, which has self-checks, is not counted. Lines give the median,
smallest and largest in brackets. The model has 0.2M weights, so this compares trainers more than arithmetic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as hf_logging

WAYS = ("srpo", "dpo", "trl")
SHARED = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-4}


class Clock(TrainerCallback):
    """Notes the processor time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.process_time())

    def steps(self) -> list[float]:
        """Seconds of each step but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def ours(objective: str, run: Path, pairs: Path, out: str, shared: dict[str, Any]) -> Any:
    """A trainer of srpo on the pairs."""
    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer

    args = SRPOConfig(output_dir=out, objective=objective, **shared)
    return SRPOTrainer(str(run / "base"), args=args, train_dataset=str(pairs))


def theirs(run: Path, rows: list[dict[str, Any]], out: str, shared: dict[str, Any]) -> Any:
    """TRL's DPO trainer on the same pairs, its tower frozen as srpo freezes it."""
    from datasets import Dataset, Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    from srpo.model.weights.architecture import freeze_towers

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    told = [
        {
            "prompt": turn("user", row["prompt"]),
            "chosen": turn("assistant", row["chosen"]),
            "rejected": turn("assistant", row["rejected"]),
            "image": row["image"],
        }
        for row in rows
    ]
    data = Dataset.from_list(told).cast_column("image", Image())
    model, reference = (AutoModelForImageTextToText.from_pretrained(run / "base") for _ in range(2))
    freeze_towers(model)
    args = DPOConfig(output_dir=out, gradient_checkpointing=False, bf16=False, max_length=None, **shared)
    processor = AutoProcessor.from_pretrained(run / "base")
    return DPOTrainer(model, reference, args=args, train_dataset=data, processing_class=processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a seed of benchmarks.count_shapes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    shared = {**SHARED, "max_steps": args.steps + 1, "per_device_train_batch_size": args.batch}
    lines = (args.run / "pairs" / "pairs.jsonl").read_text("utf-8").splitlines()[: (args.steps + 1) * args.batch]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        pairs.write_text("\n".join(lines) + "\n", "utf-8")
        for way in WAYS:
            out = f"{folder}/{way}"
            rows = [json.loads(line) for line in lines]
            trainer = theirs(args.run, rows, out, shared) if way == "trl" else ours(way, args.run, pairs, out, shared)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock := Clock())
            trainer.train()
            each = clock.steps()
            found[way] = median(each)
            print(f"{way}: {found[way]:.3f} s ({min(each):.3f} to {max(each):.3f})", flush=True)
    print(f"srpo ÷ trl: {found['srpo'] / found['trl']:.2f}, srpo's dpo ÷ trl: {found['dpo'] / found['trl']:.2f}")


if __name__ == "__main__":
    main()
