"""Fault 10: models that do not fit the rows or each other are named; answers of very unlike lengths are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import srpo.train.trainer as module
from srpo.cli.main import run
from srpo.errors import ConfigError
from srpo.maths.objective import OBJECTIVES
from tests.conftest import VOCAB, make_byte_tokenizer, make_tiny_llama
from tests.train.plain import ROWS, flat_six, sharp_llama, trainer

QUICK = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--save_strategy", "no"]


def command(folder: Path, vocabulary: int) -> list[str]:
    make_tiny_llama(vocab_size=vocabulary, pad_token_id=None, bos_token_id=None, eos_token_id=None).save_pretrained(
        folder / "model"
    )
    make_byte_tokenizer().save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    words = ["train", "--model_name_or_path", folder / "model", "--dataset_name", folder / "pairs.jsonl"]
    return [str(word) for word in [*words, "--output_dir", folder / "run", *QUICK]]


def test_a_token_id_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"its vocabulary has 200 tokens, but the rows contain token id {VOCAB - 1}"
    ) as caught:
        run(command(tmp_path, 200))
    assert caught.value.where == "model"
    assert caught.value.exit_code == 78
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_control_a_larger_vocabulary_trains(tmp_path: Path) -> None:
    assert run(command(tmp_path, VOCAB + 5)) == 0


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (200, f"ref_model: its vocabulary has 200 tokens, but the rows contain token id {VOCAB - 1}"),
        (VOCAB + 5, f"ref_model: its vocabulary has {VOCAB + 5} tokens, the model's has {VOCAB}"),
    ],
)
def test_a_reference_of_another_vocabulary(known: int, said: str, tmp_path: Path) -> None:
    reference = make_tiny_llama(vocab_size=known, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, ref_model=reference)


def test_evaluation_rows_are_checked_too(tmp_path: Path) -> None:
    model = make_tiny_llama(vocab_size=VOCAB - 1, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    plain = make_byte_tokenizer()
    plain.eos_token = "a"  # within the smaller vocabulary, so that only a row can leave it
    rows = [{"prompt": "Q", "chosen": "yes", "rejected": "no"}]
    trainer(tmp_path, rows, model=model, processing_class=plain)
    with pytest.raises(ConfigError, match="the rows contain token id"):
        trainer(tmp_path, rows, model=model, eval_dataset=ROWS)


def test_control_without_the_check_a_larger_reference_ends_in_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "expect_vocabulary", lambda *args: None)
    reference = make_tiny_llama(vocab_size=VOCAB + 5)
    unlike = trainer(tmp_path, ref_model=reference)
    with pytest.raises(RuntimeError, match="must match"):
        unlike.train()


def test_an_adapter_without_a_trainable_weight(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    frozen = peft.LoraConfig(r=2, task_type="CAUSAL_LM", inference_mode=True)
    with pytest.raises(ConfigError, match="no weight is trainable"):
        trainer(tmp_path, peft_config=frozen)


def test_answers_of_one_and_of_two_thousand_tokens_together(tmp_path: Path) -> None:
    letters = "".join(chr(ord("a") + i * i % 26) for i in range(2000))
    rows = [
        {"prompt": "Q", "chosen": "y", "rejected": letters},
        {"prompt": "Say no: ", "chosen": "n", "rejected": "y"},
    ]
    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 5000}
    both = trainer(tmp_path, rows, model=sharp_llama(**small), ref_model=sharp_llama(1, **small))
    loss = both.compute_loss(both.model, next(iter(both.get_eval_dataloader(both.train_dataset))))
    with torch.no_grad():
        policy, reference = (flat_six(sharp_llama(seed, **small).double(), rows) for seed in (0, 1))
    oracle = OBJECTIVES["srpo"].loss(policy, reference, beta=both.args.beta, alpha=both.args.alpha).loss
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-5)
