"""The trained base of the carry task for seed 0, a file of the package: `srpo demo` starts with it at once.

`python -m benchmarks.carry_base --write srpo/tasks/carry_base.safetensors` makes the file. Its weights are float16, so
that it is smaller than 1 MB. Its metadata holds the settings of the training and the first losses, by which a short
test recognises the same training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.tasks.carry import BaseConfig, untrained_base

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FILE = Path(__file__).with_name("carry_base.safetensors")
SHIPPED = BaseConfig(threads=1)
FIRST_LOSSES = 20  # number of losses kept in the metadata


def is_shipped(config: BaseConfig) -> bool:
    """True if the package contains the trained base model for these settings, whatever their number of threads."""
    return replace(config, threads=1) == SHIPPED


def shipped_base() -> LlamaForCausalLM:
    """Returns the base model of the carry task that comes with srpo, trained with seed 0, in float32.

    Example:
        >>> sum(weight.numel() for weight in shipped_base().parameters())
        363168
    """
    from safetensors.torch import load_file

    model = untrained_base(SHIPPED)
    model.load_state_dict(load_file(FILE))  # copies float16 into the model's float32
    return model


def facts() -> tuple[BaseConfig, list[float]]:
    """Returns the settings that the shipped base model was trained with, and the losses of its first steps."""
    from safetensors import safe_open

    with safe_open(FILE, "pt") as file:
        metadata = file.metadata()
    return BaseConfig(**json.loads(metadata["settings"])), json.loads(metadata["losses"])


def write_base(path: Path, model: LlamaForCausalLM, config: BaseConfig, losses: Sequence[float]) -> None:
    """Writes a trained base model to the file that the package ships, in float16.

    Args:
        config: settings that it was trained with, stored in the file.
        losses: losses of all training steps; the first `FIRST_LOSSES` are stored.
    """
    from safetensors.torch import save_file

    weights = {name: weight.detach().half().contiguous() for name, weight in model.state_dict().items()}
    first = [round(loss, 6) for loss in losses[:FIRST_LOSSES]]
    save_file(weights, path, metadata={"settings": json.dumps(asdict(config)), "losses": json.dumps(first)})
