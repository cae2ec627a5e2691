"""Measures the peak memory of a training step without weights, on fake tensors, which have shapes and no values.

The policy's packed forward pass, its head, the reference's forward pass, the loss and the backward pass are those of a
training. Only the tensors are fake, and every storage that is alive is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PretrainedConfig

from srpo.errors import ConfigError
from srpo.maths.objective import SixLogps, srpo_loss
from srpo.model.packed.adapter_sum import adding_by_product
from srpo.model.packed.attention import INTERFACES, serving, why_not_path
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import flat_logps, packed_logps
from srpo.model.packed.spread import watched
from srpo.model.packed.tiles import Card, computing_for, one_cast
from srpo.model.unwrap import adapted, core
from srpo.model.weights.architecture import freeze_towers, loader_for

if TYPE_CHECKING:
    from peft import PeftConfig

ON_PAPER = "plan"  # back-end with the memory of flex, whose kernel has no fake form


class Alive(TorchDispatchMode):
    """Counts the memory of the tensors made inside its `with` block, for as long as each of them exists.

    Attributes:
        now: bytes of all tensors that exist now.
        peak: largest value of `now` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor until it is freed; tensors that share memory count once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass(frozen=True)
class Step:
    """Settings of a training step that decide its memory, besides the model and the pairs.

    Attributes:
        card: the device that trains.
        autocast: True if matrices are multiplied in bfloat16, as by `--bf16`.
        checkpointing: True for activation checkpointing: layers keep their inputs alone and run again when needed.
        reference: True if the reference runs in the step; False if its log-probs are cached.
        keeps_gradients: True if the gradients of all weights stay until the optimiser's step; False if each is split
            over the cards as soon as it is complete.
        backend: "path", "flex" or "flat".
    """

    card: Card
    autocast: bool = False
    checkpointing: bool = False
    reference: bool = True
    keeps_gradients: bool = True
    backend: str = "path"


def fake_model(config: PretrainedConfig, dtype: torch.dtype, peft_config: PeftConfig | None = None) -> Any:
    """Returns a model of this configuration in training mode, whose weights have shapes and no values.

    Args:
        dtype: dtype of the weights.
        peft_config: settings of an adapter to add; None adds none.

    Raises:
        ConfigError: no module fits the target modules of the adapter.
    """
    loader: Any = loader_for(config)
    with torch.device("meta"):
        model = loader.from_config(config, dtype=dtype)
        freeze_towers(model)
        if peft_config is not None:
            from peft import get_peft_model

            try:
                model = get_peft_model(model, peft_config)
            except ValueError as error:  # unknown target modules, or a family without default ones
                fix = "name them: --lora_target_modules all-linear"
                raise ConfigError(str(error).split("\n")[0], where="lora_target_modules", fix=fix) from None
    _place(model)
    return model.train()


def _place(model: nn.Module) -> None:
    """Turns a model's weights on the meta device, in place, into fake ones that name the CPU as their device.

    So operations on them take the ways that they take on a CPU.
    """
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Any]()
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None and id(tensor) not in made:
                    fake = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
                    trained = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = tensor, nn.Parameter(fake, tensor.requires_grad) if trained else fake
                if tensor is not None:
                    kept[name] = made[id(tensor)][1]  # tied weights stay tied


def peak_of_step(model: nn.Module, forest: Forest, step: Step) -> int:
    """Runs forward and backward pass of a step and returns the largest number of bytes that it holds at once.

    Weights, reference and optimiser state are not counted.

    Args:
        model: a model from `fake_model`; a real one serves as well, and its weights are not changed.
        forest: the pairs of the step, as packed trees.
        step: settings of the step.

    Raises:
        ConfigError: the model has an operation that fake tensors do not have.
    """
    alive, before = Alive(), vars(model).get("forward")
    for weight in (*model.parameters(), *model.buffers()):
        alive.add(weight.data)
    start, backend = alive.now, step.backend
    if backend != "flat" and why_not_path(model):
        backend = "flat"
    if step.autocast:  # of the forward alone, as accelerate does
        vars(model)["forward"] = torch.autocast("cpu", torch.bfloat16)(model.forward)
    hooks = [] if step.keeps_gradients else [*_free_gradients(model)]
    try:
        with computing_for(step.card), _checkpointing(model, step.checkpointing), alive:
            _take(model, forest, backend, step.reference)
    except RuntimeError as error:  # an operation without a form for fake tensors, such as grouped products in float32
        fix = "plan it with --bf16 or --use_peft, or a model of its family without routed experts"
        what = f"its step has an operation that cannot be planned: {str(error).splitlines()[0]}"
        raise ConfigError(what, where=type(core(model)).__name__, fix=fix) from None
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            vars(model)["forward"] = before
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return alive.peak - start


def _take(model: nn.Module, forest: Forest, backend: str, reference: bool) -> None:
    """Runs forward and backward pass of one step; `reference` True adds the reference's forward pass."""
    used = ON_PAPER if backend == "flex" else backend
    with adding_by_product(model), one_cast(), serving(model, used):
        _loss(model, forest, used, reference).backward()


def _loss(model: nn.Module, forest: Forest, backend: str, reference: bool) -> Tensor:
    """Computes the loss in the order of `SRPOTrainer.compute_loss`, so that tensors exist as long as they do there."""
    with watched() as ours:
        policy_BK = _logps(model, forest, backend)
    reference_BK = policy_BK.detach()
    with watched() as theirs:
        if reference:
            with torch.no_grad(), _as_reference(model):
                reference_BK = _logps(model, forest, backend)
    logps = (SixLogps(*each.unbind(1)) for each in (policy_BK, reference_BK))
    if reference:
        ours.divergence(theirs, (policy_BK.shape[0], policy_BK.shape[1]))
    return srpo_loss(*logps, beta=0.01, alpha=0.8).loss.float()


def _logps(model: nn.Module, forest: Forest, backend: str) -> Tensor:
    return flat_logps(model, forest) if backend == "flat" else packed_logps(model, forest, backend=backend)


@contextmanager
def _as_reference(model: nn.Module) -> Iterator[None]:
    """Inside this `with` block, the model computes as its reference does: frozen, without adapter, in eval mode."""
    trained = [p for p in model.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    peft = adapted(model)
    try:
        with peft.disable_adapter() if peft else nullcontext():
            model.eval().requires_grad_(False)
            yield
    finally:
        for p in trained:
            p.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def _free_gradients(model: nn.Module) -> Iterator[Any]:
    """Adds hooks that delete each weight's gradient as soon as it is complete; yields their handles, for removal."""
    for p in model.parameters():
        if p.requires_grad:
            yield p.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Inside this `with` block, activation checkpointing is on if `wanted` is True."""
    if not wanted:
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **ignored: object,
) -> tuple[Tensor, None]:
    """A stand-in for FlexAttention, which fake tensors cannot run: keeps the same tensors for the backward pass.

    It attends over the whole packed row, so its values would be wrong.
    """
    shares = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shares)
    return out.transpose(1, 2), None


AttentionInterface.register("srpo_plan", _row_attention)
INTERFACES[ON_PAPER] = "srpo_plan"
