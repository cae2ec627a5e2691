"""Loads the weights of a checkpoint into a model whose weights have other names in memory than on disk.

transformers fuses the experts of a layer into one tensor when it loads a model, and takes them apart when it saves one.
Its own trainer compares names only, and leaves such weights as they were, with a warning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import Trainer

from srpo.model.weights.fingerprint import is_whole
from srpo.train.config import SRPOConfig
from srpo.train.split_weights import load_whole


class ConvertingTrainer(Trainer):
    """transformers' Trainer, which also loads checkpoints whose weights have other names than in memory."""

    args: SRPOConfig

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the weights of a checkpoint into the model."""
        target: Any = model or self.model
        if names_differ(target, Path(resume_from_checkpoint)):
            load_whole(target, Path(resume_from_checkpoint), trust_remote_code=self.args.trust_remote_code)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Loads the weights of the best checkpoint into the model."""
        target: Any = self.model
        folder = Path(str(self.state.best_model_checkpoint))
        if names_differ(target, folder):
            load_whole(target, folder, trust_remote_code=self.args.trust_remote_code)
        else:
            super()._load_best_model()


def names_differ(model: nn.Module, folder: Path) -> bool:
    """True if the model saved in `folder` has weights under names that the model in memory has not.

    Always False for a model whose weights are split over processes; their checkpoints have the names in memory.
    """
    if not is_whole(model):
        return False
    known = model.state_dict().keys()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            if set(stored.keys()) - known:
                return True
    return False
