"""User time of decoding with an adapter, as a ratio to the merged model, on a model whose head is larger than its body.

    OMP_NUM_THREADS=1 python -m benchmarks.adapter_decoding [--model FOLDER] [--dtype bfloat16] [--tokens 8]

Prints one line for each way: the merged model, the adapter folded into its base, the adapter beside its base, and the
last one with the strided hidden states that transformers passes to the head. Each draws eight drafts and one revision
of each, greedily. Without a model, a random one with 152k words is made from a configuration.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from srpo.generate import plain, speculative
from srpo.generate.engine import Decoding
from srpo.generate.speculative import SpeculativeEngine
from srpo.model.weights.load import load_model

ROWS, PROMPT = 8, 24  # prompts, tokens of each
STAND_IN = {
    "vocab_size": 151_936,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def base(folder: str, dtype: str) -> Any:
    """Loads the base model from `folder`; for "" makes a random one."""
    if folder:
        return load_model(folder, dtype=dtype)
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**STAND_IN)).to(getattr(torch, dtype)).eval()


def with_adapter(model: Any) -> Any:
    """Puts a random adapter of rank 8 on every linear layer of a model."""
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.003)
    return adapted


@contextmanager
def strided() -> Iterator[None]:
    """Inside this `with` block, srpo hands strided hidden states to the head, as transformers does."""
    kept = plain.contiguous_head
    plain.contiguous_head = speculative.contiguous_head = lambda model: nullcontext()  # type: ignore[assignment]
    try:
        yield
    finally:
        plain.contiguous_head = speculative.contiguous_head = kept


def seconds(model: Any, tokens: int, *, fold: bool) -> float:
    """Processor seconds of a draft and a revision of each prompt, and of the self-checks that a new process makes.

    Args:
        tokens: tokens of each answer.
        fold: true folds an adapter into its base while answers are drawn.
    """
    engine = SpeculativeEngine(model, pad_id=0, batch_size=ROWS)
    if not fold:
        engine.folded.reason = "not folded in this benchmark"
    generator = torch.Generator().manual_seed(2)
    contexts = torch.randint(1000, (ROWS, PROMPT), generator=generator).tolist()
    keys = [str(row) for row in range(ROWS)]
    how = Decoding(tokens, (), 0.0)
    began = time.process_time()
    drafts = [list(done.ids) for done in engine.complete(contexts, keys, how)]
    asked = [[*context, *draft, 7, 8, 9] for context, draft in zip(contexts, drafts, strict=True)]
    engine.complete(asked, keys, how, guesses=drafts)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a base model; unset: a random one")
    parser.add_argument("--dtype", default="bfloat16", help="precision of the base")
    parser.add_argument("--tokens", type=int, default=8, help="tokens per answer")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each way; medians are printed")
    args = parser.parse_args()
    model = with_adapter(base(args.model, args.dtype))

    def runs(*, fold: bool) -> list[float]:
        return [seconds(model, args.tokens, fold=fold) for _ in range(args.repeat)]

    found = {"adapter, folded": runs(fold=True)}
    found["adapter"] = runs(fold=False)
    with strided():
        found["adapter, strided head"] = runs(fold=False)
    model = model.merge_and_unload()
    found["merged"] = runs(fold=False)
    merged = median(found["merged"])
    for name, taken in found.items():
        spread = f"{median(taken):8.2f} s ({min(taken):.2f}–{max(taken):.2f})"
        print(f"{name:24}{spread}{median(taken) / merged:8.2f} times the merged model's")


if __name__ == "__main__":
    main()
