"""Sixty families of models, each built small from its configuration: trained, saved, loaded, revised, generated from.

`make families` runs them. A family passes if
1. the first-batch self-check settles a back-end, and two optimiser steps are finite and change weights;
2. the saved folder loads in srpo and in plain transformers with the same weights;
3. greedy drafts of `Reviser` are the tokens of plain `generate` on the saved model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from srpo import Reviser, SRPOConfig, SRPOTrainer
from srpo.model.weights.load import load_model
from tests.conftest import BOS, EOS, PAD, VOCAB, make_byte_tokenizer
from tests.model.weights.test_vision_language import KINDS, VISION
from tests.model.zoo import LINEAR

pytestmark = pytest.mark.families

SIZES = {
    **{"vocab_size": VOCAB, "max_position_embeddings": 256, "pad_token_id": PAD},
    **{"bos_token_id": BOS, "eos_token_id": EOS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
EXPERTS = {
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"shared_expert_intermediate_size": 16},
}
OLDER = {"n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48}
MIXED = {"layer_types": ["linear_attention", "full_attention"], **LINEAR, **EXPERTS}
DENSE = (
    *("apertus", "arcee", "bitnet", "bloom", "cohere", "cohere2", "cwm", "diffllama", "doge", "ernie4_5", "exaone4"),
    *("gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "helium"),
    *("hunyuan_v1_dense", "llama", "ministral", "mistral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3"),
    *("opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
)
SPARSE = (
    *("afmoe", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "gpt_oss", "granitemoe", "granitemoeshared"),
    *("hunyuan_v1_moe", "jetmoe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen3_moe", "solar_open"),
)
STATEFUL: dict[str, dict[str, Any]] = {
    **{"qwen3_next": MIXED, "qwen3_5_text": MIXED, "olmo_hybrid": {}},
    **{"falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}},
    **{"lfm2": {"layer_types": ["conv", "full_attention"]}, "mamba": {}, "falcon_mamba": {}},
}
TEXT: dict[str, dict[str, Any]] = {
    **{name: {} for name in DENSE},
    **{name: EXPERTS for name in SPARSE},
    **STATEFUL,
}
ROWS = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": str(2 * i + 1)} for i in range(4)]


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name in KINDS:
        text, vision = KINDS[name]
        sizes = {key: SIZES[key] for key in SIZES}
        config = AutoConfig.for_model(name, text_config={**sizes, **text}, vision_config={**VISION, **vision})
        return AutoModelForImageTextToText.from_config(config)
    config = AutoConfig.for_model(name, **{**SIZES, **OLDER, **TEXT[name]})
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", [*TEXT, *KINDS])
def test_family(name: str, tmp_path: Path) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    build(name).save_pretrained(model)
    make_byte_tokenizer().save_pretrained(model)
    args = SRPOConfig(
        output_dir=str(run),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        revision_template="plain",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SRPOTrainer(str(model), args=args, train_dataset=ROWS)
    before = {key: p.detach().clone() for key, p in trainer.model.named_parameters()}
    trainer.train()
    trainer.save_model()
    assert any(not torch.equal(p, before[key]) for key, p in trainer.model.named_parameters())
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    loaded = load_model(str(run))
    for key, p in trainer.model.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[key], p), key

    prompts = [row["prompt"] for row in ROWS]
    reviser = Reviser(str(run))
    trails = list(reviser.revise(prompts, revisions=1, temperature=0.0, max_new_tokens=6))
    tokenizer = make_byte_tokenizer()
    for prompt, trail in zip(prompts, trails, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = loaded.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        plain = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert trail.answers[0].text == plain
        assert len(trail.answers) == 2


def test_there_are_sixty_families() -> None:
    assert len({*TEXT, *KINDS}) >= 60
