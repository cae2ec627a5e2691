"""Adapters of other trainers: base, tokenizer and added tokens are found; no weight is dropped or invented."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from srpo.errors import ConfigError, InputError
from srpo.model.weights.load import load_config, load_model, load_tokenizer
from srpo.model.weights.stopping import end_ids, stop_at
from tests.conftest import make_byte_tokenizer, make_tiny_llama

IDS = torch.tensor([[1, 5, 9, 20, 3]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model with its tokenizer."""
    make_tiny_llama().save_pretrained(tmp_path / "base")
    make_byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **settings})


@torch.no_grad()
def stirred(model: Any, seed: int = 0) -> Any:
    """The model with a random change of every trainable weight."""
    source = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p += 0.1 * torch.randn(p.shape, generator=source)
    return model


def save_adapter(base: Path, out: Path, **settings: Any) -> Any:
    model = stirred(get_peft_model(load_model(str(base)), lora(**settings)))
    model.save_pretrained(out)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def rewrite(folder: Path, **changed: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


# ---------------------------------------------------------------------- base and tokenizer


def test_a_base_that_moved_is_named_with_its_file_and_can_be_given(base: Path, tmp_path: Path) -> None:
    saved = save_adapter(base, tmp_path / "adapter")
    moved = base.rename(tmp_path / "elsewhere")
    path = str(tmp_path / "adapter")
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match=r"adapter_config\.json: names the base model .*base, which is not here"):
            load(path)
        with pytest.raises(InputError, match="nowhere: no such folder; expected the base model of the adapter"):
            load(path, base_model="./nowhere")
    assert torch.equal(logits(load_model(path, base_model=str(moved))), logits(saved))
    assert len(load_tokenizer(path, base_model=str(moved))) == len(make_byte_tokenizer())
    # Control: a model that is no adapter has no base, and the argument is not dropped.
    for load in (load_model, load_tokenizer):
        with pytest.raises(ConfigError, match="is not an adapter and has no base model"):
            load(str(moved), base_model=str(moved))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_base_of_one_word_may_be_a_hub_name(load: Callable[..., Any], base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    rewrite(tmp_path / "adapter", base_model_name_or_path="my-base")
    with pytest.raises(InputError, match=r"adapter_config\.json: names the base model my-base, which is not here"):
        load(str(tmp_path / "adapter"))
    # Control: a base that is here and damaged is named itself.
    (base / "config.json").write_text("{")
    (base / "tokenizer.json").write_text("{")
    rewrite(tmp_path / "adapter", base_model_name_or_path=str(base))
    with pytest.raises(InputError, match=r"adapter: no (model|tokenizer): "):
        load(str(tmp_path / "adapter"))


def test_a_base_named_relative_to_the_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_adapter(base, tmp_path / "adapter")
    rewrite(tmp_path / "adapter", base_model_name_or_path="../base")
    monkeypatch.chdir("/")
    assert torch.equal(logits(load_model(str(tmp_path / "adapter"))), logits(saved))


def test_the_tokenizer_of_an_adapter(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "srpo")
    save_adapter(base, tmp_path / "adapter")
    assert load_tokenizer(str(tmp_path / "adapter")).get_vocab() == make_byte_tokenizer().get_vocab()
    assert "has no tokenizer; the tokenizer of its base model" in caplog.text
    caplog.clear()
    own = make_byte_tokenizer()
    own.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    own.save_pretrained(tmp_path / "adapter")
    assert "<tool>" in load_tokenizer(str(tmp_path / "adapter")).get_vocab()
    assert not caplog.text
    # A named adapter is in a subfolder of the folder with the tokenizer.
    (tmp_path / "run").mkdir()
    own.save_pretrained(tmp_path / "run")
    save_adapter(base, tmp_path / "run" / "policy")
    for path in ("run", "run/policy"):
        assert "<tool>" in load_tokenizer(str(tmp_path / path)).get_vocab()


def test_named_adapters_in_subfolders(base: Path, tmp_path: Path) -> None:
    saved = save_adapter(base, tmp_path / "run" / "policy")
    assert torch.equal(logits(load_model(str(tmp_path / "run"))), logits(saved))
    save_adapter(base, tmp_path / "run" / "other")
    with pytest.raises(InputError, match=r"2 adapters: other, policy; name one: .*policy"):
        load_model(str(tmp_path / "run"))
    for step in (10, 20):
        save_adapter(base, tmp_path / "unfinished" / f"checkpoint-{step}")
    with pytest.raises(InputError, match="2 adapters of a training run: checkpoint-10, checkpoint-20; name one"):
        load_model(str(tmp_path / "unfinished"))
    assert isinstance(load_model(str(tmp_path / "unfinished" / "checkpoint-20")), PeftModel)


def test_files_that_other_trainers_leave_beside_an_adapter(base: Path, tmp_path: Path) -> None:
    saved = save_adapter(base, tmp_path / "adapter")
    shutil.copy(base / "config.json", tmp_path / "adapter")  # Axolotl
    (tmp_path / "adapter" / "all_results.json").write_text("{}")  # LLaMA-Factory
    rewrite(tmp_path / "adapter", auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True})
    assert torch.equal(logits(load_model(str(tmp_path / "adapter"))), logits(saved))
    assert len(load_tokenizer(str(tmp_path / "adapter"))) == len(make_byte_tokenizer())


