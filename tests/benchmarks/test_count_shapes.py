"""The counting task: its pictures show what its answers say, and the base is trained on what the processor makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.tasks import count_shapes as task
from srpo.tasks.pretraining import Outcomes

HUES = {(1, 0, 0): 0, (0, 1, 0): 1, (0, 0, 1): 2, (1, 1, 0): 3}


def seen(file: str) -> str:
    """The second implementation: the answer from the colour in the middle of each cell of the picture."""
    image = Image.open(file)
    side = image.size[0] // task.SIDE_CELLS
    found = [0, 0, 0, 0]
    for row in range(task.SIDE_CELLS):
        for column in range(task.SIDE_CELLS):
            pixel = image.getpixel((column * side + side // 2, row * side + side // 2))
            assert isinstance(pixel, tuple)
            hue = tuple(int(value > 100) for value in pixel)
            if hue in HUES:
                found[HUES[hue]] += 1
    return "".join(map(str, found))


@pytest.mark.parametrize("split", task.SPLITS)
def test_answers_count_what_the_picture_shows(split: str, tmp_path: Path) -> None:
    rows = task.rows(30, split, tmp_path, seed=3)
    assert [row["gold"] for row in rows] == [seen(row["image"]) for row in rows]
    fewest, most = task.SPLITS[split]
    assert {sum(map(int, row["gold"])) for row in rows} == {*range(fewest, most + 1)}
    again = task.rows(30, split, tmp_path / "again", seed=3)
    assert [row["gold"] for row in again] == [row["gold"] for row in rows]
    assert seen(rows[1]["image"]) != rows[0]["gold"]  # the control: another picture has another answer


def test_miscounts_are_wrong_by_one() -> None:
    right_NA = task.counts(task.grids(500, "in", torch.Generator().manual_seed(0)))
    wrong_NA = task.miscounted(right_NA, 1.0, torch.Generator().manual_seed(1))
    assert ((wrong_NA - right_NA).abs() == 1).all()
    assert wrong_NA.min() >= 0
    some_NA = task.miscounted(right_NA, 0.25, torch.Generator().manual_seed(1)) != right_NA
    assert 0.22 < some_NA.double().mean() < 0.28


def test_the_base_is_trained_on_the_ids_and_pixels_of_the_processor(tmp_path: Path) -> None:
    processor, config = task.count_processor(), task.CountConfig(batch=3)
    made: Outcomes = task._both_roles(config, processor.tokenizer, torch.Generator().manual_seed(5))
    pixels = ((made.inputs["pixel_values"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for at, ids in enumerate(made.ids_NL.tolist()):
        draft = "".join(processor.tokenizer.convert_ids_to_tokens(ids[11:15]))
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": task.PROMPT}]},
            {"role": "assistant", "content": draft},
            {"role": "user", "content": "?"},
        ]
        text = processor.apply_chat_template(turns, tokenize=False)
        given = processor(
            text=[text], images=[[Image.fromarray(pixels[at])]], return_tensors="pt", add_special_tokens=False
        )
        assert given["input_ids"][0].tolist() == ids[:-4]
        torch.testing.assert_close(given["pixel_values"][0], made.inputs["pixel_values"][at])
    scored = (made.right_NL != -100).sum(1)
    assert scored.tolist() == [10, 10, 10]  # two answers of four digits, each with its end
