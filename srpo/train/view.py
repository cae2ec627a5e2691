"""The part of an `SRPOTrainer` that run records, callbacks and evaluation during training may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from accelerate import Accelerator
from torch import nn
from transformers import TrainerState

from srpo.model.reference.cached import CachedReference
from srpo.model.reference.reference import Reference
from srpo.sequences.render import Renderer
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset


class TrainerView(Protocol):
    """Protocol of the trainer's attributes that records and callbacks use; `SRPOTrainer` describes them."""

    state: TrainerState
    accelerator: Accelerator
    train_dataset: TreeDataset | None
    eval_dataset: TreeDataset | Mapping[str, TreeDataset] | None
    source: object
    command: Sequence[str]

    @property
    def args(self) -> SRPOConfig:
        """Settings of the training."""

    @property
    def model(self) -> nn.Module:
        """The model in training, without the wrappers of accelerate."""

    @property
    def renderer(self) -> Renderer:
        """Turns rows into token ids for the model."""

    @property
    def reference(self) -> Reference | CachedReference:
        """Computes the reference's log-probs, or reads them from a cache."""

    @property
    def is_fsdp_enabled(self) -> bool:
        """True if FSDP splits the weights over processes."""

    @property
    def is_deepspeed_enabled(self) -> bool:
        """True if DeepSpeed trains the model, which may split the weights over processes."""
