"""A LoRA adapter added to the weights of its base in memory while answers are generated.

Decoding with an adapter runs three small products for each layer and token in place of one. The base's own tensors come
back after each use, bit for bit: the base is the reference of the confidence. Folded weights are computed once, and
again after a change of the adapter. They take as much memory as the adapted layers.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo.model.unwrap import adapted, core, device_of
from srpo.model.weights.merge import rounding

log = logging.getLogger("srpo")

SHARE = 0.5  # largest share of the free memory to take
_CHECKED, _COMPARED = 16, 2  # tokens of the comparison, the first context repeated; positions that are compared


class FoldedAdapter:
    """Adds a LoRA adapter to its base weights while answers are generated, if the result is exact up to rounding.

    Args:
        model: Any model; without an adapter of plain LoRA layers `active` does nothing.

    Attributes:
        reason: Why the adapter is not folded; None before the first use, empty if the adapter is folded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reason: str | None = None if adapted(model) is not None else "no adapter"
        self._weights: list[Tensor] = []
        self._version: object = None

    @contextmanager
    def active(self, context: Sequence[int]) -> Iterator[None]:
        """Inside this `with` block the adapter is added to the base weights; afterwards they are restored bit for bit.

        If the adapter cannot be added exactly, the block runs with the adapter as it is; the log says so once.

        Args:
            context: Token ids on which the first use compares the logits with and without folding.
        """
        if self.reason is None:
            self.reason = self._check((list(context) * _CHECKED)[:_CHECKED])
            if self.reason:
                self._weights = []
                log.info("srpo: the adapter is not folded into its base; decoding is slower: %s", self.reason)
        if self.reason:
            yield
            return
        with self._folded():
            yield

    def _layers(self) -> list[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]

    @contextmanager
    def _folded(self) -> Iterator[None]:
        layers = self._layers()
        weights = [layer.get_base_layer().weight for layer in layers]
        parts = [part for layer in layers for name in layer.active_adapters for part in _parts(layer, name)]
        version: list[object] = [(id(each), each._version) for each in (*weights, *parts)]
        version += [(tuple(layer.active_adapters), dict(layer.scaling)) for layer in layers]
        if version != self._version:
            self._weights = [_sum(layer) for layer in layers]
            self._version = version
        own = [weight.data for weight in weights]
        try:
            for layer, weight, folded in zip(layers, weights, self._weights, strict=True):
                weight.data = folded
                layer.merged_adapters.extend(layer.active_adapters)
            yield
        finally:
            for layer, weight, tensor in zip(layers, weights, own, strict=True):
                weight.data = tensor
                layer.merged_adapters.clear()

    @torch.no_grad()
    def _check(self, context: list[int]) -> str:
        """Returns the reason why the adapter must not be added to the weights; "" if logits on `context` agree."""
        from peft.tuners.lora.layer import Linear

        layers = self._layers()
        for layer in layers:
            base = layer.get_base_layer()
            plain = type(layer) is Linear and type(base) is nn.Linear and not layer.lora_variant
            if not plain or layer.merged or layer.disable_adapters or any(layer.lora_bias.values()):
                return f"a layer of type {type(layer).__name__} is not plain LoRA on a linear layer"
        weights = [layer.get_base_layer().weight for layer in layers]
        if not layers or len({id(weight) for weight in weights}) < len(weights):
            return "adapted layers share weights"
        needed, free = sum(weight.nbytes for weight in weights), _free_memory(device_of(self.model))
        if needed > SHARE * free:
            return f"its layers take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        ids = torch.tensor([context], device=device_of(self.model))
        # The last positions depend on all others; the head over a large vocabulary would cost more than the layers.
        model: Any = self.model
        apart_SV = model(input_ids=ids, use_cache=False, logits_to_keep=_COMPARED).logits[0].float()
        with self._folded():
            folded_SV = model(input_ids=ids, use_cache=False, logits_to_keep=_COMPARED).logits[0].float()
        range_S = apart_SV.amax(-1) - apart_SV.amin(-1)
        off = ((folded_SV - apart_SV).abs().amax(-1) / range_S).max().item()
        allowed = rounding(weights[0].dtype, core(self.model).config.get_text_config().num_hidden_layers)
        return "" if off <= allowed else f"logits differ by {off:.1e} of their range (rounding explains {allowed:.1e})"


def _parts(layer: Any, name: str) -> tuple[Tensor, ...]:
    return (layer.lora_A[name].weight, layer.lora_B[name].weight) if name in layer.lora_A else ()


@torch.no_grad()
def _sum(layer: Any) -> Tensor:
    """Returns the base weight of a LoRA layer plus its active adapters, added in float32.

    The product is added in one call: PEFT's `get_delta_weight` writes two matrices as large as the weight before.
    """
    weight: Tensor = layer.get_base_layer().weight
    total = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    for name in layer.active_adapters:
        if name in layer.lora_A:
            down, up = (part.to(total.dtype) for part in _parts(layer, name))
            total = torch.addmm(total, up, down, alpha=layer.scaling[name])
    return total.to(weight.dtype)


def _free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device; half of all memory where the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
