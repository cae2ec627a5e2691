"""Tokens and time of one training step on pairs with a picture: packed once, and as six padded rows.

    OMP_NUM_THREADS=1 python -m benchmarks.pictures [--families qwen2_5_vl qwen3_vl idefics3 …] [--layers 6] [--pairs 1]
        [--answer 40] [--repeats 5] [--templates turn quote]

A model has random float32 weights, some 25M of them in its language part with 6 layers, and a frozen vision tower. The
picture fills 1,024 image tokens, or 990 in LLaVA-OneVision. A step is the policy's forward and backward pass and the
reference's forward pass, each of which runs the tower. Lines give processor seconds (user and system), smallest and
largest in brackets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch

from srpo.model.packed.attention import serving
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.model.weights.architecture import freeze_towers
from srpo.sequences.picture_inputs import PicturedIds, PictureInputs
from srpo.sequences.tree import PrefixTree

IMAGE, SIDE = 5, 64  # id of the image token; patches along a side of the picture of Qwen's models
TEXT = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 256, "intermediate_size": 512, "depth": 4, "num_heads": 4, "out_hidden_size": 512}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vision_use_head": False,
}


class Kind(NamedTuple):
    """A family: settings of its language model, of its tower and of the whole, and the inputs of a picture.

    `inputs` are names and shapes of random tensors, or tensors; `tokens` is the number of image tokens that they fill.
    """

    text: dict[str, Any]
    tower: dict[str, Any]
    whole: dict[str, Any]
    inputs: dict[str, Any]
    tokens: int = 1024


def _rope(section: list[int]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e6}}


def _tiles() -> Kind:
    """Four tiles of 32 × 32 patches, every four of which are a token."""
    tower = {key: value for key, value in SIGLIP.items() if key not in ("model_type", "vision_use_head")}
    pixels = {"pixel_values": (1, 4, 3, 256, 256), "pixel_attention_mask": torch.ones(1, 4, 256, 256, dtype=torch.long)}
    return Kind({"model_type": "llama"}, {**tower, "image_size": 256, "patch_size": 8}, {"scale_factor": 2}, pixels)


_GRID = {"image_grid_thw": torch.tensor([[1, SIDE, SIDE]])}
_WHOLE = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
KINDS = {
    "qwen2_5_vl": Kind(_rope([8, 12, 12]), TOWER, {}, {"pixel_values": (SIDE**2, 1176), **_GRID}),
    "qwen3_vl": Kind(
        _rope([12, 10, 10]),
        {**TOWER, "deepstack_visual_indexes": [1], "num_position_embeddings": 256},
        {},
        {"pixel_values": (SIDE**2, 1536), **_GRID},
    ),
    "idefics3": _tiles(),
    "smolvlm": _tiles(),
    "llava": Kind(
        {"model_type": "llama"},
        {**SIGLIP, "image_size": 448, "patch_size": 14},
        _WHOLE,
        {"pixel_values": (1, 3, 448, 448)},
    ),
    "llava_onevision": Kind(
        {"model_type": "qwen2"},
        {**SIGLIP, "image_size": 308, "patch_size": 14},
        {**_WHOLE, "image_grid_pinpoints": [[308, 308]]},
        {"pixel_values": (1, 2, 3, 308, 308), "image_sizes": torch.tensor([[308, 308]])},
        22 * 22 + 22 * 23,
    ),
}


def model(family: str, layers: int) -> Any:
    """Returns a random model of the family with its vision tower frozen."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    kind = KINDS[family]
    ids = {"image_token_id": IMAGE, "image_token_index": IMAGE, "video_token_id": 6, "video_token_index": 6}
    text = {**TEXT, "num_hidden_layers": layers, **kind.text}
    config = AutoConfig.for_model(family, text_config=text, vision_config=kind.tower, **ids, **kind.whole)
    made = AutoModelForImageTextToText.from_config(config)
    freeze_towers(made)
    return made


def pair(family: str, seed: int, template: str, answer: int) -> PrefixTree:
    """The tree of a pair: 20 tokens of text, a picture, two answers, an instruction of 16 tokens."""
    source = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(10, 8192, (count,), generator=source).tolist()

    inputs = {
        name: torch.randn(shape, generator=source) if isinstance(shape, tuple) else shape
        for name, shape in KINDS[family].inputs.items()
    }
    picture = PictureInputs(seed.to_bytes(8, "big"), IMAGE, KINDS[family].tokens, partial(dict, inputs))
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
    """Prints tokens and times of both layouts for each family and template."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=KINDS, default=["qwen2_5_vl"])
    parser.add_argument("--layers", type=int, default=6, help="layers of the language model")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--answer", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--templates", nargs="+", default=["turn", "quote"])
    args = parser.parse_args()
    for family in args.families:
        made = model(family, args.layers)
        for template in args.templates:
            measure(made, family, template, args)


def measure(made: Any, family: str, template: str, args: argparse.Namespace) -> None:
    """Prints tokens and times of both layouts of one family and template."""
    trees = [pair(family, seed, template, args.answer) for seed in range(args.pairs)]
    forest = Forest.plant(trees)
    rows = sum(6 * max(len(c) + len(a) for c, a in tree.unpack()) for tree in trees)
    packed, flat = forest.ids_1S.shape[1], sum(tree.flat_tokens for tree in trees)
    print(f"{family}, {template}: {packed} packed tokens, {flat} in six rows, {rows} padded: {rows / packed:.2f} to 1")
    times = {name: seconds(partial(step, made, forest, name), args.repeats) for name in ("path", "flat")}
    for name, each in times.items():
        print(f"  {name}: {median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")
    print(f"  flat ÷ path: {median(times['flat']) / median(times['path']):.2f}", flush=True)


if __name__ == "__main__":
    main()
