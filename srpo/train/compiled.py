"""Keeps compiled forward passes compiled: whole models by `torch_compile`, decoder layers by `compile_layers`.

torch traces a compiled function again for inputs that no earlier trace serves. After its limit of traces it runs the
function uncompiled, with a warning only. A run that was asked to compile stops there instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from srpo.errors import ConfigError
from srpo.model.packed.attention import leave_attention_uncompiled
from srpo.train.config import SRPOConfig

log = logging.getLogger("srpo")
SHAPES = 64  # traces that a run of padded batches may need; torch's own limit of 8 is for code without such a setting


def compile_layers(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """Compiles each decoder layer of a model in place, for batches of any length, and returns the model.

    The attention of packed batches stays outside of the compiled graphs. Layers that are compiled already are left.

    Args:
        backend: torch's back-end of compilation.

    Raises:
        ConfigError: the model has no decoder layers in transformers' sense.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        what = f"{type(model).__name__} has no decoder layers of transformers"
        raise ConfigError(what, where="compile_layers", fix="leave it out")
    leave_attention_uncompiled()
    for layer in layers:
        if layer._compiled_call_impl is None:
            layer.compile(backend=backend, dynamic=True)
    log.info("srpo: %d layers are compiled at the first batches", len(layers))
    return model


@contextmanager
def staying_compiled(args: SRPOConfig) -> Iterator[None]:
    """Inside this `with` block, a forward pass that torch would run uncompiled, or cannot compile, raises ConfigError.

    Does nothing unless the settings ask for compilation.
    """
    name = "compile_layers" if args.compile_layers else "torch_compile" if args.torch_compile else ""
    if not name:
        yield
        return
    from torch._dynamo import config
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

    if args.torch_compile and not args.pad_to_multiple_of:  # a padded batch has one group of chains
        leave_attention_uncompiled()
    most = SHAPES if args.pad_to_multiple_of else config.recompile_limit
    try:
        with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=most):
            yield
    except FailOnRecompileLimitHit:
        what = f"the batches need more than the limit of {most} traces, then run uncompiled"
        padding = "raise" if args.pad_to_multiple_of else "set"
        fix = f"leave {name} out" + ("" if name == "compile_layers" else f", or {padding} pad_to_multiple_of")
        raise ConfigError(what, where=name, fix=fix) from None
    except BackendCompilerFailed as error:
        first = "".join(str(error).strip().splitlines()[:1])
        raise ConfigError(f"the compiler failed: {first}", where=name, fix=f"leave {name} out") from error
