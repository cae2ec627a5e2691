"""The reference is the policy as it was: zero log-ratios before the first step, the same numbers after any step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from srpo.errors import ConfigError
from srpo.model.packed.attention import serving
from srpo.model.packed.forward import sequence_logps, six_logps
from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import REFERENCE_ADAPTER, Reference
from tests.model.zoo import SERVED, build, forest_of, plain_logps

TREES = forest_of()
EVERYWHERE = ["q_proj", "v_proj", "down_proj"]


def lora(targets: list[str] | None = None, **settings: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets or EVERYWHERE, **settings)


def adapted(
    config: Any, *, trained: bool, dtype: torch.dtype = torch.float32, autocast: bool = True, **settings: Any
) -> Any:
    """A tiny Llama under an adapter, fresh or as if it had been trained."""
    model = get_peft_model(build("llama", **settings).to(dtype), config, autocast_adapter_dtype=autocast)
    return stirred(model) if trained else model


@torch.no_grad()
def stirred(model: Any, seed: int = 1) -> Any:
    """The model after steps in a random direction."""
    source = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p += 0.1 * torch.randn(p.shape, generator=source).to(p)
    return model


@torch.no_grad()
def nudge(model: Any) -> None:
    """Adds one rounding error of its own dtype to each number of the last matrix that is trained."""
    last = [p for p in model.parameters() if p.requires_grad and p.ndim == 2][-1]
    last += torch.finfo(model.dtype).eps


def trained_on(model: Any, steps: int = 2) -> Any:
    """The model after real optimiser steps."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        sequence_logps(model, TREES, "path").mean().neg().backward()
        optimiser.step()
    return model


def scored(reference: Reference, backend: str = "path") -> Tensor:
    return torch.stack(list(reference.six_logps(TREES, backend)), 1)


@torch.no_grad()
def policy_logps(model: nn.Module, backend: str = "path") -> Tensor:
    return sequence_logps(model, TREES, backend)


def adapters_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() or path.name == "adapter_model.safetensors")


POLICIES: dict[str, tuple[str, Callable[..., Any]]] = {
    "full": ("frozen copy", lambda **kind: build("llama").to(kind.get("dtype", torch.float32))),
    "fresh": ("adapter off", lambda **kind: adapted(lora(), trained=False, **kind)),
    "pre-trained": ("frozen adapter", lambda **kind: adapted(lora(), trained=True, **kind)),
}


