"""End tokens of a saved model: generate, vLLM and other tools stop at the ids in its generation_config.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from srpo.model.unwrap import core

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"


def end_ids(model: nn.Module) -> list[int]:
    """Returns the token ids at which the model's `generate` stops, by its generation configuration."""
    inner: Any = core(model)
    configs = (getattr(inner, "generation_config", None), inner.config, inner.config.get_text_config())
    named = (getattr(each, "eos_token_id", None) for each in configs)
    found: Any = next((ids for ids in named if ids is not None), [])
    return [found] if isinstance(found, int) else [int(i) for i in found]


def stop_at(model: nn.Module, ids: Sequence[int], folder: str | Path | None = None) -> None:
    """Adds end tokens to the model's generation configuration and to the generation_config.json in a folder.

    A chat template may end an answer with a token that is not the base's own end of text. Training teaches the model
    that token, and without this entry other tools generate past it.

    Args:
        ids: ids that training taught the model to end with, such as `Renderer.stop_ids`.
        folder: folder of the saved model or adapter; None changes no file.
    """
    from transformers import GenerationConfig

    inner: Any = core(model)
    settings: GenerationConfig = getattr(inner, "generation_config", None) or GenerationConfig.from_model_config(
        inner.config
    )
    every = list(dict.fromkeys([*end_ids(model), *ids]))
    settings = copy.deepcopy(settings)
    settings.eos_token_id = every if len(every) > 1 else every[0] if every else None
    inner.generation_config = settings
    if folder is not None:
        settings.to_json_file(Path(folder) / FILE)  # save_pretrained would refuse some vendors' sampling settings


def stop_as_saved(model: nn.Module, folder: Path) -> None:
    """Adds the end tokens in an adapter folder's generation_config.json to the model; PEFT does not read that file."""
    if (folder / FILE).is_file():
        ids = json.loads((folder / FILE).read_text("utf-8")).get("eos_token_id")
        stop_at(model, [ids] if isinstance(ids, int) else ids or [])
