"""Adapters folded into their base while answers are generated: equal answers, an untouched base, fresh weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srpo.generate import folded_adapter
from srpo.generate.engine import Decoding
from srpo.generate.folded_adapter import FoldedAdapter
from srpo.generate.plain import HFEngine
from srpo.generate.speculative import SpeculativeEngine
from tests.conftest import EOS, PAD, make_tiny_llama

peft = pytest.importorskip("peft")

CONTEXTS = [[65, 66, 67, 68], [70, 71], [90]]
HOW = Decoding(12, (EOS,), 0.0)


def adapter(*, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A tiny model with an adapter that changes its answers."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(make_tiny_llama(initializer_range=0.3).to(dtype), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def answers(engine: HFEngine) -> list[tuple[int, ...]]:
    return [done.ids for done in engine.complete(CONTEXTS, ["a", "b", "c"], HOW)]


def base_weights(model: Any) -> dict[str, tuple[int, torch.Tensor]]:
    """Address and values of every weight that is not the adapter's."""
    found = {name: weight for name, weight in model.named_parameters() if "lora" not in name}
    return {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in found.items()}


@pytest.mark.parametrize("kind", [HFEngine, SpeculativeEngine])
def test_answers_equal_those_of_the_merged_model(kind: type[HFEngine]) -> None:
    model = adapter()
    before = base_weights(model)
    engine = kind(model, pad_id=PAD)
    found = answers(engine)
    assert engine.folded.reason == ""
    after = base_weights(model)
    assert all(
        after[name][0] == address and torch.equal(after[name][1], values) for name, (address, values) in before.items()
    )
    assert not any(getattr(module, "merged", False) for module in model.modules())
    plain = kind(model, pad_id=PAD)
    plain.folded.reason = "not folded in this test"
    assert answers(plain) == found
    with model.disable_adapter():  # control: the adapter matters
        assert answers(plain) != found
    assert answers(kind(model.merge_and_unload(), pad_id=PAD)) == found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
def test_sums_are_those_of_peft(dtype: torch.dtype, rslora: bool) -> None:
    model = adapter(dtype=dtype, use_rslora=rslora)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])  # both are added
    wide = torch.promote_types(dtype, torch.float32)
    for layer in FoldedAdapter(model)._layers():
        weight = layer.get_base_layer().weight.detach()
        parts = [layer.get_delta_weight(name).detach() for name in ("default", "second")]
        expected = (weight.to(wide) + parts[0].to(wide) + parts[1].to(wide)).to(dtype)
        found = folded_adapter._sum(layer)
        assert found.dtype == dtype
        assert found.data_ptr() != weight.data_ptr()
        assert torch.allclose(found, expected, rtol=torch.finfo(dtype).eps * 4, atol=torch.finfo(dtype).eps)
        assert not torch.allclose(found, weight, rtol=0.01)  # control: the adapters matter


def test_a_changed_adapter_is_folded_again() -> None:
    model = adapter()
    engine = SpeculativeEngine(model, pad_id=PAD)
    before = answers(engine)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.neg_()
    stale = engine.folded._version
    fresh = answers(SpeculativeEngine(model, pad_id=PAD))
    assert fresh != before
    assert answers(engine) == fresh
    assert engine.folded._version != stale


def test_the_base_comes_back_after_an_interruption() -> None:
    model = adapter()
    before, folded = base_weights(model), FoldedAdapter(model)

    def interrupted() -> None:
        with folded.active(CONTEXTS[0]):
            inside = {name: weight.data_ptr() for name, weight in model.named_parameters() if name in before}
            assert any(inside[name] != before[name][0] for name in before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert base_weights(model).keys() == before.keys()
    assert all(base_weights(model)[name][0] == address for name, (address, _) in before.items())


def test_other_adapters_and_wrong_sums_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SpeculativeEngine(adapter(use_dora=True), pad_id=PAD)
    answers(engine)
    assert "not plain LoRA" in str(engine.folded.reason)
    model = adapter()
    expected = answers(SpeculativeEngine(model, pad_id=PAD))
    # Control: a sum that leaves the adapter out is detected, and the answers stay right.
    monkeypatch.setattr(folded_adapter, "_sum", lambda layer: layer.get_base_layer().weight.data.clone())
    engine = SpeculativeEngine(model, pad_id=PAD)
    assert answers(engine) == expected
    assert "logits differ" in str(engine.folded.reason)
    monkeypatch.undo()
    monkeypatch.setattr(folded_adapter, "_free_memory", lambda device: 1000)
    engine = SpeculativeEngine(model, pad_id=PAD)
    assert answers(engine) == expected
    assert "GB are free" in str(engine.folded.reason)
