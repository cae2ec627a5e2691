"""The head: tiles against a softmax over everything, whatever the model does to its logits, and what is not tiled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.model.packed import head as head_module
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.head import _After, _TiledLogps
from tests.model.zoo import SERVED, build, forest_of, plain_logps

PARENTS, ANSWERS, HIDDEN, WORDS = 23, 41, 16, 50

# name → model type and settings, of models that change their logits after the head
CHANGES_LOGITS: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled by logit_scale": ("cohere", {"logit_scale": 0.25}),
    "divided by logits_scaling": ("granite", {"logits_scaling": 3.0}),
    "capped": ("gemma3_text", {"final_logit_softcapping": 2.0, "layer_types": ["full_attention"] * 2}),
    "with a bias": ("phi", {}),
    "untouched": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
}


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles of a few rows for the smallest head; the answer tokens of each call are noted."""
    monkeypatch.setattr(head_module, "TILED_ABOVE", 0)
    monkeypatch.setattr(head_module, "TILE", {"cpu": 7 * 64})
    calls: list[int] = []
    apply = _TiledLogps.apply

    def noting(*args: Any) -> Tensor:
        calls.append(len(args[3]))
        return apply(*args)

    monkeypatch.setattr(_TiledLogps, "apply", noting)
    return calls


def problem(dtype: torch.dtype, *, bias: bool) -> tuple[list[Tensor | None], Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias; where answers are scored, some positions by several and some by none."""
    torch.manual_seed(0)
    shapes = [(PARENTS, HIDDEN), (WORDS, HIDDEN), (WORDS,)]
    leaves: list[Tensor | None] = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    if not bias:
        leaves[2] = None
    row_T, token_T = torch.randint(0, PARENTS, (ANSWERS,)), torch.randint(0, WORDS, (ANSWERS,))
    return leaves, row_T, token_T, torch.randn(ANSWERS, dtype=torch.float64)


@pytest.mark.parametrize("after", [_After(), _After(0.25), _After(1.0, 3.0), _After(0.5, 2.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_tiles_are_a_softmax_over_everything(
    after: _After, bias: bool, dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "TILE", {"cpu": 4 * WORDS})  # 23 positions: five tiles and a rest
    leaves, row_T, token_T, weights_T = problem(dtype, bias=bias)
    hidden, weight, shift = leaves
    logits = after(torch.nn.functional.linear(hidden, weight, shift).to(torch.promote_types(dtype, torch.float32)))
    plain_T = logits.double().log_softmax(-1)[row_T, token_T]
    wanted = [leaf for leaf in leaves if leaf is not None]
    expected = torch.autograd.grad((plain_T * weights_T).sum(), wanted)
    logp_T = _TiledLogps.apply(*leaves, row_T, token_T, after)
    found = torch.autograd.grad((logp_T * weights_T).sum(), wanted)
    assert logp_T.dtype == torch.float64
    torch.testing.assert_close(logp_T, plain_T, rtol=0, atol=max(near, 1e-12))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= near * theirs.norm()


def test_a_frozen_head_gets_no_gradient_and_its_hidden_states_the_same(tiled: list[int]) -> None:
    (hidden, weight, _), row_T, token_T, weights_T = problem(torch.float64, bias=False)
    both = torch.autograd.grad(
        (_TiledLogps.apply(hidden, weight, None, row_T, token_T, _After()) * weights_T).sum(), [hidden, weight]
    )
    assert weight is not None
    logp_T = _TiledLogps.apply(hidden, weight.detach(), None, row_T, token_T, _After())
    (alone,) = torch.autograd.grad((logp_T * weights_T).sum(), [hidden])
    assert torch.equal(alone, both[0])


def test_no_tile_is_kept_for_the_backward_pass(tiled: list[int]) -> None:
    (hidden, weight, _), row_T, token_T, _ = problem(torch.float32, bias=False)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        _TiledLogps.apply(hidden, weight, None, row_T, token_T, _After())
    assert (WORDS, HIDDEN) in kept
    assert not [shape for shape in kept if len(shape) == 2 and shape[1] == WORDS]


# ---------------------------------------------------------------------- on models


@pytest.mark.parametrize("backend", ["path", "flat"])
@pytest.mark.parametrize("name", CHANGES_LOGITS)
def test_logits_that_a_model_scales_or_caps(name: str, backend: str, tiled: list[int]) -> None:
    model_type, settings = CHANGES_LOGITS[name]
    model, trees = build(model_type, **settings), forest_of()
    plain = plain_logps(model, trees)
    logps = sequence_logps(model, trees, backend)
    assert sum(tiled) >= sum(len(answer) for tree in trees for _, answer in tree.unpack())
    assert (logps - plain).abs().max() < 1e-4
    weights = torch.linspace(-1, 1.5, plain.numel(), dtype=torch.float64).view_as(plain)
    found, expected = (torch.autograd.grad((weights * t).sum(), list(model.parameters())) for t in (logps, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", ["scaled by logit_scale", "divided by logits_scaling", "capped"])
def test_control_an_overlooked_scale_or_cap_changes_log_probs(
    name: str, tiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, settings = CHANGES_LOGITS[name]
    model, trees = build(model_type, **settings), forest_of()
    monkeypatch.setattr(head_module, "_agreeing", lambda candidates, seen, row: _After())
    with torch.no_grad():
        assert (sequence_logps(model, trees, "flat") - plain_logps(model, trees)).abs().max() > 0.1


class Louder(nn.Module):
    """A causal model that does to its logits what no configuration tells."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.module = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.module(*args, **kwargs)
        out.logits = out.logits + out.logits.square() / 8
        return out


def test_an_unknown_transform_uses_the_model_s_own_head(tiled: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "srpo")
    model, trees = Louder(build("llama")), forest_of()
    with torch.no_grad():
        for _ in range(2):
            assert (sequence_logps(model, trees, "flat") - plain_logps(model, trees)).abs().max() < 1e-4
    assert not tiled
    assert len([r for r in caplog.records if "head is not tiled" in r.getMessage()]) == 1


def test_an_adapter_on_the_head_uses_the_model_s_own_head(tiled: list[int]) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    with torch.no_grad():
        assert (sequence_logps(model, forest_of(), "path") - plain_logps(model, forest_of())).abs().max() < 1e-4
    assert not tiled


def test_below_the_threshold_nothing_is_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_TiledLogps, "apply", None)
    model = build("llama")
    assert torch.isfinite(sequence_logps(model, forest_of(), "path")).all()


def test_autocast_is_followed(tiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, trees = build("llama"), forest_of()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tiles = sequence_logps(model, trees, "path")
        monkeypatch.setattr(head_module, "TILED_ABOVE", 2**40)
        whole = sequence_logps(model, trees, "path")
    assert len(tiled) >= 1
    assert (tiles - whole).abs().max() < 1e-5
    assert (tiles - plain_logps(model, trees)).abs().max() > 1e-4  # it was bfloat16


@pytest.mark.parametrize("backend", ["path", "flat"])
@pytest.mark.parametrize("name", ["llama", "gemma3, mixed windows"])
def test_the_head_is_given_scored_positions_alone(name: str, backend: str) -> None:
    model_type, settings = SERVED[name]
    model, trees = build(model_type, **settings), forest_of()
    rows: list[int] = []
    sequence_logps(model, trees, backend)
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(out.shape[:-1].numel()))
    sequence_logps(model, trees, backend)
    tokens = sum(len(answer) for tree in trees for _, answer in tree.unpack())
    assert sum(rows) == tokens if backend == "flat" else sum(rows) < tokens
    assert not model.lm_head._forward_pre_hooks
