"""Orders in pictures: the digits of a picture are those of its answer, and a model is shown what it was trained on."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import orders as command
from benchmarks.orders_stages import PAIRS, Sizes, Stage
from benchmarks.tasks import orders as task
from benchmarks.tasks import pictured_orders as pictured
from srpo.sequences.render import Renderer

Rows = Sequence[Mapping[str, str]]


def rows_of(n: int, split: str, folder: Path, *, seed: int = 3) -> list[dict[str, str]]:
    return pictured.shown(task.orders(n, split, seed=seed, wording=pictured.WORDING), split, folder, seed=seed)


@cache
def every_glyph() -> tuple[Tensor, list[tuple[int, str]]]:
    """Glyphs [G, C, C] of all digits in all fonts and sizes at all places near the middle; digit and font of each."""
    found, names = [], []
    for font in (*pictured.FONTS, *pictured.OTHER_FONTS):
        for digit, glyphs in enumerate(pictured.glyphs(font)):
            for place in product((-1, 0, 1), repeat=2):
                found.append(glyphs.roll(place, (1, 2)))
                names += [(digit, font)] * len(glyphs)
    return torch.cat(found), names


def read(file: str) -> tuple[str, set[str]]:
    """Digits of a picture and the fonts that they are in: those of the glyphs with the least difference."""
    grey = torch.from_numpy(np.array(Image.open(file).convert("L"), dtype=np.float32))
    inked = (grey - grey.min()) / (grey.max() - grey.min())
    glyphs_GCC, names = every_glyph()
    found, fonts = "", set()
    for rows in inked.split(pictured.CELL):
        for cell in rows.split(pictured.CELL, 1):
            if cell.max() > 0.3:
                digit, font = names[int((glyphs_GCC - cell).square().sum((1, 2)).argmin())]
                found += str(digit)
                fonts.add(font)
    return found, fonts


@pytest.mark.parametrize("split", task.SPLITS)
def test_a_picture_shows_the_amounts_of_its_answer(split: str, tmp_path: Path) -> None:
    rows = rows_of(4, split, tmp_path)
    for row in rows:
        digits, fonts = read(row["image"])
        amounts = [each[:2] for each in re.findall("[0-9]{5}", row["gold"].partition(":")[2])]
        assert digits == "".join(amounts)
        assert len(amounts) == (4 if split == "longer" else 3)
        assert fonts <= {*(pictured.OTHER_FONTS if split == "out" else pictured.FONTS)}
        assert row["prompt"] == "="
    assert read(rows[1]["image"])[0] != read(rows[0]["image"])[0]  # the control: another picture has other digits


def test_amounts_and_totals_are_those_of_the_orders_in_letters(tmp_path: Path) -> None:
    letters, digits = task.orders(20, "in", seed=7), task.orders(20, "in", seed=7, wording=pictured.WORDING)
    for one, other in zip(letters, digits, strict=True):
        assert re.sub("[a-z]", "", one["gold"]) == other["gold"]
        assert re.sub("[a-z]", "", one["prompt"]) == other["prompt"]
        assert task.total("", other["gold"], one["gold"]) == 1
        assert task.last_total(other["gold"]) == task.first_total(other["gold"])
        assert task.total_moved_first(f"{other['gold'][4:]}:000") == other["gold"]
    first = rows_of(2, "in", tmp_path / "a")
    again = rows_of(2, "in", tmp_path / "b")
    assert [Path(row["image"]).read_bytes() for row in first] == [Path(row["image"]).read_bytes() for row in again]


def turns(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def test_the_base_is_trained_on_the_ids_and_pixels_of_the_processor() -> None:
    processor, source = pictured.pictured_processor(), random.Random(1)
    generator, seen = torch.Generator().manual_seed(5), set()
    for _ in range(6):
        batch = pictured._drafts(task.OrdersConfig(batch=4), processor.tokenizer, source, generator)
        pixels = ((batch.inputs["pixel_values"] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        for at, (ids, labels) in enumerate(zip(batch.ids_NL.tolist(), batch.right_NL.tolist(), strict=True)):
            context = pictured.ACROSS**2 + 2
            mark = processor.tokenizer.decode(ids[context - 1])
            text = processor.apply_chat_template(turns(mark), tokenize=False)
            image = Image.fromarray(pixels[at].contiguous().numpy())
            how: dict[str, Any] = {"return_tensors": "pt", "add_special_tokens": False}
            given = processor(text=[text], images=[[image]], **how)
            assert given["input_ids"][0].tolist() == ids[:context]
            torch.testing.assert_close(given["pixel_values"][0], batch.inputs["pixel_values"][at])
            assert labels[: context - 1] == [-100] * (context - 1)
            assert labels[context - 1 :] == [*ids[context:], processor.tokenizer.eos_token_id]
            answer = processor.tokenizer.decode(ids[context:])
            seen.add((mark, len(answer)))
            assert (task.first_total(answer) is None) == (mark == ">")
    assert seen == {(mark, length) for mark in "=>" for length in (19, 24)}
    assert max(length for _, length in seen) < pictured.WORDING.tokens


def test_the_tower_learns_its_digits_and_nothing_else_changes() -> None:
    model = pictured.untrained_base(
        task.OrdersConfig(hidden=24, layers=1, heads=2), pictured.pictured_processor().tokenizer
    )
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    losses = [*pictured.learn_digits(model, 60, 8, torch.Generator().manual_seed(0))]
    assert sum(losses[:5]) > sum(losses[-5:]) + 2
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all("vision_tower" in name for name in moved)


def test_the_second_role_is_shown_the_pictures_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(pictured.pictured_processor(), pictured.WORDING.template)
    config = task.OrdersConfig(hidden=24, layers=1, heads=2, steps=1, batch=2)
    monkeypatch.setattr(pictured, "READING_STEPS", 1)
    [(_, _, model)] = pictured.train_base(config)
    rows = [{**row, "draft": f"999{row['gold'][3:]}", "revision": row["gold"]} for row in rows_of(3, "in", tmp_path)]
    pixels = {row["gold"]: torch.from_numpy(np.array(Image.open(row["image"]))) for row in rows}
    batches = task.roles_in_turn(rows, renderer, 4, 0, model)
    drafts, revisions = next(batches), next(batches)
    for batch, right in ((drafts, False), (revisions, True)):
        for labels, shown in zip(batch.right_NL, batch.inputs["pixel_values"], strict=True):
            answer = renderer.tokenizer.decode(labels[labels != -100][:-1].tolist())
            gold = next(each for each in pixels if each[3:] == answer[3:])
            assert (answer == gold) == right
            assert torch.equal(((shown + 1) * 127.5).round().long().permute(1, 2, 0), pixels[gold].long())
        loss = model(input_ids=batch.ids_NL, **batch.inputs).logits
        assert torch.isfinite(loss).all()


def test_pairs_of_own_drafts_keep_their_picture(tmp_path: Path) -> None:
    class Scripted(Stage):
        def drafts(self, name: str, rows: Rows, heat: float, **how: Any) -> list[list[str]]:
            golds = [row["gold"] for row in task.orders(2, "in", seed=PAIRS, wording=self.wording)]
            if len(rows) == 4:  # the begun answers: a right and a wrong total of both orders
                return [[golds[at // 2][4:] for at in range(4)]]
            return [[gold[:4] for gold in golds], ["000:"] * 2]

    stage = Scripted(tmp_path, 0, "", Sizes(pair_prompts=2, draws=2), pictured=True)
    command.own_pairs(stage, tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").open(encoding="utf-8")]
    rows = stage.rows(2, "in", PAIRS)
    assert [pair["image"] for pair in pairs] == [row["image"] for row in rows]
    assert [pair["chosen"] for pair in pairs] == [row["gold"] for row in rows]
    assert {pair["prompt"] for pair in pairs} == {"="}


def test_a_pretrained_model_and_pictures_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["orders", "--output_dir", str(tmp_path), "--pictures", "--model", "some"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--pictures trains its own model: leave --model out" in capsys.readouterr().err
