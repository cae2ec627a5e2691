"""Exported GGUF files: read back through transformers, equal to the model; damaged weights are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Reviser
from srpo.errors import ConfigError, SRPOError
from srpo.model.weights import gguf_export
from srpo.model.weights.gguf_export import export
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.sequences.templates import RevisionTemplate
from tests.conftest import EOS, PAD, VOCAB, make_byte_tokenizer, make_tiny_llama
from tests.revise.tiny import PROMPTS, carry_llama, saved

pytest.importorskip("gguf", reason="needs the extra gguf")


def tiny(kind: str) -> Any:
    import transformers

    if kind == "llama":
        return make_tiny_llama(initializer_range=0.2)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128 if kind == "Qwen3" else 16,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # zero at the start: a lost bias would not be found
                torch.nn.init.normal_(weight)
    return model


def folder(path: Path, kind: str) -> str:
    tiny(kind).save_pretrained(path)
    make_byte_tokenizer().save_pretrained(path)
    RevisionTemplate.preset("plain").save(path)
    return str(path)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "f16"), ("Qwen2", "f16"), ("Qwen3", "f32"), ("llama", "q8_0")])
def test_the_file_equals_the_model(tmp_path: Path, kind: str, dtype: str) -> None:
    found = export(folder(tmp_path / "model", kind), str(tmp_path / "out"), kind=dtype, max_new_tokens=6)
    assert found.generated == 24
    assert found.other_tokens == 0 or dtype == "q8_0"
    assert found.difference < {"f32": 1e-5, "f16": 5e-3, "q8_0": 0.1}[dtype]
    tokenizer = load_tokenizer(str(found.file))
    text = "What is 2+2? Ä"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        found.file.name,
        "Modelfile",
        "README.md",
        "revision_template.json",
    }


def test_drafts_and_revisions_equal_those_of_the_carry_model(tmp_path: Path) -> None:
    model = carry_llama()
    found = export(str(saved(tmp_path / "model", model)), str(tmp_path / "out"), kind="f16", max_new_tokens=4)
    before = Reviser(str(tmp_path / "model"))
    after = Reviser(load_model(str(found.file)), before.renderer.tokenizer, before.renderer.template)
    options = {"temperature": 0.0, "max_new_tokens": 8, "policy": "always"}
    trails = [each.revise(PROMPTS, 1, **options) for each in (before, after)]
    texts = [[[answer.text for answer in trail.answers] for trail in each] for each in trails]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("place", ["q_proj", "down_proj", "norm"])
def test_a_wrong_weight_is_found(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = gguf_export._tensors

    def damaged(model: Any, arch: str, kind: str) -> Any:
        for name, weight in model.state_dict().items():
            if place in name:
                weight.copy_(weight.flip(0) * 2)
        return tensors(model, arch, kind)

    monkeypatch.setattr(gguf_export, "_tensors", damaged)
    with pytest.raises(SRPOError, match="differs from the model"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=4)
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_the_order_of_a_llamas_rows_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_export, "_interleaved", lambda weight, heads: weight)
    with pytest.raises(SRPOError, match="differs from the model"):
        export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=4)


def test_the_readme_has_both_requests(tmp_path: Path) -> None:
    export(folder(tmp_path / "model", "llama"), str(tmp_path / "out"), max_new_tokens=2)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert text.count("curl http://localhost:8080/v1/completions") == 2
    assert "THE DRAFT" in text
    assert (tmp_path / "out" / "Modelfile").read_text("utf-8").startswith("FROM ./model-f16.gguf\n")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "llama")
    with pytest.raises(ConfigError, match="llama-quantize FILE q4_k_m"):
        export(model, str(tmp_path / "out"), kind="q4_k_m")
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCAB, eos_token_id=EOS)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    make_byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"architecture 'gpt2'.*convert_hf_to_gguf"):
        export(str(tmp_path / "gpt2"), str(tmp_path / "out"), max_new_tokens=2)
