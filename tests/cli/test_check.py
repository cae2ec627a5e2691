"""`srpo check`: what it counts, and that it needs a tokenizer and no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srpo.check.inspection import inspect
from srpo.cli.main import run
from srpo.data.read import read_pairs
from srpo.errors import DataError, InputError
from srpo.sequences.render import Renderer
from srpo.tasks.carry import TEMPLATE, carry_tokenizer

ROWS = [
    {"prompt": "12+34=", "chosen": "046", "rejected": "056"},
    {"prompt": "12+34=", "chosen": "046", "rejected": "056"},
    {"prompt": "1+1=", "chosen": "02", "rejected": "0302"},
    {"prompt": "123+456=", "chosen": "9750", "rejected": "9760"},
]
LIMIT = 15  # the last one is over it


@pytest.fixture
def place(tmp_path: Path) -> Path:
    carry_tokenizer().save_pretrained(tmp_path / "model")
    TEMPLATE.save(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"prompt": "5+5="}\n')
    return tmp_path


def test_counts_against_a_plain_count(place: Path) -> None:
    renderer = Renderer(carry_tokenizer(), TEMPLATE)
    found = inspect(place / "pairs.jsonl", renderer, max_length=LIMIT)
    sixes = [renderer.six(pair) for pair in read_pairs(ROWS)]
    sequences = [[(*context, *answer) for context, answer in six] for six in sixes]
    assert (found.rows, found.usable, found.duplicates, found.unusable) == (5, 3, 1, 2)
    fit = [six for six in sequences if max(map(len, six)) <= LIMIT]
    assert found.flat_tokens == sum(len(ids) for six in fit for ids in six)
    prefixes = [{ids[: n + 1] for ids in six for n in range(len(ids))} for six in fit]
    assert found.packed_tokens == sum(map(len, prefixes))
    assert found.over == len(sequences) - len(fit) == 1
    assert found.lengths["longest"].longest == max(len(ids) for six in sequences for ids in six)


def test_the_command_prints_the_counts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not list((place / "model").glob("*.safetensors"))
    words = ["check", "--dataset_name", str(place / "pairs.jsonl"), "--model_name_or_path", str(place / "model")]
    assert run([*words, "--max_length", str(LIMIT), "--examples", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 pairs usable of 5 rows; 2 unusable" in said
    assert "strings: prompt, chosen and rejected are text" in said
    assert "1 × no 'chosen'; this row has 'prompt'" in said
    assert "pairs.jsonl:5)" in said.replace(" ", "")  # a long path runs on in the next line
    assert "<bos>12+34=056?>>046<eos><<" in said  # the scored text is marked without colour, too


def test_no_usable_row_and_no_file(place: Path) -> None:
    (place / "bad.jsonl").write_text("{}\n")
    for name, kind in (("bad.jsonl", DataError), ("gone.jsonl", InputError)):
        with pytest.raises(kind, match=name):
            run(["check", "--dataset_name", str(place / name), "--model_name_or_path", str(place / "model")])
