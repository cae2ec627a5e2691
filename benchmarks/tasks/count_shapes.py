"""The counting task: a picture of coloured shapes in a grid, and an answer that counts each colour.

A picture has 3 × 3 cells, each empty or with one shape. The answer has a digit for each of four colours, such as 2013:
two red shapes, no green one, one blue and three yellow. Nothing of it is in the text of the prompt. A draft writes the
first count before the others; a revision sees all four, and their sum tells whether one of them can be wrong.

    in       3 to 6 shapes, of the sizes and shades that the base was trained on
    more     7 to 9 shapes
    look     3 to 6 shapes, smaller and darker ones than any of the training, in a larger picture

The base is a small LLaVA from scratch: a SigLIP tower of patches and a Llama. It is trained in both roles on answers
that miscount each colour by one with probability 0.25; half of its training revisions copy their draft.

Axes: N pictures, G = 9 cells, P pixels of a side, A = 4 digits of an answer, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tasks.small_llava import small_llava, small_processor
from srpo.sequences.templates import RevisionTemplate
from srpo.tasks.pretraining import Outcomes, fit

SPLITS = {"in": (3, 6), "more": (7, 9), "look": (3, 6)}  # fewest and most shapes
SIDE_CELLS, CELL = 3, 10  # cells along a side, and pixels of a cell
CELLS, SIDE = SIDE_CELLS**2, SIDE_CELLS * CELL  # also: image tokens of a picture, one a cell; pixels of a side
COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))  # red, green, blue, yellow
DIGITS = len(COLOURS)
TEMPLATE = RevisionTemplate("count shapes", "turn", "{{ prompt }}", "?")
PROMPT = "="


@dataclass(frozen=True)
class CountConfig:
    """Settings of the counting task's base model and of its training.

    Attributes:
        hidden, layers, heads: shape of the Llama.
        tower, tower_layers: hidden size and layers of the vision tower.
        steps, batch, learning_rate: optimiser steps, pictures per step and learning rate of its training.
        mistakes: probability that a count of a training answer is wrong by one.
        seed: seed of weights and data.
    """

    hidden: int = 64
    layers: int = 3
    heads: int = 2
    tower: int = 48
    tower_layers: int = 1
    steps: int = 1200
    batch: int = 64
    learning_rate: float = 2e-3
    mistakes: float = 0.25
    seed: int = 0


# ---------------------------------------------------------------------- pictures


def grids(n: int, split: str, generator: torch.Generator) -> Tensor:
    """Draws the contents of N = `n` grids: [N, G] the place of a cell's colour in `COLOURS`, −1 for an empty cell."""
    fewest, most = SPLITS[split]
    count_N = torch.randint(fewest, most + 1, (n,), generator=generator)
    rank_NG = torch.rand(n, CELLS, generator=generator).argsort(1).argsort(1)
    colour_NG = torch.randint(len(COLOURS), (n, CELLS), generator=generator)
    return torch.where(rank_NG < count_N[:, None], colour_NG, -1)


def counts(grid_NG: Tensor) -> Tensor:
    """[N, A] the number of cells of each colour.

    Example:
        >>> counts(torch.tensor([[0, 0, -1, 3, 3, 3, 2, -1, -1]])).tolist()
        [[2, 0, 1, 3]]
    """
    return torch.stack([(grid_NG == colour).sum(1) for colour in range(len(COLOURS))], 1)


