"""A head whose weight FSDP 2 splits over two processes: tiled inside its own forward pass, with the plain numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.model.packed import head as head_module
from srpo.model.packed import tiles as tiles_module
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.tiles import TiledLogps
from srpo.model.unwrap import core
from tests.faults.dying import together
from tests.model.zoo import build, forest_of

# name → model type and settings; some change their logits after the head
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "scaled": ("cohere", {"logit_scale": 0.25, "tie_word_embeddings": False}),
    "capped": ("gemma3_text", {"final_logit_softcapping": 2.0, "layer_types": ["full_attention"] * 2}),
    "adapter": ("llama", {}),
}


def made(name: str) -> nn.Module:
    model_type, settings = MODELS[name]
    torch.manual_seed(0)  # of the adapter
    model: Any = build(model_type, **settings)
    if name == "adapter":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


def split(model: nn.Module, *, head: bool) -> nn.Module:
    """Splits the model and frees weights after each forward pass; `head` makes the head's weight a group of its own."""
    from torch.distributed.fsdp import fully_shard

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in inner.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    if head:
        fully_shard(inner.lm_head, reshard_after_forward=True)
    return fully_shard(model, reshard_after_forward=True)


def scored(model: nn.Module, backend: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs of a forest, and the gradient of a weighted sum of them by parameter."""
    logps = sequence_logps(model, forest_of(), backend)
    weights = torch.linspace(-1, 1.5, logps.numel(), dtype=torch.float64).view_as(logps)
    (weights * logps).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logps.detach(), {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}


def compared(name: str, *, head: bool, backend: str = "path", tiles: bool = True) -> dict[str, Any]:
    """How far the split model is from the plain one, and what its head computed; in tiles if this process should."""
    plain, model = made(name), split(made(name), head=head)
    head_module.TILED_ABOVE = 2**40
    expected, theirs = scored(plain, backend)
    head_module.TILED_ABOVE = 0 if tiles else 2**40
    calls: list[int] = []
    rows: list[int] = []
    apply = TiledLogps.apply
    TiledLogps.apply = lambda *args: (calls.append(len(args[3])), apply(*args))[1]  # type: ignore[method-assign]
    inner: Any = core(model)
    inner.get_output_embeddings().register_forward_hook(lambda _module, _args, out: rows.append(out.shape[:-1].numel()))
    try:
        found, ours = scored(model, backend)
    finally:
        TiledLogps.apply = apply  # type: ignore[method-assign]
    assert ours.keys() == theirs.keys()
    off = max(float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs)
    return {"logps": float((found - expected).abs().max()), "grads": off, "tiled": len(calls), "rows": max(rows)}


def detached(model: str) -> dict[str, Any]:
    """Control: log-probs leave the head beside the model's logits, so FSDP does not see their backward pass begin."""
    out: list[Tensor] = []
    attach, take = head_module.attach, head_module.take
    head_module.attach = lambda row, logp_T, attached: (out.append(logp_T), row)[1]
    head_module.take = lambda logits, attached: out.pop()
    try:
        return compared(model, head=False)
    except RuntimeError as error:
        return {"error": str(error)}
    finally:
        head_module.attach, head_module.take = attach, take


def everything(rank: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    tiles_module.TILE["cpu"] = 7 * 64
    return {
        "tied": compared("tied", head=False),
        "scaled, head alone": compared("scaled", head=True),
        "capped, flat": compared("capped", head=False, backend="flat"),
        "adapter": compared("adapter", head=False),
        "uneven": compared("scaled", head=False, tiles=rank == 0),
        "control": detached("scaled"),
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """The results of both processes."""
    ends = together(everything)
    assert [end.error for end in ends] == ["", ""]
    return [end.value for end in ends]


@pytest.mark.parametrize("name", ["tied", "scaled, head alone", "capped, flat", "adapter"])
def test_tiles_inside_a_split_head_give_the_plain_numbers(name: str, found: list[dict[str, Any]]) -> None:
    for each in (rank[name] for rank in found):
        assert each["logps"] < 3e-6
        assert each["grads"] < 1e-6
        assert each["tiled"] > 0
        assert each["rows"] == 1  # the head itself computed the logits of one position


def test_processes_with_batches_above_and_below_the_threshold_go_on_together(found: list[dict[str, Any]]) -> None:
    """One process tiles and the other does not; they meet in as many forward passes."""
    uneven = [rank["uneven"] for rank in found]
    assert [each["tiled"] > 0 for each in uneven] == [True, False]
    assert [each["rows"] > 1 for each in uneven] == [False, True]
    assert all(each["logps"] < 3e-6 and each["grads"] < 1e-6 for each in uneven)


def test_control_log_probs_beside_the_logits_find_no_weight(found: list[dict[str, Any]]) -> None:
    assert all("out of bounds for storage of size 0" in rank["control"]["error"] for rank in found)
