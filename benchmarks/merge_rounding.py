"""Largest effect of a correct merge on logits, by dtype: the basis of `rounding` in srpo/model/weights/merge.py.

    OMP_NUM_THREADS=1 python -m benchmarks.merge_rounding

Prints, for each dtype and depth, the largest difference over random models with random adapters as a share of the range
of a position's logits, next to the limit and to the effect of the adapter itself.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers.utils import logging as hf_logging

from srpo.model.weights.load import load_model
from srpo.model.weights.merge import MergeCheck, merge
from tests.conftest import make_byte_tokenizer, make_tiny_llama

SEEDS = range(2)
DEPTHS = (2, 8, 24)


def once(seed: int, layers: int, dtype: str) -> MergeCheck:
    """Merges one random adapter with an effect as large as that of a short training."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": layers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny_llama(seed=seed, initializer_range=0.06, **sizes).to(getattr(torch, dtype))
        base.save_pretrained(folder / "base")
        torch.manual_seed(seed)
        model = get_peft_model(
            load_model(str(folder / "base"), dtype="auto"),
            LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules="all-linear"),
        )
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.01)
        model.save_pretrained(folder / "adapter")
        make_byte_tokenizer().save_pretrained(folder / "adapter")
        return merge(str(folder / "adapter"), str(folder / "merged"))


def main() -> None:
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    print(f"{'dtype':10}{'layers':>7}{'largest':>10}{'limit':>8}{'adapter':>9}  tokens otherwise, ties, of")
    for dtype in ("float32", "float16", "bfloat16"):
        for layers in DEPTHS:
            found = [once(seed, layers, dtype) for seed in SEEDS]
            worst, effect = max(each.difference for each in found), min(each.effect for each in found)
            counts = [sum(getattr(each, name) for each in found) for name in ("other_tokens", "ties", "generated")]
            print(f"{dtype:10}{layers:7}{worst:10.1e}{found[0].tolerance:8.0e}{effect:9.1e}  {counts}", flush=True)


if __name__ == "__main__":
    main()
