"""Memory of a training step as `srpo plan` predicts it, and as measured: each case in a process of its own.

    python -m benchmarks.plan

Measured is the largest resident memory of a step (the kernel's VmHWM) minus the memory with the weights, in MiB. A
small step comes first, so that libraries are loaded. Predicted is the same step on fake tensors. "returned" is measured
with an allocator that returns every freed block (MALLOC_MMAP_THRESHOLD_), "kept" with the defaults of glibc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from srpo.model.packed.forest import Forest
from srpo.model.packed.tiles import Card
from srpo.model.weights.precision import has_fast_bfloat16
from srpo.train.fake_step import Step, fake_model, peak_of_step
from srpo.train.plan import made_pairs

VOCABULARY = 8192
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 4}
CASES: dict[str, dict[str, Any]] = {
    "path, 8 pairs": {},
    "path, 16 pairs": {"pairs": 16},
    "LoRA": {"lora": True},
    "activation checkpointing": {"checkpointing": True},
    "flat": {"backend": "flat", "pairs": 4},
    "long": {"lengths": (1024, 128, 32), "pairs": 4},
    "vocabulary of 64k": {"vocabulary": 65536},
}


def main() -> None:
    """Prints a table row per case: predicted and measured MiB, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        torch.set_num_threads(1)
        print(json.dumps(_both(**CASES[args.case])))
        return
    print(f"{'case':<26} {'predicted':>10} {'returned':>10} {'ratio':>7} {'kept':>10} {'ratio':>7}")
    for name in CASES:
        command, row = [sys.executable, "-m", "benchmarks.plan", "--case", name], f"{name:<26}"
        for way in ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {}):
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **way})
            predicted, measured = json.loads(done.stdout.splitlines()[-1])
            row += f" {predicted:>10,.0f}" if way else ""
            row += f" {measured:>10,.0f} {predicted / measured:>7.3f}"
        print(row, flush=True)


def _both(
    *,
    lengths: tuple[int, int, int] = (350, 40, 16),
    pairs: int = 8,
    lora: bool = False,
    checkpointing: bool = False,
    backend: str = "path",
    vocabulary: int = VOCABULARY,
) -> tuple[float, float]:
    """Predicted and measured MiB of one step."""
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=6, tie_word_embeddings=True, **SHAPE)
    adapter = LoraConfig(r=16, task_type="CAUSAL_LM", target_modules="all-linear") if lora else None
    memory = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    step = Step(Card("cpu", memory, has_fast_bfloat16("cpu")), checkpointing=checkpointing, backend=backend)

    def forest(count: int) -> Forest:
        return Forest.plant(made_pairs(*lengths, "turn", count=count, vocabulary=vocabulary))

    predicted = peak_of_step(fake_model(config, torch.float32, adapter), forest(pairs), step)
    model: Any = AutoModelForCausalLM.from_config(config).train()
    model = get_peft_model(model, adapter).train() if adapter else model
    peak_of_step(model, Forest.plant(made_pairs(8, 4, 2, "turn", count=1, vocabulary=vocabulary)), step)
    planted = forest(pairs)
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory begins anew
    before = _kibibytes("VmRSS")
    peak_of_step(model, planted, step)
    return predicted / 2**20, (_kibibytes("VmHWM") - before) / 1024


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