def test_an_adapter_on_an_adapter(base: Path, tmp_path: Path) -> None:
    first = save_adapter(base, tmp_path / "first")
    second = stirred(get_peft_model(first.merge_and_unload(), lora(target_modules=["v_proj"])), seed=1)
    second.save_pretrained(tmp_path / "second")
    rewrite(tmp_path / "second", base_model_name_or_path=str(tmp_path / "first"))
    torch.testing.assert_close(logits(load_model(str(tmp_path / "second"))), logits(second), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- added tokens

ADDED = 3


def grown(base: Path, to: int = 0, **settings: Any) -> tuple[Any, Any]:
    """An adapted model and a tokenizer with three tokens more than the base; embeddings padded to `to` rows."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<tool{i}>" for i in range(ADDED)]})
    model = load_model(str(base))
    model.resize_token_embeddings(to or len(tokenizer), mean_resizing=False)
    return stirred(get_peft_model(model, lora(**settings))), tokenizer


NEW = list(range(len(make_byte_tokenizer()), len(make_byte_tokenizer()) + ADDED))
STORED: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "whole embeddings": lambda base: grown(base, modules_to_save=["embed_tokens", "lm_head"]),
    "padded to 64": lambda base: grown(base, 320, modules_to_save=["embed_tokens", "lm_head"]),
    "low rank": lambda base: grown(base, target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "saved beside": lambda base: grown(base),
    "single rows": lambda base: grown(base, trainable_token_indices={"embed_tokens": NEW, "lm_head": NEW}),
}


@pytest.mark.parametrize("way", STORED)
def test_added_tokens(way: str, base: Path, tmp_path: Path) -> None:
    model, tokenizer = STORED[way](base)
    out = tmp_path / "adapter"
    model.save_pretrained(out, save_embedding_layers=True if way == "saved beside" else "auto")
    tokenizer.save_pretrained(out)
    rewrite(out, base_model_name_or_path=str(base))
    again = load_model(str(out))
    kept = model.get_output_embeddings().weight.shape[0]
    assert again.get_output_embeddings().weight.shape[0] == kept
    known = [i for i in range(kept) if way != "single rows" or i < NEW[-1] + 1]
    torch.testing.assert_close(logits(again)[..., known], logits(model)[..., known], rtol=0, atol=1e-5)
    ids = torch.tensor([[1, *NEW]])
    with torch.no_grad():
        ours, theirs = again(input_ids=ids).logits[..., known], model(input_ids=ids).logits[..., known]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    if way == "whole embeddings":  # a second implementation, which needs the tokenizer for the size
        plain = AutoPeftModelForCausalLM.from_pretrained(str(out))
        assert torch.equal(logits(plain), logits(again))


def test_added_tokens_without_embeddings_are_counted(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = grown(base)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    rewrite(tmp_path / "adapter", base_model_name_or_path=str(base))
    once, again = load_model(str(tmp_path / "adapter")), load_model(str(tmp_path / "adapter"))
    assert f"{ADDED} added tokens have no embedding in" in caplog.text
    assert torch.equal(logits(once), logits(again))  # nothing is drawn


# ---------------------------------------------------------------------- weights that do not fit

KINDS: dict[str, Any] = {
    "dora": lora(use_dora=True),
    "biases": lora(bias="lora_only"),
    "olora": lora(init_lora_weights="olora"),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_loaded_whole(kind: str, base: Path, tmp_path: Path) -> None:
    model = stirred(get_peft_model(load_model(str(base)), copy.deepcopy(KINDS[kind])))
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "adapter"))), logits(model), rtol=0, atol=1e-5)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    make_tiny_llama(num_hidden_layers=3).save_pretrained(tmp_path / "deeper")
    save_adapter(tmp_path / "deeper", tmp_path / "adapter")
    with pytest.raises(InputError, match=r"2 of the adapter's weights have no place in the base model: .*layers\.2"):
        load_model(str(tmp_path / "adapter"), base_model=str(base))
    # Control: PEFT itself drops them without a word.
    assert isinstance(PeftModel.from_pretrained(load_model(str(base)), str(tmp_path / "adapter")), PeftModel)


def test_missing_weights_of_an_adapter_are_named(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[sorted(weights)[0]]
    save_file(weights, file)
    with pytest.raises(InputError, match=r"1 of the adapter's weights are not there: .*lora_A"):
        load_model(str(tmp_path / "adapter"))


# ---------------------------------------------------------------------- end tokens


def test_end_tokens_of_training_are_added_to_those_of_the_base(base: Path, tmp_path: Path) -> None:
    model = load_model(str(base))
    before = end_ids(model)
    assert 7 not in before
    model.save_pretrained(tmp_path / "plain")
    stop_at(model, [*before, 7])
    model.save_pretrained(tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == [*before, 7]
    # Control: without the call the file knows the base's own end alone.
    assert end_ids(load_model(str(tmp_path / "plain"))) == before
    # Nothing else of the vendor's settings is changed, also where transformers would refuse to save them.
    model.generation_config.top_k = 7  # without sampling
    stop_at(model, [8], tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_k"] == 7
    assert end_ids(model) == [*before, 7, 8]


def test_an_adapter_generates_up_to_the_end_token_of_its_training(base: Path, tmp_path: Path) -> None:
    model = save_adapter(base, tmp_path / "adapter")
    prompt = torch.tensor([[1, 5, 9]])

    def greedy(loaded: Any) -> list[int]:
        found: list[int] = loaded.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)[0, 3:].tolist()
        return found

    free = greedy(load_model(str(tmp_path / "adapter")))
    assert len(free) == 8
    end = free[3]
    stop_at(model, [end], tmp_path / "adapter")
    assert greedy(load_model(str(tmp_path / "adapter"))) == free[: free.index(end) + 1]


# ---------------------------------------------------------------------- the hub's cache


def test_an_adapter_by_its_hub_name(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_adapter(base, tmp_path / "adapter")
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--org--adapter"
    shutil.copytree(tmp_path / "adapter", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    with pytest.raises(InputError, match="org/adapter"):  # control: another cache does not have it
        load_model("org/adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model, tokenizer = load_model("org/adapter"), load_tokenizer("org/adapter")
    assert isinstance(model, PeftModel)
    assert torch.equal(logits(model), logits(saved))
    assert len(tokenizer) == len(make_byte_tokenizer())
    assert load_config("org/adapter").model_type == "llama"
