"""LoRA's product added in one call gives peft's own numbers, and is left to peft where it would not be exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from srpo.model.packed import adapter_sum
from srpo.model.packed.adapter_sum import AddedByProduct, adding_by_product
from srpo.model.packed.attention import serving
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.layouts import packed_logps
from srpo.sequences.tree import PrefixTree
from tests.model.zoo import build, random_six

peft = pytest.importorskip("peft")


def adapted(family: str = "qwen2", dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A tiny model with biases in attention and a trained adapter, whose scaling 10/3 is no power of two."""
    config = {"r": 3, "lora_alpha": 10, "target_modules": "all-linear", "init_lora_weights": False, **changes}
    torch.manual_seed(0)
    return peft.get_peft_model(build(family).to(dtype), peft.LoraConfig(**config)).train()


@pytest.fixture(scope="module")
def forest() -> Forest:
    return Forest.plant([PrefixTree.pack(random_six(seed)) for seed in range(2)])


def numbers(model: nn.Module, logps_BK: Tensor) -> list[Tensor]:
    """The log-probs, and the gradients of an uneven sum of them."""
    model.zero_grad()
    (logps_BK * torch.linspace(-1, 1.3, logps_BK.numel()).view_as(logps_BK)).sum().backward()
    return [logps_BK.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def off(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("open_base", [False, True])
def test_log_probs_and_gradients_are_those_of_peft(forest: Forest, open_base: bool) -> None:
    model = adapted()
    if open_base:
        model.requires_grad_(True)
    theirs = numbers(model, packed_logps(model, forest, backend="path"))
    ours = numbers(model, sequence_logps(model, forest, "path"))
    assert len(ours) >= 29  # two factors of 14 layers
    assert off(ours, theirs) < 1e-6  # the norms compute in float32


def test_a_wrong_scaling_is_seen(forest: Forest, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    theirs = numbers(model, packed_logps(model, forest, backend="path"))
    own = adapter_sum._AddedProduct.apply
    monkeypatch.setattr(adapter_sum._AddedProduct, "apply", lambda *args: own(*args[:-1], 1.01 * args[-1]))
    assert off(numbers(model, sequence_logps(model, forest, "path")), theirs) > 1e-4


def test_layers_add_in_one_call_and_are_left_as_they_were(forest: Forest) -> None:
    model = adapted("llama", torch.float32)
    sequence_logps(model, forest, "path")  # the self-check
    with Calls() as peft_own:
        packed_logps(model, forest, backend="path").sum().backward()
    with Calls() as ours:
        sequence_logps(model, forest, "path").sum().backward()
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert not any(layer.lora_variant for layer in layers)
    assert ours.counts["addmm_"] == peft_own.counts.get("addmm_", 0) + len(layers)
    passes = [calls.counts["mul"] + calls.counts["add"] for calls in (peft_own, ours)]
    assert passes[0] - passes[1] >= 3 * len(layers)  # scaling and sum forward, the scaling of the gradient backward


def test_activation_checkpointing_runs_the_same_layers_again(forest: Forest) -> None:
    model = adapted()
    theirs = numbers(model, packed_logps(model, forest, backend="path"))
    sequence_logps(model, forest, "path")  # the self-check, before the block
    model.gradient_checkpointing_enable()
    with adding_by_product(model), serving(model, "path"):
        ours = numbers(model, sequence_logps(model, forest, "path"))
    assert off(ours, theirs) < 1e-6


def test_an_adapter_in_float32_on_a_base_in_16_bits(forest: Forest) -> None:
    model = adapted(dtype=torch.bfloat16, init_lora_weights=True)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p, dtype=torch.float32) / 10
    theirs = numbers(model, packed_logps(model, forest, backend="path"))
    ours = numbers(model, sequence_logps(model, forest, "path"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    assert off(ours[:1], theirs[:1]) < 1e-3
    assert off(ours[1:], theirs[1:]) < 0.05


def _layer(**changes: Any) -> Any:
    return next(m for m in adapted(dtype=torch.float32, **changes).modules() if isinstance(m, peft.tuners.lora.Linear))


@pytest.mark.parametrize("case", ["dropout", "autocast", "other dtype", "split weight"])
def test_other_layers_add_as_peft_does(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(lora_dropout=0.5 if case == "dropout" else 0.0)
    x, result = torch.randn(1, 5, layer.in_features), torch.randn(1, 5, layer.out_features)
    if case == "split weight":
        layer.lora_A["default"].weight.ds_id = 0
    if case == "other dtype":
        layer.lora_B["default"].weight.data = layer.lora_B["default"].weight.data.bfloat16()
        layer.lora_A["default"].register_forward_hook(lambda _module, _inputs, out: out.bfloat16())
    monkeypatch.setattr(adapter_sum._AddedProduct, "apply", lambda *_: pytest.fail("added by product"))
    before = result.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        torch.manual_seed(1)
        ours = AddedByProduct.forward(layer, active_adapter="default", x=x, result=result)
        torch.manual_seed(1)
        small = layer.lora_A["default"](layer.lora_dropout["default"](x))
        theirs = before + layer.lora_B["default"](small) * layer.scaling["default"]
    assert torch.equal(ours, theirs)
    assert torch.equal(result, before)


def test_biased_and_weight_decomposed_adapters_are_left_alone() -> None:
    def served(model: nn.Module) -> Iterator[object]:
        with adding_by_product(model):
            for layer in model.modules():
                yield from (v for v in getattr(layer, "lora_variant", {}).values() if v is AddedByProduct)

    assert list(served(adapted()))
    assert not list(served(adapted(use_dora=True, init_lora_weights=True)))
    assert not list(served(adapted(target_modules=["q_proj"], lora_bias=True)))
    assert not list(served(build("llama")))
