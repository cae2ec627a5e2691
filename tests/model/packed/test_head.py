"""The head: tiles against a softmax over everything, whatever the model does to its logits, and what is not tiled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from srpo.model.packed import head as head_module
from srpo.model.packed import tiles as tiles_module
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.tiles import After, TiledLogps, one_cast, product_dtype
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
    monkeypatch.setattr(tiles_module, "TILE", {"cpu": 7 * 64})
    calls: list[int] = []
    apply = TiledLogps.apply

    def noting(*args: Any) -> Tensor:
        calls.append(len(args[3]))
        return apply(*args)

    monkeypatch.setattr(TiledLogps, "apply", noting)
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


@pytest.mark.parametrize("after", [After(), After(0.25), After(1.0, 3.0), After(0.5, 2.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_tiles_are_a_softmax_over_everything(
    after: After, bias: bool, keep: bool, dtype: torch.dtype, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 23 positions in two blocks of rows and a rest; several tiles of words and a rest in each
    monkeypatch.setattr(tiles_module, "TILE", {"cpu": 4 * WORDS})
    monkeypatch.setattr(tiles_module, "MOST_ROWS", 9)
    leaves, row_T, token_T, weights_T = problem(dtype, bias=bias)
    product = product_dtype(dtype, "cpu")
    operands = [None if leaf is None else leaf.to(product) for leaf in leaves]
    logits = after(torch.nn.functional.linear(*operands).to(torch.promote_types(dtype, torch.float32)))
    plain_T = logits.double().log_softmax(-1)[row_T, token_T]
    wanted = [leaf for leaf in leaves if leaf is not None]
    expected = torch.autograd.grad((plain_T * weights_T).sum(), wanted)
    logp_T = TiledLogps.apply(*leaves, row_T, token_T, after, keep)
    found = torch.autograd.grad((logp_T * weights_T).sum(), wanted, retain_graph=True)
    again = torch.autograd.grad((logp_T * weights_T).sum(), wanted)  # the stored logits are still whole
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert logp_T.dtype == torch.float64
    torch.testing.assert_close(logp_T, plain_T, rtol=0, atol=max(near, 1e-12))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= near * theirs.norm()


def test_a_frozen_head_gets_no_gradient_and_its_hidden_states_the_same(tiled: list[int]) -> None:
    (hidden, weight, _), row_T, token_T, weights_T = problem(torch.float64, bias=False)
    both = torch.autograd.grad(
        (TiledLogps.apply(hidden, weight, None, row_T, token_T, After()) * weights_T).sum(), [hidden, weight]
    )
    assert weight is not None
    logp_T = TiledLogps.apply(hidden, weight.detach(), None, row_T, token_T, After())
    (alone,) = torch.autograd.grad((logp_T * weights_T).sum(), [hidden])
    assert torch.equal(alone, both[0])


class Made(TorchDispatchMode):
    """Collects dtypes of all tensors of one shape that operators return."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.dtypes = shape, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.shape == self.shape:
            self.dtypes.add(out.dtype)
        return out


@pytest.mark.parametrize("kind", ["xpu", "cpu"])
def test_gradients_of_hidden_states_are_written_in_their_own_dtype(kind: str, tiled: list[int]) -> None:
    """On an accelerator each tile writes its rows once; tiles of words on a CPU add to all rows, in float32."""
    (hidden, weight, _), *scored, weights_T = problem(torch.bfloat16, bias=False)
    assert hidden is not None
    with tiles_module.computing_for(tiles_module.Card(kind, 2**30)), Made((PARENTS, HIDDEN)) as made:
        (TiledLogps.apply(hidden, weight, None, *scored, After()) * weights_T).sum().backward()
    assert (torch.float32 in made.dtypes) == (kind == "cpu")
    full, grad = hidden.detach().double().requires_grad_(), hidden.grad
    logp_PV = (full @ weight.detach().double().T).log_softmax(-1)  # type: ignore[union-attr]
    (expected,) = torch.autograd.grad((logp_PV[scored[0], scored[1]] * weights_T).sum(), full)
    assert grad is not None
    assert (grad - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("keep", [False, True])
def test_logits_are_stored_for_the_backward_pass_only_if_asked(keep: bool, tiled: list[int]) -> None:
    (hidden, weight, _), row_T, token_T, _ = problem(torch.float32, bias=False)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        TiledLogps.apply(hidden, weight, None, row_T, token_T, After(), keep)
    assert (WORDS, HIDDEN) in kept
    assert ((PARENTS, WORDS) in kept) is keep


@pytest.mark.parametrize("autocast", [False, True])
def test_stored_logits_give_the_same_bits(autocast: bool) -> None:
    found = []
    for keep in (False, True):
        leaves, row_T, token_T, weights_T = problem(torch.float32, bias=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logp_T = TiledLogps.apply(*leaves, row_T, token_T, After(), keep)
        found.append(
            [logp_T, *torch.autograd.grad((logp_T * weights_T).sum(), [leaf for leaf in leaves if leaf is not None])]
        )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_the_rule_for_stored_logits_is_logged(
    tiled: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "srpo")
    model, found = build("llama"), []
    for share in (0.0, 0.0, 1.0):
        monkeypatch.setattr(head_module, "KEPT_SHARE", share)
        logps = sequence_logps(model, forest_of(), "path")
        found.append(torch.autograd.grad(logps.sum(), list(model.parameters())))
        with torch.no_grad():  # nothing is stored, and nothing logged, without a backward pass
            sequence_logps(model, forest_of(), "path")
    assert all(torch.equal(one, two) for one, two in zip(found[0], found[2], strict=True))
    words = [r.getMessage() for r in caplog.records if "logits" in r.getMessage()]
    assert [each.partition("): ")[2].split(" ")[0] for each in words] == ["computed", "kept"]


def test_the_weight_is_cast_once_a_step(tiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    casts: list[int] = []
    cast = tiles_module._cast
    model = build("llama").bfloat16()
    weight = model.lm_head.weight
    sequence_logps(model, forest_of(), "path")  # with the self-check of a first batch
    monkeypatch.setattr(tiles_module, "product_dtype", lambda dtype, device: torch.float32)

    def noting(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        made = cast(tensor, dtype)
        if tensor.data_ptr() == weight.data_ptr():
            casts.append(made.data_ptr())
        return made

    monkeypatch.setattr(tiles_module, "_cast", noting)
    with one_cast():
        for _ in range(2):
            sequence_logps(model, forest_of(), "path").sum().backward()
        assert len(casts) == 6
        assert len(set(casts)) == 1
        with torch.no_grad():
            weight.mul_(2)  # an optimiser's step is noticed
            before = sequence_logps(model, forest_of(), "path")
        assert len(set(casts)) == 2
    with torch.no_grad():
        assert torch.equal(before, sequence_logps(model, forest_of(), "path"))
    assert tiles_module._casts is None


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
    monkeypatch.setattr(head_module, "_agreeing", lambda candidates, seen, row: After())
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
    monkeypatch.setattr(TiledLogps, "apply", None)
    model = build("llama")
    assert torch.isfinite(sequence_logps(model, forest_of(), "path")).all()


def test_autocast_is_followed(tiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, trees = build("llama"), forest_of()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tiles = sequence_logps(model, trees, "path")
        monkeypatch.setattr(head_module, "TILED_ABOVE", 2**40)
        whole = sequence_logps(model, trees, "path")
    assert len(tiled) >= 1
    plain = plain_logps(model, trees)
    assert 1e-4 < (tiles - plain).abs().max() < 1.5 * (whole - plain).abs().max()  # the layers were in bfloat16


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
