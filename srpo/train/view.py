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
    """Protocol of a trainer's attributes; `SRPOTrainer` describes their meaning."""

    state: TrainerState
    accelerator: Accelerator
    train_dataset: TreeDataset | None
    eval_dataset: TreeDataset | Mapping[str, TreeDataset] | None
    source: object
    command: Sequence[str]

    @property
    def args(self) -> SRPOConfig:
        """Settings of the run."""

    @property
    def model(self) -> nn.Module:
        """The policy, unwrapped."""

    @property
    def renderer(self) -> Renderer:
        """The renderer of prompts."""

    @property
    def reference(self) -> Reference | CachedReference:
        """The source of reference log-probs."""

    @property
    def is_fsdp_enabled(self) -> bool:
        """Whether FSDP splits the weights over processes."""

    @property
    def is_deepspeed_enabled(self) -> bool:
        """Whether DeepSpeed splits the weights over processes."""
