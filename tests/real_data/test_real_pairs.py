"""Real preference pairs, strings and messages, through `srpo train` and `srpo revise` with a tokenizer made for them.

`SRPO_REAL_DATA` names a folder with pandalm_train.jsonl and pandalm_test.jsonl (strings) and oasst_en100.jsonl
(messages, up to several turns). The model is tiny and starts from nothing: what is shown is that the formats, lengths
and characters of real rows come through, and that the loss falls.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run

SOURCE = os.environ.get("SRPO_REAL_DATA")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SOURCE, reason="SRPO_REAL_DATA names no folder"),
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 768
STEPS = 30


def data(name: str) -> Path:
    return Path(str(SOURCE)) / name


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    """Every text in the rows, whatever their layout."""
    parts = [row[key] for row in rows for key in ("prompt", "chosen", "rejected")]
    return [text for part in parts for text in ([part] if isinstance(part, str) else [m["content"] for m in part])]


@pytest.fixture(scope="module", params=["strings", "messages"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[float]]:
    """The layout, the trained model's folder and the losses, step by step."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp(request.param)
    pairs = data("pandalm_train.jsonl" if request.param == "strings" else "oasst_en100.jsonl")
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts(lines(pairs)), vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=special[2:],
    )
    if request.param == "messages":
        tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    words = [
        "train",
        "--model_name_or_path",
        folder / "base",
        "--dataset_name",
        pairs,
        "--output_dir",
        folder / "model",
    ]
    words += ["--max_steps", STEPS, "--learning_rate", 1e-3, "--beta", 0.01, "--per_device_train_batch_size", 4]
    words += ["--bad_rows", "skip", "--logging_steps", 1, "--save_strategy", "no", "--use_cpu", "true"]
    words += ["--report_to", "none", "--disable_tqdm", "true", "--lr_scheduler_type", "constant"]
    assert run([str(word) for word in words]) == 0
    logged = [json.loads(line) for line in (folder / "model" / "metrics.jsonl").read_text("utf-8").splitlines()]
    return request.param, folder / "model", [line["loss"] for line in logged if "loss" in line]


def test_the_loss_falls(trained: tuple[str, Path, list[float]]) -> None:
    _, _, losses = trained
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(0.6, abs=1e-6)  # α = 0.8, every log-ratio 0
    assert sum(losses[-10:]) / 10 < 0.95 * losses[0]


def test_the_fitting_template_is_saved(trained: tuple[str, Path, list[float]]) -> None:
    layout, model, _ = trained
    saved = json.loads((model / "revision_template.json").read_text("utf-8"))
    assert saved["name"] == ("plain" if layout == "strings" else "quote")


def test_only_overlong_and_empty_rows_are_left_out(trained: tuple[str, Path, list[float]]) -> None:
    from srpo import Renderer, RevisionTemplate
    from srpo.model.weights.load import load_tokenizer
    from srpo.train.dataset import TreeDataset

    layout, model, _ = trained
    pairs = data("pandalm_train.jsonl" if layout == "strings" else "oasst_en100.jsonl")
    renderer = Renderer(load_tokenizer(str(model)), RevisionTemplate.load(model))
    kept = TreeDataset.build(str(pairs), renderer, max_length=CONTEXT, bad_rows="skip")
    assert len(kept) + len(kept.rejects) == len(lines(pairs))
    assert len(kept) > 0.4 * len(lines(pairs))
    for where, reason in kept.rejects:
        assert "is empty" in reason or f"over the limit of {CONTEXT}" in reason, where
    assert kept.sharing > 1.2
    for tree, row in zip(kept.trees, kept.where, strict=True):
        six = tree.unpack()
        assert max(len(context) + len(answer) for context, answer in six) <= CONTEXT, row
        assert len({answer[-1] for _, answer in six}) == 1  # every answer ends in the one terminator


def test_unseen_prompts_get_trails(trained: tuple[str, Path, list[float]], tmp_path: Path) -> None:
    _, model, _ = trained
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "trails.jsonl"
    first = data("pandalm_test.jsonl").read_text("utf-8").split("\n")[:8]
    prompts.write_text("\n".join(first) + "\n", "utf-8")
    words = ["revise", "--model_name_or_path", model, "--input", prompts, "--output", out, "--revisions", 2]
    words += ["--max_new_tokens", 24, "--reference", model.parent / "base", "--policy", "if_preferred"]
    assert run([str(word) for word in words]) == 0
    trails = lines(out)
    assert [trail["prompt"] for trail in trails] == [json.loads(line)["prompt"] for line in first]
    assert {len(trail["answers"]) for trail in trails} == {3}
    assert all(isinstance(answer["preferred"], float) for trail in trails for answer in trail["answers"][1:])
    assert all(trail["meta"]["chosen"] for trail in trails)
