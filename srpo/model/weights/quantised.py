"""Records how bitsandbytes quantised the base of an adapter, beside the adapter."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from srpo.errors import InputError
from srpo.model.unwrap import core

log = logging.getLogger("srpo")
TRAINING_FILE = "srpo_training.json"  # record of the training, beside the model
QUANTISATION = "quantization"  # key of that record


def quantisation_of(model: nn.Module) -> dict[str, Any]:
    """Returns the settings by which a model's weights were quantised on loading, as an entry for its training record.

    {} for a model that is not quantised, and for one whose own files hold quantised weights: it is loaded in the same
    way again without a record.
    """
    config = core(model).config
    found = getattr(config, "quantization_config", None)
    if found is None or _stored_quantised(config.name_or_path):
        return {}
    return {QUANTISATION: json.loads(json.dumps(found if isinstance(found, dict) else found.to_dict(), default=str))}


def recorded_quantisation(folder: Path) -> dict[str, Any]:
    """Returns the settings by which the base of an adapter was quantised in training, from the adapter's folder.

    {} if it was not quantised, or if the folder has no record of training.

    Raises:
        InputError: the record is damaged.
    """
    file = folder / TRAINING_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8")).get(QUANTISATION, {})
    except (ValueError, AttributeError):
        raise InputError("not a record of training", where=str(file)) from None
    return found if isinstance(found, dict) else {}


def warn_of_other_base(folder: Path, options: Mapping[str, Any]) -> None:
    """Warns if an adapter that was trained on a quantised base is loaded on an unquantised one.

    Args:
        folder: folder of the adapter.
        options: keywords that its base is loaded with.
    """
    trained = recorded_quantisation(folder)
    if trained and not options.get("quantization_config"):
        bits = 4 if trained.get("load_in_4bit") else 8
        message = "srpo: %s was trained on its base in %d bits, and is used on the unrounded base: numbers differ; "
        log.warning(message + "`srpo merge` writes the model as it was trained", folder, bits)


def _stored_quantised(base: str | None) -> bool:
    """Whether the files of a base model hold quantised weights."""
    if not base:
        return False
    try:
        return "quantization_config" in PretrainedConfig.get_config_dict(base)[0]
    except OSError:  # the base is not here any more
        return False
