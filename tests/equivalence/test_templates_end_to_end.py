"""Two families of real chat templates from file to trails: what is trained on is what is revised from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srpo import Pair, Reviser
from srpo.cli.main import run
from srpo.model.weights.load import load_tokenizer
from srpo.sequences.render import Renderer, template_for
from srpo.train.dataset import TreeDataset
from tests.conftest import make_tiny_llama
from tests.equivalence.test_templates import tokenizer_of

ROWS = [{"prompt": f"What is {n} + 1?", "chosen": f"{n + 1}", "rejected": f"<|eot_id|>{n}"} for n in range(4)]


def messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        **{key: [{"role": "assistant", "content": row[key]}] for key in ("chosen", "rejected")},
    }


@pytest.mark.parametrize("preset", ["quote", "turn"])
@pytest.mark.parametrize("name", ["qwen3", "llama3_1"])
def test_from_file_to_trails(name: str, preset: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name)
    model, out, pairs, trails = (str(tmp_path / part) for part in ("model", "out", "pairs.jsonl", "trails.jsonl"))
    tokenizer.save_pretrained(model)
    make_tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(model)
    Path(pairs).write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    data = ["--model_name_or_path", model, "--dataset_name", pairs, "--revision_template", preset]
    assert run(["check", *data]) == 0
    assert (
        run(["train", *data, "--max_steps", "1", "--output_dir", out, "--report_to", "none", "--use_cpu", "true"]) == 0
    )
    used = ["--model_name_or_path", out, "--input", pairs, "--output", trails]
    assert run(["revise", *used, "--revisions", "1", "--max_new_tokens", "4"]) == 0
    assert len(Path(trails).read_text("utf-8").splitlines()) == len(ROWS)

    # The ids of a training row, and those that the saved model drafts and revises from.
    trained = Renderer(load_tokenizer(model), template_for(model, preset))
    used_by = Reviser(out).renderer
    for row, tree in zip(ROWS, TreeDataset.build(ROWS, trained, max_length=None).trees, strict=True):
        six = tree.unpack()
        assert six[0].context == six[1].context == used_by.draft(row["prompt"])
        assert six[2].context == used_by.revision(row["prompt"], row["chosen"])
        assert six[4].context == used_by.revision(row["prompt"], row["rejected"])
        assert six[0].answer == used_by.answer(row["chosen"])
    # The same six whether rows came as strings or as messages.
    as_messages = TreeDataset.build([messages(row) for row in ROWS], trained, max_length=None)
    assert list(as_messages.trees) == list(TreeDataset.build(ROWS, trained, max_length=None).trees)
    # Control: the other preset makes other revisions.
    other = Renderer(tokenizer, template_for("", "turn" if preset == "quote" else "quote"))
    assert other.six(Pair(**ROWS[0]))[2] != used_by.six(Pair(**ROWS[0]))[2]
