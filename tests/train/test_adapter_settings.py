"""Settings of adapters and quantised bases: what reaches peft and bitsandbytes, and what is refused before weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from srpo.errors import ConfigError
from srpo.train import adapters
from srpo.train.adapters import expect_adapter_settings, lora_config, quantisation
from srpo.train.arguments import ModelArguments
from tests.train.plain import logged, sharp_llama, trainer


def asked(**settings: Any) -> ModelArguments:
    return ModelArguments(**{"use_peft": True, **settings})


def test_every_setting_reaches_peft() -> None:
    settings: dict[str, Any] = {"lora_r": 2, "lora_alpha": 3, "lora_dropout": 0.5, "use_dora": True, "use_rslora": True}
    modules: dict[str, Any] = {"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["lm_head"]}
    made = lora_config(asked(**settings, **modules), disable_dropout=True)
    assert isinstance(made, LoraConfig)
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_dora, made.use_rslora) == (2, 3, 0.5, True, True)
    assert (made.target_modules, made.modules_to_save) == ({"q_proj"}, ["lm_head"])
    assert lora_config(ModelArguments(), disable_dropout=True) is None


def test_every_setting_reaches_bitsandbytes() -> None:
    four = asked(load_in_4bit=True, bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    four.bnb_4bit_quant_storage = "float32"
    made = quantisation(four, "float32", "cpu")["quantization_config"]
    assert (made["bnb_4bit_quant_type"], made["bnb_4bit_use_double_quant"]) == ("fp4", True)
    assert (made["bnb_4bit_compute_dtype"], made["bnb_4bit_quant_storage"]) == ("float32", "float32")
    assert quantisation(asked(load_in_8bit=True), "auto", "cpu")["quantization_config"]["load_in_8bit"]
    assert quantisation(asked(), "float32", "cpu") == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_peft": False, "use_dora": True}, "use_dora: given without use_peft"),
        ({"use_peft": False, "lora_modules_to_save": ["lm_head"]}, "lora_modules_to_save: given without use_peft"),
        ({"use_bnb_nested_quant": True}, "use_bnb_nested_quant: given without load_in_4bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit: given with load_in_4bit"),
        ({"load_in_4bit": True}, r"load_in_4bit: needs bitsandbytes, .*pip install 'srpo\[quant\]'"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        expect_adapter_settings(asked(**settings), disable_dropout=True, device="cuda")
    expect_adapter_settings(asked(), disable_dropout=True, device="cuda")  # control


def test_unknown_4_bit_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="bnb_4bit_quant_type: 'nf5'; expected one of nf4, fp4"):
        ModelArguments(bnb_4bit_quant_type="nf5")


def test_dropout_on_parameters_is_refused() -> None:
    parameters = asked(lora_target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(ConfigError, match="lora_target_parameters: peft has no dropout on parameters"):
        expect_adapter_settings(parameters, disable_dropout=False, device="cpu")
    assert getattr(lora_config(parameters, disable_dropout=True), "lora_dropout", None) == 0.0


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "lora_target_modules": ["q_proj", "down_proj"]},
    "rslora": {"use_rslora": True},
    "a module beside it": {"lora_modules_to_save": ["lm_head"]},
    "experts": {"lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_adapter_learns_from_its_base(kind: str, tmp_path: Path) -> None:
    model = experts() if kind == "experts" else sharp_llama(num_hidden_layers=1)
    peft_config = lora_config(asked(**KINDS[kind]), disable_dropout=True)
    args = {"max_steps": 3, "learning_rate": 0.02, "alpha": 0.5}
    args |= {"router_aux_loss_coef": 0.0} if kind == "experts" else {}  # it would be part of the first loss
    run = trainer(tmp_path, model=model, peft_config=peft_config, args=args)
    assert run.reference.kind == "adapter off"
    run.train()
    losses = logged(run, "loss")
    assert losses[0] == pytest.approx(0.75, abs=1e-5)
    assert losses[-1] < losses[0]
    run.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file()


def adapted(model: Any, folder: Path, **settings: Any) -> set[str]:
    """Names of the weights that a training of an adapter on all linear layers would train."""
    args = lora_config(asked(lora_target_modules=["all-linear"], **settings), disable_dropout=True)
    made = trainer(folder, model=model, peft_config=args)
    return {name for name, p in made.model.named_parameters() if p.requires_grad}


def test_all_linear_reaches_experts_that_peft_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Peft refuses dropout there; the default of `lora_dropout` is not zero, and without dropout has no effect."""
    trained = adapted(experts(), tmp_path)
    assert {kind for kind in ("q_proj", "experts") if any(kind in name for name in trained)} == {"q_proj", "experts"}
    assert "no adapter" not in caplog.text


@pytest.mark.parametrize("told", [True, False])
def test_all_linear_names_experts_that_it_leaves_out(
    told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The flag that the warning names gives these experts an adapter."""
    model = fused("w13")
    flag = "--lora_target_parameters mlp.experts.w13"
    trained = adapted(model, tmp_path, lora_target_parameters=flag.split()[1:] if told else None)
    assert any("experts" in name for name in trained) is told
    assert (f"to train them, use {flag}" in caplog.text) is not told


def test_an_adapter_of_one_of_two_weights_of_experts_does_not_hide_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Peft wraps the module that holds both; the flag that the warning names adapts both."""
    adapted(fused("w13", "w2"), tmp_path, lora_target_parameters=["mlp.experts.w13"])
    flag = "--lora_target_parameters mlp.experts.w13 mlp.experts.w2"
    assert f"these experts no adapter: mlp.experts.w2; to train them, use {flag}" in caplog.text
    caplog.clear()
    trained = adapted(fused("w13", "w2"), tmp_path, lora_target_parameters=flag.split()[1:])
    assert len([name for name in trained if "experts" in name]) == 4
    assert "no adapter" not in caplog.text


def test_experts_that_are_trained_without_an_adapter_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = adapted(fused("w13"), tmp_path, lora_modules_to_save=["experts"])
    assert any(name.endswith("experts.modules_to_save.default.w13") for name in trained)
    assert "no adapter" not in caplog.text


def fused(*names: str) -> Any:
    """A tiny Llama with weights of experts that peft does not know, of these names; no forward pass reads them."""
    model = sharp_llama(num_hidden_layers=1)
    model.model.layers[0].mlp.experts = nn.Module()
    for name in names:
        setattr(model.model.layers[0].mlp.experts, name, nn.Parameter(torch.zeros(2, 4, 4)))
    return model


def experts() -> Any:
    """A tiny Qwen3-MoE of one layer."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = Qwen3MoeConfig(vocab_size=259, **sizes, **heads, num_experts=4, num_experts_per_tok=2)
    config.initializer_range = 0.15
    return Qwen3MoeForCausalLM(config)
