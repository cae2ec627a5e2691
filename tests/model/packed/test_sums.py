"""Sums of log-probs for a device without float64: never float64 there, and the same numbers.

No such device is needed: tensors without values are put on torch's meta device, which stands for it, and torch refuses
to mix them with those of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srpo.maths.objective import SixLogps, srpo_loss
from srpo.model.packed import sums
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import LAYOUTS
from srpo.model.packed.tiles import After, TiledLogps
from tests.conftest import make_tiny_llama
from tests.model.zoo import forest_of

THERE = torch.device("meta")


class NoFloat64(TorchDispatchMode):
    """A mode that raises at each float64 tensor of the device without float64, and counts those of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
                assert leaf.device.type != THERE.type, func
                self.on_host += 1
        return out


def placed(mode: FakeTensorMode, tensor: Tensor) -> FakeTensor:
    return FakeTensor(mode, tensor.detach().to("meta"), THERE)


def placed_forest(mode: FakeTensorMode, forest: Forest) -> Forest:
    """The forest with its tensors on the device."""
    return Forest(forest.trees, forest.packed, forest.layout, placed(mode, forest.block))


@contextmanager
def elsewhere() -> Iterator[tuple[Any, Forest, NoFloat64]]:
    """A model and pairs on that device, inside the modes that make tensors without values and forbid float64."""
    model, mode = make_tiny_llama(num_hidden_layers=1), FakeTensorMode(allow_non_fake_inputs=True)
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is None:
                    continue
                fake = placed(mode, tensor)
                kept[name] = torch.nn.Parameter(fake) if isinstance(tensor, torch.nn.Parameter) else fake
    watch = NoFloat64()
    forest = placed_forest(mode, Forest.plant(forest_of()))
    with mode, watch:
        yield model, forest, watch


@pytest.mark.parametrize("layout", ["path", "flat"])
def test_a_step_makes_no_float64_on_the_device(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"mps", "xla", "tpu"} <= {*sums.WITHOUT_FLOAT64}
    monkeypatch.setattr(sums, "WITHOUT_FLOAT64", (THERE.type,))
    with elsewhere() as (model, forest, watch):
        policy_BK = LAYOUTS[layout](model, forest)
        with torch.no_grad():
            reference_BK = LAYOUTS[layout](model, forest)
        assert policy_BK.device.type == "cpu"
        six = [SixLogps(*each.unbind(1)) for each in (policy_BK, reference_BK)]
        srpo_loss(*six, beta=0.1, alpha=0.5).loss.float().to(THERE).backward()
    assert watch.on_host > 0
    assert all(p.grad is not None and p.grad.device.type == THERE.type for p in model.parameters())


def test_float64_on_the_device_is_noticed() -> None:
    """Control: sums on the device, as on every other one."""
    with pytest.raises(AssertionError), elsewhere() as (model, forest, _):
        LAYOUTS["path"](model, forest)


def tiled() -> list[Tensor]:
    """Log-probs of a tiled head, and gradients of its input and weight."""
    torch.manual_seed(0)
    hidden_PD, weight_VD = (torch.randn(n, 8, requires_grad=True) for n in (5, 11))
    row_T, token_T = torch.tensor([0, 4, 2, 2]), torch.tensor([1, 2, 3, 10])
    logp_T = TiledLogps.apply(hidden_PD, weight_VD, None, row_T, token_T, After(), False)
    gradients = torch.autograd.grad(logp_T @ torch.arange(4, dtype=torch.float64), [hidden_PD, weight_VD])
    return [logp_T.detach(), *gradients]


def test_sums_on_the_host_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a device without float64, so that the values of both ways can be compared."""
    model, trees = make_tiny_llama(num_hidden_layers=1), forest_of()

    def numbers() -> list[Tensor]:
        return [*(LAYOUTS[name](model, Forest.plant(trees)) for name in ("path", "flat", "cache")), *tiled()]

    before = numbers()
    monkeypatch.setattr(sums, "WITHOUT_FLOAT64", ("cpu",))
    assert all(torch.equal(one, other) for one, other in zip(before, numbers(), strict=True))
