"""`--base_model`: every verb that loads an adapter takes the base's new place, and fails with 66 without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from srpo.cli.main import run
from srpo.errors import InputError
from srpo.model.weights.load import load_model
from tests.conftest import make_byte_tokenizer, make_tiny_llama

PAIRS = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": str(2 * i + 1)} for i in range(4)]
FAST = ["--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with an adapter whose base has moved to `moved`, and files of pairs and prompts."""
    monkeypatch.chdir(tmp_path)
    make_tiny_llama().save_pretrained("base")
    make_byte_tokenizer().save_pretrained("base")
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(load_model(str(tmp_path / "base")), config).save_pretrained("adapter")
    Path("base").rename("moved")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))


VERBS = {
    "check": ["--dataset_name", "pairs.jsonl", "--revision_template", "plain"],
    "revise": ["--input", "pairs.jsonl", "--output", "t.jsonl", "--revisions", "1", "--max_new_tokens", "2"],
    "train": ["--dataset_name", "pairs.jsonl", "--output_dir", "run", "--max_steps", "1", *FAST],
    "merge": ["--output_dir", "merged", "--max_new_tokens", "2"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("place")
def test_the_new_place_of_a_base(verb: str) -> None:
    words = [verb, "--model_name_or_path", "adapter", *VERBS[verb]]
    if verb in ("revise", "train"):
        words += ["--revision_template", "plain"]
    with pytest.raises(InputError, match=r"names the base model .*base, which is not here; name the base"):
        run(words)
    with pytest.raises(InputError, match="nowhere/else/at/all: no such folder"):
        run([*words, "--base_model", "nowhere/else/at/all"])
    assert run([*words, "--base_model", "moved"]) == 0


@pytest.mark.usefixtures("place")
def test_the_dtype_of_a_frozen_base_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "srpo")
    words = ["train", "--model_name_or_path", "moved", *VERBS["train"], "--revision_template", "plain"]
    assert run([*words, "--use_peft"]) == 0
    assert "base in " in caplog.text
    assert "weights in" not in caplog.text
    words[words.index("run")] = "second"
    assert run([*words, "--use_peft", "--dtype", "bfloat16"]) == 0
    assert "weights in bfloat16, as given" in caplog.text