@pytest.mark.parametrize("autocast", [True, False], ids=["adapter in float32", "adapter in the base's dtype"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["path", "flat"])
@pytest.mark.parametrize("policy", POLICIES)
def test_log_ratios_are_exactly_zero_at_step_zero(
    policy: str, backend: str, dtype: torch.dtype, autocast: bool
) -> None:
    kind, make = POLICIES[policy]
    model = make(dtype=dtype, autocast=autocast)
    before = policy_logps(model, backend)
    reference = Reference(model)
    assert reference.kind == kind
    model.train()
    logps = sequence_logps(model, TREES, backend)
    assert torch.equal(logps, before)  # making the reference did not touch the policy
    assert logps.requires_grad
    ours = scored(reference, backend)
    assert torch.equal(ours, logps.detach())
    assert not ours.requires_grad
    # Control: a change of one rounding error in one matrix of the policy is seen. (A second layout is no control: a CPU
    # without bfloat16 instructions sums every product in the same order, whatever the layout.)
    nudge(model)
    assert not torch.equal(scored(reference, backend), policy_logps(model, backend))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_reference_stays_where_training_began(policy: str) -> None:
    model = POLICIES[policy][1]()
    before = policy_logps(model)
    reference = Reference(model)
    trained_on(model)
    after = policy_logps(model)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(scored(reference), before)
    assert torch.equal(policy_logps(model), after)  # scoring the reference put the policy back


def test_a_given_reference_is_used_and_frozen() -> None:
    policy, given = build("llama"), build("llama", seed=1).train()
    reference = Reference(policy, given)
    assert reference.kind == "given"
    assert reference.model is given
    assert not given.training
    assert not any(p.requires_grad for p in given.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    assert torch.equal(scored(reference), policy_logps(build("llama", seed=1)))


def test_the_policy_is_not_its_own_reference() -> None:
    policy = build("llama")
    with pytest.raises(ConfigError, match="ref_model"):
        Reference(policy, policy)
    assert all(p.requires_grad for p in policy.parameters())


def test_the_reference_of_a_model_edited_in_memory_is_that_model(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    model = type(build("llama")).from_pretrained(tmp_path)
    stirred(model)
    assert (policy_logps(model) - policy_logps(build("llama"))).abs().max() > 0.1
    assert torch.equal(scored(Reference(model)), policy_logps(model))


def test_a_frozen_copy_shares_no_weights() -> None:
    model = build("llama").train()
    reference = Reference(model)
    assert model.training
    assert not reference.model.training
    assert not any(p.requires_grad for p in reference.model.parameters())
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in reference.model.parameters()}


def test_prepare_places_a_copy_and_not_an_adapter() -> None:
    given = build("llama", seed=1)
    for policy, moved in (("full", True), ("fresh", False), ("pre-trained", False)):
        reference = Reference(POLICIES[policy][1]())
        reference.prepare(lambda model: given)
        assert (reference.model is given) == moved


# ---------------------------------------------------------------------- adapters of every kind

ADAPTERS: dict[str, Any] = {
    "lora": lora(),
    "embeddings": lora(["q_proj", "embed_tokens", "lm_head"]),
    "whole modules": lora(modules_to_save=["lm_head"]),
    "dora": lora(use_dora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "biases": lora(bias="lora_only"),
    "tokens": lora(trainable_token_indices=[3, 4]),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=EVERYWHERE, feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(task_type="CAUSAL_LM", target_modules=EVERYWHERE, r=4),
    "vera": VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_is_copied_whole_and_the_policy_left_alone(name: str) -> None:
    model = adapted(ADAPTERS[name], trained=True)
    before = policy_logps(model)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    reference = Reference(model)
    assert reference.kind == "frozen adapter"
    assert torch.equal(policy_logps(model), before)
    assert torch.equal(scored(reference), before)
    assert (before - plain_logps(model, TREES)).abs().max() < 1e-4
    trained_on(model)
    assert torch.equal(scored(reference), before)
    assert not torch.equal(policy_logps(model), before)
    now = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: now[n] for n in flags} == flags
    assert not any(now[n] for n in now.keys() - flags.keys())


@pytest.mark.parametrize("trained", [False, True], ids=["adapter off", "frozen adapter"])
def test_weights_frozen_by_the_user_stay_frozen(trained: bool) -> None:
    model = adapted(lora(), trained=trained)
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    reference = Reference(model)
    scored(reference)
    assert not frozen.requires_grad
    with pytest.raises(KeyError), reference.active():
        raise KeyError
    assert not frozen.requires_grad


@pytest.mark.parametrize("trained", [False, True], ids=["adapter off", "frozen adapter"])
def test_the_reference_has_no_dropout(trained: bool) -> None:
    model = adapted(lora(lora_dropout=0.5), trained=trained, attention_dropout=0.5).eval()
    before = policy_logps(model)
    reference = Reference(model)
    model.train()
    assert torch.equal(scored(reference), before)
    assert all(module.training for name, module in model.named_modules() if REFERENCE_ADAPTER not in name)
    assert not torch.equal(policy_logps(model), before)


@pytest.mark.parametrize("trained", [False, True], ids=["adapter off", "frozen adapter"])
@pytest.mark.parametrize("backend", ["path", "flat"])
def test_policy_gradients_survive_the_reference_in_between(backend: str, trained: bool) -> None:
    # In a training step the reference is scored after the policy's forward and before its backward.
    model = adapted(lora(), trained=trained).train()
    reference = Reference(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    alone = torch.autograd.grad(sequence_logps(model, TREES, backend).sum(), weights)
    with serving(model, backend):
        logps = sequence_logps(model, TREES, backend)
        scored(reference, backend)
        between = torch.autograd.grad(logps.sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(alone, between, strict=True))


def test_base_weights_in_training_are_refused() -> None:
    # Switching adapters leaves the base, so the reference would be trained along.
    for trained in (False, True):
        model = adapted(lora(), trained=trained)
        norm = model.get_base_model().model.norm.weight.requires_grad_()
        with pytest.raises(ConfigError, match="1 weights outside the adapter are trained") as error:
            Reference(model)
        assert "give a ref_model" in error.value.fix
        assert Reference(model, build("llama")).kind == "given"
        norm.requires_grad_(False)
        assert Reference(model).kind in ("adapter off", "frozen adapter")


def test_an_adapter_of_transformers_own_is_copied_with_its_model() -> None:
    model = build("llama")
    model.add_adapter(lora())
    stirred(model)
    before = policy_logps(model)
    reference = Reference(model)
    assert reference.kind == "frozen copy"
    stirred(model, seed=2)
    assert torch.equal(scored(reference), before)


# ---------------------------------------------------------------------- what is left behind


def test_saving_knows_only_the_policy_s_adapter(tmp_path: Path) -> None:
    model = adapted(lora(), trained=True)
    reference = Reference(model)
    for use in (lambda: None, lambda: scored(reference), lambda: trained_on(model)):
        use()
        model.save_pretrained(tmp_path)
        assert adapters_in(tmp_path) == ["adapter_model.safetensors"]
        assert not any(REFERENCE_ADAPTER in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert list(model.peft_config) == ["default"]
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    torch.testing.assert_close(policy_logps(again), policy_logps(model), rtol=0, atol=1e-5)
    # Control: PEFT saves whatever adapters it knows of.
    with reference.active():
        model.save_pretrained(tmp_path / "both")
    assert adapters_in(tmp_path / "both") == ["adapter_model.safetensors", REFERENCE_ADAPTER]


def test_merging_knows_only_the_policy_s_adapter() -> None:
    model = adapted(lora(), trained=True)
    scored(Reference(model))
    trained_on(model)
    expected = policy_logps(model)
    torch.testing.assert_close(policy_logps(model.merge_and_unload()), expected, rtol=0, atol=1e-3)


def test_a_later_reference_takes_the_place_of_an_earlier_one() -> None:
    model = adapted(lora(), trained=True)
    Reference(model)
    trained_on(model)
    now = policy_logps(model)
    reference = Reference(model)
    assert torch.equal(scored(reference), now)
    assert torch.equal(policy_logps(model), now)
    assert list(model.peft_config) == ["default"]


def test_an_adapter_by_another_name() -> None:
    model = adapted(lora(), trained=True)
    model.add_adapter("second", lora(["k_proj"]))
    model.set_adapter("second")
    stirred(model, seed=3)
    before = policy_logps(model)
    reference = Reference(model)
    assert reference.kind == "frozen adapter"
    trained_on(model)
    assert torch.equal(scored(reference), before)
    assert model.active_adapter == "second"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["path", "flat"])
def test_every_log_ratio_is_exactly_zero_at_the_start(dtype: torch.dtype, backend: str) -> None:
    for name in ("llama", "gemma3, mixed windows"):
        model_type, settings = SERVED[name]
        policy = build(model_type, **settings).to(dtype)
        reference = Reference(policy)
        ratios = six_logps(policy, forest_of(), backend).minus(reference.six_logps(forest_of(), backend))
        assert all(torch.equal(ratio, torch.zeros_like(ratio)) for ratio in ratios)
        # Control: a change of one rounding error in one matrix of the policy is seen.
        nudge(policy)
        apart = six_logps(policy, forest_of(), backend).minus(reference.six_logps(forest_of(), backend))
        assert any(ratio.any() for ratio in apart)


def test_weights_on_the_meta_device_have_no_fingerprint_and_no_cache(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build("llama")
    assert Reference(build("llama"), model).fingerprint == "not known"
    with pytest.raises(ConfigError, match=r"reference_cache: the weight .* is not here to be hashed"):
        CachedReference(build("llama"), tmp_path, model, device="cpu")
    assert len(Reference(build("llama")).fingerprint) == 64
