"""Loads the models of a `Reviser` that are given by path, and the record that training saved beside a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srpo.errors import ConfigError, InputError
from srpo.model.unwrap import core
from srpo.model.weights.load import inference_device, load_model
from srpo.model.weights.quantised import TRAINING_FILE
from srpo.revise.settings import ReviserSettings


def loaded_models(
    model: nn.Module | str, reference: nn.Module | str | None, settings: ReviserSettings, *, needed: bool
) -> tuple[nn.Module | None, nn.Module | None]:
    """Returns model and reference, loading those given by path.

    Args:
        needed: False returns None for a model given by path, as an engine has its weights.

    Raises:
        ConfigError: A device or dtype was asked for, and the model is already loaded; or its weights are split over
            processes.
    """
    for where, given in (("model", model), ("reference", reference)):
        if isinstance(given, nn.Module):
            _expect_whole(given, where)
    dtype: torch.dtype | str
    if isinstance(model, str):
        device, dtype = inference_device(settings.device), settings.dtype or "float32"
    else:
        for where, asked in (("device", settings.device), ("dtype", settings.dtype)):
            if asked:
                fix = "move the model yourself, or pass its path"
                raise ConfigError(f"{asked!r}, and a model that is loaded", where=where, fix=fix)
        device, dtype = core(model).device, core(model).dtype

    def loaded(path: str, base: str | None = None) -> nn.Module:
        remote = settings.trust_remote_code
        found: nn.Module = load_model(path, dtype=dtype, trust_remote_code=remote, base_model=base).to(device)
        return found

    frozen = loaded(reference) if isinstance(reference, str) else reference
    if isinstance(model, str):
        return loaded(model, settings.base_model).eval() if needed else None, frozen
    return model.eval(), frozen


def _expect_whole(model: nn.Module, where: str) -> None:
    """Checks that FSDP 2 or ZeRO-3 has not split the weights of a model given as the argument `where`.

    Each process draws answers of other lengths, and with split weights it would wait for the others in every pass.
    """
    if any(hasattr(p, "_local_tensor") or hasattr(p, "ds_id") for p in model.parameters()):
        fix = "save the model, and pass its folder in one process"
        raise ConfigError("its weights are split over processes", where=where, expected="a whole model", fix=fix)


def training_record(path: str) -> Mapping[str, Any]:
    """Returns setting → value from the file that training saved beside a model, such as its β; {} without the file.

    Raises:
        InputError: The file is damaged.
    """
    file = Path(path) / TRAINING_FILE
    if not path or not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text("utf-8"))
        return {**row, "beta": float(row["beta"])}
    except (ValueError, KeyError, TypeError):
        expected = "a JSON object as training writes it"
        raise InputError("not a record of training", where=str(file), expected=expected) from None
