"""Training runs whose weights are split over two processes of one CPU, by gloo, as FSDP or DeepSpeed split on GPUs.

Accelerate switches FSDP on for GPUs only, and three of its ways do not work on a CPU. `split_on_cpu` makes it do on a
CPU what it does on a GPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def split_on_cpu(**changes: str) -> None:
    """Makes the trainers of this process split their weights; `changes` are accelerate's variables."""
    os.environ.update({**FSDP2, **changes})
    from accelerate import state
    from accelerate.utils import DistributedType

    start = state.AcceleratorState.__init__

    def started(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.AcceleratorState.__init__ = started
    _wait_for_gathered_weights()


def zero_on_cpu(**changes: str) -> None:
    """Makes the trainers of this process split by DeepSpeed; `changes` are accelerate's variables.

    Accelerate switches DeepSpeed on for GPUs only, and DeepSpeed would compile its own way to pass tensors between
    processes of a CPU; without it tensors go through gloo.
    """
    os.environ.update({"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu", **changes})
    from accelerate import state
    from accelerate.utils import DistributedType

    communication: Any = importlib.import_module("deepspeed.comm.torch")  # as an attribute that name is torch itself
    communication.build_shm_op = lambda: None
    prepare = state.PartialState._prepare_backend

    def prepared(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> Any:
        return prepare(self, cpu, *args, **kwargs) if cpu else ("gloo", DistributedType.MULTI_GPU)

    state.PartialState._prepare_backend = prepared


def _wait_for_gathered_weights() -> None:
    """A gathered weight may still be on its way; `.to("cpu")` waits for it on a GPU and does nothing on a CPU."""
    import torch.distributed.checkpoint.state_dict as module
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    def waited(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: waited(value) for key, value in found.items()}
        if isinstance(found, list):
            return [waited(value) for value in found]
        return found.wait().clone() if isinstance(found, AsyncCollectiveTensor) else found

    def waiting(gather: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: waited(gather(*args, **kwargs))

    for name in ("get_model_state_dict", "get_optimizer_state_dict", "get_state_dict"):
        setattr(module, name, waiting(getattr(module, name)))


def unsplit() -> None:
    """Takes `split_on_cpu` back, for the next trainer of this process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    for name in (*FSDP2, "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
