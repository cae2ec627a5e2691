"""Copies from the host to a device that do not make the host wait for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

ASYNCHRONOUS = ("cuda",)  # types of devices that copy page-locked memory while the host goes on


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Returns the values on a device; a copy to a GPU from page-locked memory is queued behind the GPU's work."""
    device = torch.device(device)
    if values.device.type != "cpu" or device.type not in ASYNCHRONOUS:
        return values.to(device)
    return page_locked(values).to(device, non_blocking=True)


def page_locked(values: Tensor) -> Tensor:
    """Returns the values in page-locked memory, which a GPU reads by itself; unchanged if they are in it already."""
    return values if values.is_pinned() else values.pin_memory()