def miscounted(right_NA: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """A copy of counts [N, A] in which each is wrong by one with probability `rate`; 0 becomes 1, and 9 becomes 8."""
    up_NA = torch.rand(right_NA.shape, generator=generator) < 0.5
    other_NA = torch.where((right_NA == 0) | (up_NA & (right_NA < 9)), right_NA + 1, right_NA - 1)
    return torch.where(torch.rand(right_NA.shape, generator=generator) < rate, other_NA, right_NA)


def drawn(grid_NG: Tensor, split: str, generator: torch.Generator) -> Tensor:
    """Draws pictures of grids [N, G]; returns [N, 3, P, P] integers from 0 to 255."""
    n, unlike = len(grid_NG), split == "look"

    def between(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    half_NG = between(2, 3, n, CELLS) if unlike else between(3, 5, n, CELLS)  # of a shape's width, in pixels
    round_NG = between(0, 2, n, CELLS).bool()  # a disc, or a square
    from_centre_C = torch.arange(CELL) - (CELL - 1) / 2
    high_CC, wide_CC = from_centre_C[:, None].expand(CELL, CELL), from_centre_C[None].expand(CELL, CELL)
    disc_NGCC = (high_CC**2 + wide_CC**2) <= (half_NG**2)[..., None, None]
    square_NGCC = torch.maximum(high_CC.abs(), wide_CC.abs()) <= half_NG[..., None, None]
    inside_NGCC = torch.where(round_NG[..., None, None], disc_NGCC, square_NGCC) & (grid_NG >= 0)[..., None, None]
    shade_NG = between(110, 150, n, CELLS) if unlike else between(160, 256, n, CELLS)
    ink_NG3 = shade_NG[..., None] * torch.tensor(COLOURS)[grid_NG.clamp(min=0)]
    paper_N = between(0, 40, n)
    cells_NGCC3 = torch.where(inside_NGCC[..., None], ink_NG3[:, :, None, None], paper_N[:, None, None, None, None])
    whole = cells_NGCC3.view(n, SIDE_CELLS, SIDE_CELLS, CELL, CELL, 3).permute(0, 5, 1, 3, 2, 4)
    return whole.reshape(n, 3, SIDE, SIDE)


def rows(n: int, split: str, folder: Path, *, seed: int = 0) -> list[dict[str, str]]:
    """Writes `n` pictures of a split into `folder`; returns rows with `image` (a path), `prompt` and `gold`.

    Equal seeds give equal rows.
    """
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    grid_NG = grids(n, split, generator)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    pixels = drawn(grid_NG, split, generator).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for at, (gold, each) in enumerate(zip(counts(grid_NG).tolist(), pixels, strict=True)):
        image = Image.fromarray(each)
        if split == "look":
            image = image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
        image.save(file := folder / f"{at:05}.png")
        found.append({"image": str(file.resolve()), "prompt": PROMPT, "gold": "".join(map(str, gold))})
    return found


# ---------------------------------------------------------------------- the base model


def count_processor() -> Any:
    """Returns the processor: an image token for each cell, a token for each character of an answer."""
    return small_processor("0123456789=?", side=SIDE, patch=CELL)


def untrained_base(config: CountConfig, tokenizer: Any) -> Any:
    """Returns the untrained base model: a LLaVA of the configured shape with random weights."""
    text = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads, "window": 64}
    tower = {"tower": config.tower, "tower_layers": config.tower_layers}
    return small_llava(tokenizer, side=SIDE, patch=CELL, seed=config.seed, **text, **tower)


def train_base(config: CountConfig) -> Iterator[tuple[int, float, Any]]:
    """Trains the base model from scratch, its tower too; yields (step, loss, model) after each step."""
    tokenizer, generator = count_processor().tokenizer, torch.Generator().manual_seed(config.seed)
    batches = (_both_roles(config, tokenizer, generator) for _ in range(config.steps))
    yield from fit(
        untrained_base(config, tokenizer),
        batches,
        steps=config.steps,
        learning_rate=config.learning_rate,
        mistakes=config.mistakes,
    )


def _both_roles(config: CountConfig, tokenizer: Any, generator: torch.Generator) -> Outcomes:
    """Draws pictures and rows `<bos>picture=draft<eos>?revision`, their next tokens without and with a mistake."""
    bos, eos, image = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<bos>", "<eos>", "<image>"))
    n = config.batch
    grid_NG = grids(n, "in", generator)
    right_NA = counts(grid_NG)
    mistaken_NA = miscounted(right_NA, 1.0, generator)
    draft_NA, fresh_NA = (miscounted(right_NA, config.mistakes, generator) for _ in range(2))
    copies_N1 = torch.rand(n, 1, generator=generator) < 0.5

    def column(token: int, times: int = 1) -> Tensor:
        return torch.full((n, times), token)

    prompt_NL = torch.cat([column(bos), column(image, CELLS), column(tokenizer.vocab["="])], 1)
    revise_NL = torch.cat([column(eos), column(tokenizer.vocab["?"])], 1)
    ids_NL = torch.cat([prompt_NL, draft_NA, revise_NL, torch.where(copies_N1, draft_NA, fresh_NA)], 1)
    unscored_NL = column(-100, prompt_NL.shape[1] - 1)
    right_NL, mistaken_NL = (
        torch.cat(
            [unscored_NL, digit_NA, column(eos), column(-100), torch.where(copies_N1, draft_NA, digit_NA), column(eos)],
            1,
        )
        for digit_NA in (right_NA, mistaken_NA)
    )
    pixels = drawn(grid_NG, "in", generator).float() / 127.5 - 1  # as the processor
    return Outcomes(ids_NL, right_NL, mistaken_NL, {"pixel_values": pixels})
