"""Tokens and time of one training step on pairs with a picture: packed once, and as six padded rows.

    OMP_NUM_THREADS=1 python -m benchmarks.pictures [--pairs 1] [--answer 40] [--repeats 5] [--templates turn quote]

The model is a Qwen2.5-VL of some 25M weights in its language part, random, float32, its vision tower frozen. The
picture fills 1,024 image tokens. A step is the policy's forward and backward pass and the reference's forward pass,
each of which runs the tower. Lines give processor seconds (user and system), smallest and largest in brackets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from srpo.model.packed.attention import serving
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.model.weights.architecture import freeze_towers
from srpo.sequences.picture_inputs import PicturedIds, PictureInputs
from srpo.sequences.tree import PrefixTree

IMAGE, SIDE = 5, 64  # id of the image token; patches along a side of the picture
TEXT = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
}
TOWER = {"hidden_size": 256, "intermediate_size": 512, "depth": 4, "num_heads": 4, "out_hidden_size": 512}


def model() -> Any:
    """Returns the random Qwen2.5-VL model with its vision tower frozen."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    ids = {"image_token_id": IMAGE, "video_token_id": 6}
    config = AutoConfig.for_model("qwen2_5_vl", text_config=TEXT, vision_config=TOWER, **ids)
    made = AutoModelForImageTextToText.from_config(config)
    freeze_towers(made)
    return made


def pair(seed: int, template: str, answer: int) -> PrefixTree:
    """The tree of a pair: 20 tokens of text, a picture of 1,024 tokens, two answers, an instruction of 16 tokens."""
    source = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(10, 8192, (count,), generator=source).tolist()

    pixels = torch.randn(SIDE * SIDE, 1176, generator=source)
    inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, SIDE, SIDE]])}
    picture = PictureInputs(seed.to_bytes(8, "big"), IMAGE, SIDE * SIDE // 4, partial(dict, inputs))
    prompt, instruction, answers = (
        [*words(4), *[IMAGE] * picture.count, *words(16)],
        words(16),
        [words(answer), words(answer)],
    )
    before = words(8) if template == "quote" else []
    contexts = [prompt, *([*prompt, *before, *draft, *instruction] for draft in answers)]
    return PrefixTree.pack([(PicturedIds(c, [picture]), ids) for c in contexts for ids in answers])


def step(made: Any, forest: Forest, backend: str) -> None:
    """Runs the passes of one step: the reference's forward pass, then the policy's forward and backward pass."""
    made.zero_grad()
    with serving(made, backend):
        with torch.no_grad():
            LAYOUTS[backend](made, forest)
        LAYOUTS[backend](made, forest).sum().backward()


def seconds(run: Callable[[], None], repeats: int) -> list[float]:
    """Processor seconds of each of several calls, after one that is not counted."""
    run()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return found


def main() -> None:
    """Prints tokens and times of both layouts for two templates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--answer", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--templates", nargs="+", default=["turn", "quote"])
    args = parser.parse_args()
    made = model()
    for template in args.templates:
        trees = [pair(seed, template, args.answer) for seed in range(args.pairs)]
        forest = Forest.plant(trees)
        rows = sum(6 * max(len(c) + len(a) for c, a in tree.unpack()) for tree in trees)
        packed, flat = forest.ids_1S.shape[1], sum(tree.flat_tokens for tree in trees)
        print(f"{template}: {packed} packed tokens, {flat} in six rows, {rows} padded: {rows / packed:.2f} to 1")
        times = {name: seconds(partial(step, made, forest, name), args.repeats) for name in ("path", "flat")}
        for name, each in times.items():
            print(f"  {name}: {median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")
        print(f"  flat ÷ path: {median(times['flat']) / median(times['path']):.2f}")


if __name__ == "__main__":
    main()
