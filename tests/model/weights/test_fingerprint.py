"""Fingerprints of weights that are tensors of another class, as torchao's are: numbers and scales inside a wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srpo.model.weights import fingerprint as module
from srpo.model.weights.fingerprint import fingerprint
from tests.conftest import make_tiny_llama


class Rounded(Tensor):
    """A weight as whole numbers, [V, D], times a scale for each row, [V, 1]; like torchao's, without memory of its own.

    `rounding` is a setting that the numbers depend on and no tensor holds.
    """

    numbers: Tensor
    scale: Tensor
    rounding: str

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor, rounding: str) -> Rounded:
        made: Rounded = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)
        made.numbers, made.scale, made.rounding = numbers, scale, rounding
        return made

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, str]]:
        return ["numbers", "scale"], {"rounding": self.rounding}

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], settings: dict[str, str], *_: object) -> Rounded:
        return Rounded(parts["numbers"], parts["scale"], settings["rounding"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Rounded(args[0].numbers, args[0].scale, args[0].rounding)
        raise NotImplementedError(f"a rounded weight has no {func}")


def rounded_llama(rounding: str = "nearest") -> Any:
    """A model with two rounded weights of one shape."""
    model = make_tiny_llama(num_hidden_layers=1)
    attention: Any = model.model.layers[0].self_attn
    for name, seed in (("q_proj", 0), ("o_proj", 1)):
        layer, source = getattr(attention, name), torch.Generator().manual_seed(seed)
        numbers = torch.randint(-127, 128, layer.weight.shape, dtype=torch.int8, generator=source)
        weight = Rounded(numbers, torch.rand(len(numbers), 1, generator=source), rounding)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def test_the_same_weights_have_the_same_fingerprint() -> None:
    assert fingerprint(rounded_llama()) == fingerprint(rounded_llama())
    assert fingerprint(rounded_llama()) != fingerprint(make_tiny_llama(num_hidden_layers=1))
    assert fingerprint(rounded_llama()) != fingerprint(rounded_llama("down"))


@pytest.mark.parametrize("part", ["numbers", "scale"])
@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_every_number_inside_counts(name: str, part: str) -> None:
    changed = rounded_llama()
    getattr(getattr(changed.model.layers[0].self_attn, name).weight, part)[-1, 0] += 1
    assert fingerprint(changed) != fingerprint(rounded_llama())


def test_control_the_wrapper_itself_cannot_be_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_parts", lambda name, tensor: iter([(name, tensor)]))
    with pytest.raises(NotImplementedError, match="a rounded weight has no"):
        fingerprint(rounded_llama())
