"""Keeps sums of log-probs in float64: on the model's device or, for a device without float64, on the host."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps", "xla", "tpu")  # types of devices; Apple's GPUs have no float64, TPUs only imitate it


def device_of_sums(device: torch.device) -> torch.device:
    """Returns the device for float64 numbers of a model on `device`: the CPU for `WITHOUT_FLOAT64`, else the same."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def wide(values: Tensor) -> Tensor:
    """Returns the values in float64; differentiable. They move to the CPU if their device has no float64."""
    return values.to(device_of_sums(values.device)).double()
