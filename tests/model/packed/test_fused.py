"""The head's fused passes: Triton's kernels in its interpreter, and their use, against a softmax in float64.

Without Triton the same tests run on a plain second implementation of the kernels, so that their use is tested
everywhere. The interpreter: `pip install triton`, then these tests with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from srpo.model.packed import fused
from srpo.model.packed import tiles as tiles_module
from srpo.model.packed.tiles import After, TiledLogps

POSITIONS, ANSWERS, HIDDEN, WORDS, BLOCK = 11, 19, 8, 150, 64
AFTER = [After(), After(0.25), After(0.5, 2.0)]


def plain_norms(logits_RV: Tensor, scale: float, cap: float) -> Tensor:
    return After(scale, cap or None)(logits_RV.float()).logsumexp(1)


def plain_slopes(
    logits_RV: Tensor,
    norm_R: Tensor,
    grad_R: Tensor,
    first_R1: Tensor,
    token_T: Tensor,
    grad_T: Tensor,
    scale: float,
    cap: float,
) -> Tensor:
    """Row by row, an answer token at a time."""
    rows = []
    for r, z_V in enumerate(logits_RV.float()):
        after_V = After(scale, cap or None)(z_V)
        slope_V = -(after_V - norm_R[r]).exp() * grad_R[r]
        for i in range(int(first_R1[r]), int(first_R1[r + 1])):
            slope_V[token_T[i]] += grad_T[i]
        rows.append(slope_V * scale * (1 - (after_V / cap) ** 2 if cap else 1.0))
    return torch.stack(rows).to(logits_RV.dtype)


@pytest.fixture(params=["plain", "triton"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels that the operators call; the CPU stands for CUDA, and multiplies 16-bit values as such."""
    name = "srpo.model.packed.fused_kernels"
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(norms=plain_norms, slopes=plain_slopes))
        monkeypatch.setattr("srpo.model.packed.fused_kernels", sys.modules[name], raising=False)
        monkeypatch.setattr(fused, "serves", lambda device, dtype: dtype in fused.DTYPES)
    else:
        pytest.importorskip("triton")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("the interpreter needs TRITON_INTERPRET=1 before Triton is imported")
        from srpo.model.packed import fused_kernels

        monkeypatch.setattr(fused_kernels, "BLOCK", BLOCK)  # a vocabulary of two blocks and a rest
        monkeypatch.setattr(fused, "KINDS", ("cpu",))
        fused._runs.cache_clear()
        assert fused.serves(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(tiles_module, "product_dtype", lambda dtype, device: dtype)
    monkeypatch.setattr(tiles_module, "TILE", {"cpu": 4 * WORDS})  # eleven positions: two tiles and a rest
    return sys.modules[name]


def problem(dtype: torch.dtype, *, bias: bool) -> tuple[list[Tensor | None], Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias; answers at some positions, two of them at one logit, three at one position."""
    torch.manual_seed(0)
    shapes = [(POSITIONS, HIDDEN), (WORDS, HIDDEN), (WORDS,)]
    leaves: list[Tensor | None] = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    row_T, token_T = torch.randint(1, POSITIONS, (ANSWERS,)), torch.randint(0, WORDS, (ANSWERS,))
    row_T[:3], token_T[:2] = 5, 7
    return (leaves if bias else [*leaves[:2], None]), row_T, token_T, torch.randn(ANSWERS, dtype=torch.float64)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def differences(dtype: torch.dtype, after: After, *, bias: bool, keep: bool) -> tuple[float, float]:
    """Relative differences from float64: of the log-probs, and the largest of the gradients."""
    leaves, row_T, token_T, weights_T = problem(dtype, bias=bias)
    given = [leaf for leaf in leaves if leaf is not None]
    exact = [leaf.detach().double().requires_grad_() for leaf in given]
    exact_T = after(torch.nn.functional.linear(*exact)).log_softmax(-1)[row_T, token_T]
    expected = torch.autograd.grad((exact_T * weights_T).sum(), exact)
    logp_T = TiledLogps.apply(*leaves, row_T, token_T, after, keep)
    found = torch.autograd.grad((logp_T * weights_T).sum(), given, retain_graph=True)
    again = torch.autograd.grad((logp_T * weights_T).sum(), given)  # the stored logits are still whole
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    return off(logp_T, exact_T), max(map(off, found, expected))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("after", AFTER)
def test_fused_passes_are_a_softmax_in_float64(kernels: Any, after: After, dtype: torch.dtype, near: float) -> None:
    for bias, keep in ((False, False), (True, True)):
        logps, gradients = differences(dtype, after, bias=bias, keep=keep)
        assert logps < near
        assert gradients < near


def test_control_a_kernel_that_forgets_the_answer_tokens(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kernels.slopes

    def forgetful(logits: Tensor, norm: Tensor, grad: Tensor, first: Tensor, *rest: Any) -> Tensor:
        result: Tensor = whole(logits, norm, grad, torch.zeros_like(first), *rest)
        return result

    monkeypatch.setattr(kernels, "slopes", forgetful)
    logps, gradients = differences(torch.float32, After(), bias=False, keep=False)
    assert logps < 1e-6
    assert gradients > 0.1


def test_operators_have_a_form_without_values() -> None:
    logits_RV, row_R = torch.empty(3, 7, dtype=torch.bfloat16, device="meta"), torch.empty(3, device="meta")
    assert fused.norms(logits_RV, 1.0, 0.0).shape == (3,)
    slopes_RV = fused.slopes(logits_RV, row_R, row_R, torch.empty(4, device="meta"), row_R, row_R, 1.0, 0.0)
    assert (slopes_RV.shape, slopes_RV.dtype) == ((3, 7), torch.bfloat16)


def test_kernels_are_for_cuda_and_not_for_float64() -> None:
    assert not tiles_module.serves(torch.device("cpu"), torch.bfloat16)
    with tiles_module.computing_for(tiles_module.Card("cuda", 2**30)):
        assert not tiles_module.serves(torch.device("cpu"), torch.float64)
        assert tiles_module.serves(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("fault", ["none", "no compiler", "wrong numbers"])
def test_kernels_that_fail_on_a_device_are_left_out(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Tensor:
        if fault == "no compiler":
            raise RuntimeError("Failed to find C compiler")
        return plain_norms(*args) + (fault == "wrong numbers")

    name = "srpo.model.packed.fused_kernels"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(norms=broken, slopes=plain_slopes))
    monkeypatch.setattr(name, sys.modules[name], raising=False)
    monkeypatch.setattr(fused, "KINDS", ("cpu",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    fused._runs.cache_clear()
    try:
        assert fused.serves(torch.device("cpu"), torch.bfloat16) is (fault == "none")
    finally:
        fused._runs.cache_clear()
    said = {
        "none": "",
        "no compiler": "RuntimeError: Failed to find C compiler",
        "wrong numbers": "differ from torch's",
    }
    assert said[fault] in caplog.text
    assert ("without its fused kernels" in caplog.text) is (fault != "none")
