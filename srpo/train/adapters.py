"""Makes peft's LoraConfig and bitsandbytes' options from the settings of a run, and checks these settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn

from srpo.errors import ConfigError
from srpo.model.unwrap import core
from srpo.model.weights.adapter import find_adapter
from srpo.model.weights.precision import base_dtype
from srpo.train.arguments import ModelArguments

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

_ONE_PRECISION = ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")  # settings of load_in_4bit


def expect_adapter_settings(model: ModelArguments, *, disable_dropout: bool, device: str) -> None:
    """Checks the settings of adapter and quantisation that depend on each other, before any weight is read.

    Args:
        disable_dropout: True if all training is without dropout, as by the setting of that name.
        device: type of the device that trains, such as "cuda".

    Raises:
        ConfigError: settings that contradict each other, or a quantised base without bitsandbytes.
    """
    given = [each.name for each in fields(model) if getattr(model, each.name) != each.default]
    for name in given:
        if (name.startswith("lora_") or name in ("use_dora", "use_rslora")) and not model.use_peft:
            what = "given without use_peft, which trains all weights"
            raise ConfigError(what, where=name, fix="add `--use_peft`, or leave it out")
        if name in _ONE_PRECISION and not model.load_in_4bit:
            raise ConfigError("given without load_in_4bit", where=name, fix="add `--load_in_4bit`, or leave it out")
    if model.load_in_4bit and model.load_in_8bit:
        raise ConfigError("given with load_in_4bit", where="load_in_8bit", fix="leave one of the two out")
    if (model.load_in_4bit or model.load_in_8bit) and find_spec("bitsandbytes") is None:
        name = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        raise ConfigError("needs bitsandbytes, which is not installed", where=name, fix="pip install 'srpo[quant]'")
    if model.load_in_8bit and device == "cpu":
        # bitsandbytes rounds the activations of such layers in eval mode and not in train mode, so that the
        # log-ratios of equal weights would not be zero.
        fix = "use load_in_4bit, or train on a GPU"
        raise ConfigError("on a processor, policy and reference would differ", where="load_in_8bit", fix=fix)
    if model.lora_target_parameters and model.lora_dropout and not disable_dropout:
        fix = "add `--lora_dropout 0`, or leave disable_dropout on"
        raise ConfigError("peft has no dropout on parameters", where="lora_target_parameters", fix=fix)


def lora_config(model: ModelArguments, *, disable_dropout: bool) -> LoraConfig | None:
    """Returns peft's configuration of a LoRA adapter from the settings of a run; None without `use_peft`.

    `disable_dropout` is the setting of that name: True trains without dropout.
    """
    if not model.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        # peft refuses any dropout on parameters; without dropout in training the number has no effect.
        lora_dropout=0.0 if model.lora_target_parameters and disable_dropout else model.lora_dropout,
        # As in TRL, all-linear is one word and not a list.
        target_modules="all-linear" if model.lora_target_modules == ["all-linear"] else model.lora_target_modules,
        target_parameters=model.lora_target_parameters,
        modules_to_save=model.lora_modules_to_save,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
        task_type="CAUSAL_LM",
    )


def quantisation(model: ModelArguments, dtype: str, device: str) -> dict[str, Any]:
    """Returns keywords of `load_model` that quantise the base model with bitsandbytes; {} without quantisation.

    Args:
        dtype: dtype in which the other weights are loaded; the quantised ones are multiplied in it.
        device: type of the device that trains.
    """
    if model.load_in_8bit:
        return {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    if not model.load_in_4bit:
        return {}
    computed = base_dtype("", adapter=True, device=device)[0] if dtype == "auto" else dtype
    found: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": computed,
        "bnb_4bit_quant_type": model.bnb_4bit_quant_type,
        "bnb_4bit_use_double_quant": model.use_bnb_nested_quant,
    }
    if model.bnb_4bit_quant_storage:
        found["bnb_4bit_quant_storage"] = model.bnb_4bit_quant_storage
    return {"quantization_config": found}


def expect_trainable(model: str | nn.Module, options: Mapping[str, Any], peft_config: PeftConfig | None) -> None:
    """Checks that a quantised model is trained through an adapter.

    Args:
        model: a loaded model, or the path or hub name of one.
        options: keywords of `load_model`; empty for a loaded model.

    Raises:
        ConfigError: quantised weights without an adapter; rounding them to 4 or 8 bits would undo every update.
    """
    if peft_config is not None:
        return
    if isinstance(model, str):
        quantised = "quantization_config" in options
        adapted = quantised and bool(find_adapter(model, options.get("base_model"), options.get("revision", "main")))
    else:
        quantised, adapted = bool(getattr(core(model), "is_quantized", False)), hasattr(model, "peft_config")
    if quantised and not adapted:
        fix = "train an adapter: `--use_peft` (peft_config)"
        raise ConfigError("quantised weights cannot be trained", where="quantization_config", fix=fix)


def keep_gradients(policy: nn.Module) -> None:
    """Stops bitsandbytes from repacking 4-bit weights on a CPU with AVX512-BF16, which would prevent training.

    It repacks weights for faster inference in the first forward pass in eval mode, such as the reference's, and has no
    backward pass for repacked weights: the adapter would get gradients of zero.
    """
    for module in policy.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
