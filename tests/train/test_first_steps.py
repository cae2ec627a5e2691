"""The guard on the first steps: trainings that would train nothing, or on wrong numbers, are mended or stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import srpo.train.load_models as module
from srpo.errors import ConfigError, SRPOError
from srpo.train.first_steps import FirstStep, disable_noise
from tests.train.plain import ROWS, sharp_llama, trainer, weights_of

SLOW = {"max_steps": 4, "learning_rate": 2e-6}


def lora(**changes: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


def changed_share(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Share of the weights that training changed."""
    pairs = [(before[name].float(), after[name].float()) for name in after]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


# ---------------------------------------------------------------------- 16 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["object", "name", "auto"])
def test_weights_in_16_bits_are_trained_in_float32(
    how: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = sharp_llama().to(dtype)
    if how != "object":
        (model if how == "auto" else sharp_llama()).save_pretrained(tmp_path / "base")
        kind = "auto" if how == "auto" else str(dtype).removeprefix("torch.")
        run = trainer(tmp_path, model=str(tmp_path / "base"), args={**SLOW, "model_init_kwargs": {"dtype": kind}})
    else:
        run = trainer(tmp_path, model=model, args=SLOW)
    before = weights_of(run.model)
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert changed_share(before, weights_of(run.model)) > 0.7  # rows of unused tokens have no gradient
    assert max(float((before[name] - w).abs().max()) for name, w in weights_of(run.model).items()) < 1e-4
    assert "trained in float32" in caplog.text


def test_control_in_bfloat16_almost_no_weight_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train_in_float32", lambda policy: None)
    run = trainer(tmp_path, model=sharp_llama().to(torch.bfloat16), args=SLOW)
    before = weights_of(run.model)
    run.train()
    assert changed_share(before, weights_of(run.model)) < 0.2


def test_an_adapter_over_a_frozen_16_bit_base_is_right(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, model=sharp_llama().to(torch.bfloat16), peft_config=lora(), args=SLOW)
    kinds = {p.dtype for name, p in run.model.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}
    assert {p.dtype for name, p in run.model.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    run.train()
    assert "trained in float32" not in caplog.text


def test_an_adapter_in_16_bits_is_trained_in_float32(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(sharp_llama().to(torch.bfloat16), lora(), autocast_adapter_dtype=False)
    assert next(p for name, p in model.named_parameters() if "lora_A" in name).dtype == torch.bfloat16
    run = trainer(tmp_path, model=model, args=SLOW)
    before = weights_of(run.model)
    run.train()
    after = {name: w for name, w in weights_of(run.model).items() if "lora_B" in name}
    assert all(w.dtype == torch.float32 for w in after.values())
    assert changed_share(before, after) > 0.9


def test_16_bit_weights_trained_beside_an_adapter_are_refused(tmp_path: Path) -> None:
    embeddings = lora(modules_to_save=["lm_head"])
    with pytest.raises(ConfigError, match=r"dtype: .*lm_head.* would be trained in bfloat16, where updates round away"):
        trainer(tmp_path, model=sharp_llama().to(torch.bfloat16), peft_config=embeddings)
    trainer(tmp_path, peft_config=embeddings, ref_model=sharp_llama()).train()  # control: float32


def test_a_frozen_part_without_an_adapter_becomes_float32_too(tmp_path: Path) -> None:
    model = sharp_llama().to(torch.bfloat16)
    model.model.embed_tokens.weight.requires_grad_(False)
    run = trainer(tmp_path, model=model, args=SLOW)
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


# ---------------------------------------------------------------------- dropout of every kind

NOISY: dict[str, dict[str, Any]] = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
    "mixtral": {"router_jitter_noise": 0.5, "num_local_experts": 2, "num_key_value_heads": 4},
    "biogpt": {"hidden_dropout_prob": 0.5, "layerdrop": 0.5, "activation_dropout": 0.5},
}


def noisy_model(kind: str) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, **sizes, **NOISY[kind])
    return AutoModelForCausalLM.from_config(config).train()


def twice(model: Any) -> bool:
    """Whether two forward passes in training mode give the same logits."""
    ids = torch.arange(1, 30)[None]
    return torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", NOISY)
def test_every_family_loses_its_dropout(kind: str, tmp_path: Path) -> None:
    model = noisy_model(kind)
    assert not twice(model)  # control: there was noise
    before = model.config.to_dict()
    original = disable_noise(model)
    assert twice(model)
    with original():
        model.config.save_pretrained(tmp_path)
    assert twice(model)
    after = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert {name: after.get(name) for name in NOISY[kind]} == {name: before.get(name) for name in NOISY[kind]}


def test_a_saved_model_keeps_the_dropout_of_its_configuration(tmp_path: Path) -> None:
    run = trainer(tmp_path, model=sharp_llama(attention_dropout=0.25))
    run.save_model()
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["attention_dropout"] == 0.25
    assert run.model.config.attention_dropout == 0


class HiddenNoise(nn.Module):
    """Noise in training mode under a name that no list of dropouts knows."""

    def __init__(self, norm: nn.Module, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = norm, scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        noise = torch.randn_like(hidden) * self.scale if self.training else 0.0
        normed: torch.Tensor = self.norm(hidden)
        return normed + noise


@pytest.mark.parametrize("adapter", [True, False])
def test_noise_in_the_policy_alone_stops_the_first_step(adapter: bool, tmp_path: Path) -> None:
    def run(scale: float, **args: Any) -> None:
        model = sharp_llama()
        model.model.norm = HiddenNoise(model.model.norm, scale)
        trainer(tmp_path, model=model, args=args, peft_config=lora() if adapter else None).train()

    with pytest.raises(
        SRPOError, match=r"step 1: the first log-ratios are not zero but up to .*same weights"
    ) as caught:
        run(0.3)
    assert caught.value.exit_code == 70
    run(0.0)  # control
    run(0.3, disable_dropout=False)  # the user asks for noise


def test_a_reference_of_other_weights_may_differ(tmp_path: Path) -> None:
    trainer(tmp_path, ref_model=sharp_llama(seed=1)).train()


def test_training_twice_compares_the_first_time_only(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    run.train()


def test_a_mean_over_tokens_has_a_smaller_tolerance() -> None:
    kinds = {"own_reference": True, "cached": False, "half": False, "anywhere": bool}
    by_sum, by_mean = (FirstStep(mean=mean, **kinds) for mean in (False, True))  # type: ignore[arg-type]
    from srpo.maths.objective import SixLogps
    from srpo.sequences.tree import PrefixTree

    tree = PrefixTree.pack([([1], [2] * 16), ([1], [3] * 4)])
    zero, off = (SixLogps(*[torch.full((1,), value, dtype=torch.float64)] * 6) for value in (0.0, 2e-3))
    for each in (by_sum, by_mean):
        each.add([tree], off, zero)
    by_sum.expect(nn.Linear(1, 1), 1.0)  # allowed: 1e-3 · √16
    with pytest.raises(SRPOError, match=r"allowed 0.0003"):
        by_mean.expect(nn.Linear(1, 1), 1.0)


# ---------------------------------------------------------------------- no gradient, no batch


def test_an_adapter_of_zeros_is_named(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(sharp_llama(), lora())
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.zero_()
    with pytest.raises(SRPOError, match=r"every trainable weight is exactly zero: \d+ zero .*both factors") as caught:
        trainer(tmp_path, model=model).train()
    assert caught.value.exit_code == 70


def test_a_detached_output_is_named(tmp_path: Path) -> None:
    model = sharp_llama()
    model.model.layers[1].register_forward_hook(lambda layer, given, made: made.detach().requires_grad_())
    config = lora(layers_to_transform=[0])
    with pytest.raises(SRPOError, match=r"exactly zero: \d+ missing .*likely causes: quantised layers"):
        trainer(tmp_path, model=model, peft_config=config).train()


def test_control_a_new_adapter_has_a_gradient(tmp_path: Path) -> None:
    trainer(tmp_path, peft_config=lora()).train()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_no_full_batch_is_found_before_the_weights(accumulated: int, tmp_path: Path) -> None:
    args = {
        "dataloader_drop_last": True,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": accumulated,
    }
    sharp_llama().config.save_pretrained(tmp_path / "no-weights")
    with pytest.raises(ConfigError, match="dataloader_drop_last: drops all 7 pairs: a batch takes 8"):
        trainer(tmp_path, model=str(tmp_path / "no-weights"), args=args)
    trainer(tmp_path, [*ROWS, ROWS[0]], args=args).train()  # control: eight pairs
