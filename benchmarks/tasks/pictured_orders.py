"""The orders task as pictures: amounts to add up are drawn as digits, and the prompt's text has no digit.

    a picture of 31, 44 and 42, one below the other, and "="  →  117:310314407542117

A picture has 4 × 4 cells; an amount fills the two middle cells of a row. The answer is that of the orders task
(benchmarks/tasks/orders.py) without names: the total, then each amount with the running total behind it. Equal seeds
give the amounts of that task.

    in        3 amounts, in fonts of the training
    out       3 amounts that end in 6 to 9, in fonts that no training shows
    longer    4 amounts, in fonts of the training

The base is a small LLaVA from scratch. Its tower first learns to tell digits apart, as towers of real models are
trained before their language model sees a picture. Then its drafts are trained as those of the orders task: on orders
of 3 and 4 amounts, three of four totals wrong, half of the rows with the lines first.

Axes: N pictures, D digits of each, K glyphs of a digit, C pixels of a cell's side, P = 4 C of the picture's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks import orders as task
from benchmarks.tasks.small_llava import small_llava, small_processor
from srpo.sequences.templates import RevisionTemplate
from srpo.tasks.pretraining import Outcomes, fit

CELL, ACROSS = 12, 4  # pixels of a cell, cells along a side of the picture
SIDE = CELL * ACROSS
FIRST = 1  # column of an amount's first digit
# Files of matplotlib's fonts.
_DEJAVU = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
FONTS = (*_DEJAVU, "STIXGeneral", "STIXGeneralBol", "cmr10", "cmtt10")
OTHER_FONTS = ("cmss10", "DejaVuSerif-Bold")
POINTS = (10, 11, 12)  # sizes of the fonts
SHIFT = 1  # pixels that a digit may be off the middle of its cell, either way
READING_STEPS, READING_RATE = 500, 3e-3  # of the tower alone
WORDING = task.Wording(
    task.LETTERS.names,  # drawn and not used, so that amounts are those of LETTERS
    "{amount}",
    "{amount}{total:03}",
    "",
    ("{items}=", "{items}>"),
    ("{total:03}:{lines}", "{lines}:{total:03}"),
    RevisionTemplate("orders-in-pictures", "turn", "{{ prompt }}", "?"),
    26,
    4,
)


def drawn(digits_ND: Tensor, fonts: Sequence[str], generator: torch.Generator) -> Tensor:
    """Draws pictures with two digits a row; returns [N, 3, P, P] integers from 0 to 255.

    Font, size and place of each digit are drawn, and the grey of ink and paper of each picture.
    """
    n, d = digits_ND.shape
    glyphs_FKCC = torch.cat([glyphs(font) for font in fonts], 1)

    def between(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    inked_NDCC = glyphs_FKCC[digits_ND, between(0, glyphs_FKCC.shape[1], n, d)]
    down_ND, right_ND = (between(-SHIFT, SHIFT + 1, n, d)[..., None] for _ in range(2))
    from_CC = torch.arange(CELL)
    inked_NDCC = inked_NDCC.gather(2, ((from_CC - down_ND) % CELL)[..., None].expand(n, d, CELL, CELL))
    inked_NDCC = inked_NDCC.gather(3, ((from_CC - right_ND) % CELL)[:, :, None].expand(n, d, CELL, CELL))
    cells = torch.zeros(n, ACROSS, ACROSS, CELL, CELL)
    cells[:, : d // 2, FIRST : FIRST + 2] = inked_NDCC.view(n, d // 2, 2, CELL, CELL)
    ink_N, paper_N = between(180, 256, n), between(0, 40, n)
    grey = paper_N[:, None, None] + (ink_N - paper_N)[:, None, None] * cells.permute(0, 1, 3, 2, 4).reshape(
        n, SIDE, SIDE
    )
    return grey.round().long()[:, None].expand(n, 3, SIDE, SIDE)


@cache
def glyphs(font: str) -> Tensor:
    """[10, K, C, C] the share of ink in each pixel of the ten digits in one font, in each of `POINTS`."""
    import numpy as np
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    found = torch.zeros(10, len(POINTS), CELL, CELL)
    for at, points in enumerate(POINTS):
        made = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", points)
        for digit in range(10):
            cell = Image.new("L", (CELL, CELL))
            left, top, right, bottom = made.getbbox(str(digit))
            corner = ((CELL - left - right) // 2, (CELL - top - bottom) // 2)
            ImageDraw.Draw(cell).text(corner, str(digit), fill=255, font=made)
            found[digit, at] = torch.from_numpy(np.array(cell) / 255)
    return found


def shown(rows: Sequence[Mapping[str, str]], split: str, folder: Path, *, seed: int) -> list[dict[str, str]]:
    """Rows of `task.orders` in `WORDING` with their amounts in a picture: `image` is its file, `prompt` the text left.

    Pictures that are there are not drawn again.
    """
    from PIL import Image

    generator, found = torch.Generator().manual_seed(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for at, row in enumerate(rows):
        digits_1D = torch.tensor([[int(each) for each in row["prompt"][:-1]]])
        pixels = drawn(digits_1D, OTHER_FONTS if split == "out" else FONTS, generator)[0]
        file = folder / f"{at:05}.png"
        if not file.exists():
            begun = file.with_suffix(".begun")
            Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()).save(begun, "PNG")
            begun.replace(file)
        found.append({**row, "image": str(file.resolve()), "prompt": row["prompt"][-1]})
    return found


# ---------------------------------------------------------------------- the base model


def pictured_processor() -> Any:
    """Returns the processor: an image token for each cell, a token for each character."""
    return small_processor("0123456789=>:?", side=SIDE, patch=CELL)


def train_base(config: task.OrdersConfig, model: Any = None) -> Iterator[tuple[int, float, Any]]:
    """Trains the base, its tower too; yields (step, loss, model) after each step.

    Args:
        model: the model to train on; None starts from random weights.
    """
    tokenizer, source = pictured_processor().tokenizer, random.Random(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    if model is None:
        model = untrained_base(config, tokenizer)
        for _ in learn_digits(model, READING_STEPS, config.batch, generator):
            pass
    batches = (_drafts(config, tokenizer, source, generator) for _ in range(config.steps))
    yield from fit(model, batches, steps=config.steps, learning_rate=config.learning_rate, mistakes=0.0)


def untrained_base(config: task.OrdersConfig, tokenizer: Any) -> Any:
    """Returns a LLaVA with random weights; those of its projection are large enough to pass on what the tower sees."""
    shape = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads, "window": task.WINDOW}
    tower = {"tower": 48, "tower_layers": 1, "side": SIDE, "patch": CELL}
    model = small_llava(tokenizer, seed=config.seed, **shape, **tower)
    for weight in model.model.multi_modal_projector.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


def learn_digits(model: Any, steps: int, batch: int, generator: torch.Generator) -> Iterator[float]:
    """Trains the tower of `model`, below a head that is not kept, to tell the digit of each cell; yields each loss."""
    tower = model.model.vision_tower
    head = torch.nn.Linear(tower.config.hidden_size, 10)
    optimiser = torch.optim.AdamW([*tower.parameters(), *head.parameters()], READING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, READING_RATE, total_steps=steps)
    filled = [row * ACROSS + FIRST + at for row in range(ACROSS) for at in range(2)]
    for _ in range(steps):
        digits_ND = torch.randint(10, (batch, len(filled)), generator=generator)
        seen = tower(as_processed(drawn(digits_ND, FONTS, generator)), output_hidden_states=True).hidden_states[-1]
        loss = F.cross_entropy(head(seen[:, filled]).flatten(0, 1), digits_ND.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        yield loss.item()


def as_processed(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255 as the processor scales them, from −1 to 1."""
    return pixels.float() / 127.5 - 1


def _drafts(config: task.OrdersConfig, tokenizer: Any, source: random.Random, generator: torch.Generator) -> Outcomes:
    """The batch of the orders task with pictures of its amounts: their digits in each row become image tokens."""
    ids_NL, labels_NL, _, _ = task.base_batch(config, tokenizer, source, WORDING)
    ends = max(ids_NL[0].tolist().index(id) for id in map(tokenizer.vocab.get, "=>") if id in ids_NL[0])
    digits_ND = ids_NL[:, 1:ends]  # a digit's id is the digit
    image = torch.full((len(ids_NL), ACROSS**2), tokenizer.convert_tokens_to_ids("<image>"))
    ids_NL = torch.cat([ids_NL[:, :1], image, ids_NL[:, ends:]], 1)
    labels_NL = torch.cat([torch.full_like(image, -100), labels_NL[:, ends - 1 :]], 1)
    return Outcomes(ids_NL, labels_NL, labels_NL, {"pixel_values": as_processed(drawn(digits_ND, FONTS, generator))})
