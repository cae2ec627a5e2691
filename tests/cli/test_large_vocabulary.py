"""The verbs on a model of 151,936 words in bfloat16 whose head is larger than the rest, as those of real models are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srpo.cli.main import run

ROWS = [{"prompt": f"Add {a} and {a}.", "chosen": str(2 * a), "rejected": str(a), "gold": str(2 * a)} for a in (1, 2)]
VOCABULARY = 151_936


class Heads:
    """The multiplications by output heads: whether each input lay in one piece, and its number of rows."""

    def __init__(self) -> None:
        self.whole: list[bool] = []
        self.rows: list[int] = []
        self.linear = F.linear

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape[0] == VOCABULARY:
            self.whole.append(rows.is_contiguous())
            self.rows.append(rows.numel() // rows.shape[-1])
        return self.linear(rows, weight, bias)


@pytest.fixture(scope="module")
def heads() -> Iterator[Heads]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", found := Heads())
        yield found


@pytest.fixture(scope="module")
def place(large_vocabulary: Path, heads: Heads) -> Path:
    """The folder with an adapter of two steps, its trails and report and the merged model, each made by its verb."""
    folder = large_vocabulary.parent
    names = ("model", "pairs.jsonl", "adapter", "trails.jsonl", "report", "merged")
    base, pairs, adapter, trails, report, merged = (str(folder / name) for name in names)
    Path(pairs).write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    verbs = [
        f"train --model_name_or_path {base} --dataset_name {pairs} --output_dir {adapter} --dtype bfloat16 --use_peft "
        "--max_steps 2 --logging_steps 1 --learning_rate 1e-2 --use_cpu --report_to none --save_strategy no",
        f"revise --model_name_or_path {adapter} --dtype bfloat16 --input {pairs} --output {trails} --revisions 1 "
        "--max_new_tokens 4",
        f"evaluate --trails {trails} --output_dir {report}",
        f"merge --model_name_or_path {adapter} --output_dir {merged} --max_new_tokens 2",
    ]
    for words in verbs:
        assert run(words.split()) == 0
    return folder


def test_an_adapter_is_trained_revises_and_is_merged(place: Path) -> None:
    log = [json.loads(line) for line in (place / "adapter" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert log[0]["loss"] == pytest.approx(0.6, abs=0.02)  # 1 − α/2: the log-ratios are zero before the first step
    assert log[1]["loss"] < log[0]["loss"]
    trails = [json.loads(line) for line in (place / "trails.jsonl").read_text("utf-8").splitlines()]
    assert [len(trail["answers"]) for trail in trails] == [2] * len(ROWS)
    assert 0 < trails[0]["answers"][1]["preferred"] < 1
    assert json.loads((place / "report" / "results.json").read_text("utf-8"))
    merged = json.loads((place / "merged" / "srpo_merge.json").read_text("utf-8"))
    assert (merged["other_tokens"], merged["dtype"]) == (0, "bfloat16")


def test_heads_read_contiguous_rows_of_scored_positions_alone(place: Path, heads: Heads) -> None:
    """A frozen bfloat16 weight multiplies strided rows hundreds of times slower; all positions would be gigabytes."""
    assert len(heads.whole) > 10
    assert all(heads.whole)
    assert max(heads.rows) < 400
    head, seen = nn.Linear(2, VOCABULARY, bias=False, device="meta"), len(heads.whole)
    head(torch.empty(3, 4, 2, device="meta")[:, ::2])  # control
    assert heads.whole[seen:] == [False]
