"""The model inside its wrappers: the transformers model that computes, and the PEFT model that switches adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def core(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside its wrappers (DDP, torch.compile, a PEFT adapter)."""
    inner: Any = model
    while wrapped := next((inner._modules[name] for name in ("module", "_orig_mod") if name in inner._modules), None):
        inner = wrapped
    return cast("PreTrainedModel", inner.get_base_model() if hasattr(inner, "get_base_model") else inner)


def adapted(model: nn.Module) -> PeftModel | None:
    """Returns the model itself if it is a PEFT model, else None.

    An adapter that transformers itself added (`model.add_adapter`) makes no PEFT model, so the result is None, too.
    """
    return cast("PeftModel", model) if hasattr(model, "disable_adapter") else None


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the model's first parameter."""
    return next(model.parameters()).device
