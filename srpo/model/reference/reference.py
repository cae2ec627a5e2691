"""π_ref: the policy as it was when training began, whichever weights are trained.

    full fine-tuning          a frozen copy, made before the first step
    a fresh adapter           the same model with the adapter off
    a pre-trained adapter     the same model with a frozen copy of that adapter

The reference is never read again from a path, because a model edited in memory would then get another model as its
reference. Reference and policy use the same layout and back-end, so every log-ratio is exactly zero at step 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from srpo.errors import ConfigError, InputError
from srpo.maths.objective import SixLogps
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.unwrap import adapted
from srpo.model.weights.adapter import REFERENCE_ADAPTER
from srpo.model.weights.fingerprint import fingerprint, is_whole
from srpo.sequences.tree import PrefixTree

if TYPE_CHECKING:
    from peft import PeftModel


class Reference:
    """The reference π_ref of a model in training: a frozen copy, the model with its adapter off, or a given model.

    Args:
        policy: the model to be trained, as it is now; a fresh adapter must already be on it.
        frozen: the caller's own reference model, used instead of the policy.

    Attributes:
        kind: "given", "frozen copy", "adapter off" or "frozen adapter".
        fingerprint: sha256 of weights and configuration; "not known" for weights spread over processes.
        model: the model that computes log-probs; the policy itself if the reference is one of its adapters, or none.

    Raises:
        ConfigError: the policy is given as its own reference, or trains weights outside its adapter.
    """

    def __init__(self, policy: nn.Module, frozen: nn.Module | None = None) -> None:
        self.kind, self.model = kind_of(policy, frozen), policy
        start = policy if frozen is None else frozen
        self.fingerprint = reference_fingerprint(self.kind, start) if is_whole(start) else "not known"
        if frozen is not None:
            self.model = _freeze(frozen)
        elif self.kind == "frozen copy":
            self.model = _freeze(_copied(policy))
        elif self.kind == "frozen adapter":
            self._adapter = _copy_adapter(policy)

    @torch.no_grad()
    def six_logps(self, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
        """Returns the log-probs of the six answers of each pair under the reference: [B] each, float64, nats."""
        with self.active():
            return six_logps(self.model, trees, backend)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """Inside this `with` block, the model that it yields computes as the reference.

        If that model is the policy, its adapter is replaced by the reference's adapter, or switched off, until the end
        of the block.
        """
        if self.kind not in ("adapter off", "frozen adapter"):
            yield self.model
            return
        policy: Any = self.model
        switched = policy.disable_adapter() if self.kind == "adapter off" else _wearing(policy, self._adapter)
        with _left_as_found(policy), switched:
            yield policy.eval()

    def prepare(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Applies `wrap`, by which a trainer places a model on devices, to the reference's model.

        Does nothing if that model is the policy, which the trainer wraps itself.
        """
        if self.kind not in ("adapter off", "frozen adapter"):
            self.model = wrap(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors, not copied, that a checkpoint must hold to restore the reference.

        {} for a reference that never changes, since a resumed run makes it anew.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the reference from the tensors that its `state_dict` returned.

        Raises:
            InputError: the tensors belong to another reference.
        """


class MovingReference(Reference):
    """A `Reference` whose weights move towards the policy's at each call of `follow` (TR-DPO, arXiv 2404.09656).

    Its weights depend on the policy's past steps and cannot be recomputed. So checkpoints hold them, and its log-probs
    are never cached.

    Args:
        policy: the model to be trained.
        frozen: the model that the reference starts from, instead of the policy; it is changed in place.

    Raises:
        ConfigError: the policy is an adapter, or the reference has other weights than the policy.
    """

    def __init__(self, policy: nn.Module, frozen: nn.Module | None = None) -> None:
        if adapted(policy):
            # TR-DPO averages weights, and the mean of two adapters' factors is not the factor of their mean.
            fix = "leave sync_ref_model out, or train all weights"
            raise ConfigError("the reference of an adapter cannot move", where="sync_ref_model", fix=fix)
        super().__init__(policy, frozen)
        self.kind = "moving"
        self._ours, self._theirs = dict(self.model.named_parameters()), dict(policy.named_parameters())
        if _shapes(self._ours) != _shapes(self._theirs):
            raise ConfigError("has other weights than the policy, which it is to follow", where="ref_model")

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Replaces each weight of the reference by (1 − share) · its value + share · the policy's value."""
        for name, ours in self._ours.items():
            ours.lerp_(self._theirs[name].to(ours), share)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._ours.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if _shapes(state) != _shapes(self._ours):
            raise InputError("a reference with other weights", where="checkpoint", expected="those of this model")
        for name, ours in self._ours.items():
            ours.copy_(state[name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def kind_of(policy: nn.Module, frozen: nn.Module | None = None) -> str:
    """Returns the kind of reference of a model in training: "given", "frozen copy", "adapter off" or "frozen adapter".

    `frozen` is a reference model that the caller gives; None derives the reference from the policy.

    Raises:
        ConfigError: the policy is given as its own reference, or trains weights outside its adapter.
    """
    if frozen is policy:
        fix = "leave it out for the policy as it is now"
        raise ConfigError("the policy itself, which freezing would stop from learning", where="ref_model", fix=fix)
    if frozen is not None:
        return "given"
    if (switchable := adapted(policy)) is None:
        return "frozen copy"
    _refuse_open_base(switchable)
    return "adapter off" if _is_fresh(switchable) else "frozen adapter"


def reference_fingerprint(kind: str, model: nn.Module) -> str:
    """Returns the sha256, in hex, of all weights and settings of a model that decide the reference's log-probs.

    For "frozen adapter", call it before the adapter is copied, because the copy adds weights under another name.

    Args:
        kind: kind of the reference, such as "frozen copy", from `kind_of`.
        model: the model that computes the reference now.
    """
    peft = adapted(model) if kind == "frozen adapter" else None
    adapter = peft.peft_config[peft.active_adapter] if peft else None
    return fingerprint(model, without_trained=kind == "adapter off", adapter=adapter)


def _copied(policy: nn.Module) -> nn.Module:
    """Returns a copy of the policy with weights of its own.

    Weights that DeepSpeed splits over processes are gathered first: a copy of the split ones would be empty.
    """
    split = [p for p in policy.parameters() if hasattr(p, "ds_id")]
    if not split:
        return copy.deepcopy(policy)
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        return copy.deepcopy(policy)


def _freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _is_fresh(policy: nn.Module) -> bool:
    """True if the policy's adapter has no effect yet, since LoRA's second factor (B) is zero everywhere."""
    seconds = [p for name, p in policy.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(seconds) and not any(p.detach().any() for p in seconds)


def _refuse_open_base(policy: PeftModel) -> None:
    """Raises ConfigError if weights of the base model are trained (LoRA's bias="all").

    The reference shares the base with the policy, so it would be trained as well.
    """
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    if shared := [name for name in names if policy.active_adapter not in name.split(".")]:
        problem = f"{len(shared)} weights outside the adapter are trained, {shared[0]} for one"
        raise ConfigError(problem, where="model", fix="freeze them, or give a ref_model")


def _copy_adapter(policy: Any) -> Any:
    """Adds a frozen copy of the policy's active adapter to the policy, as the reference, and returns its configuration.

    The configuration is removed from PEFT's list of adapters, so that saving and merging ignore the copy.
    """
    active = policy.active_adapter
    config = copy.deepcopy(policy.peft_config[active])
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # PiSSA and similar methods would change the base weights a second time
    if hasattr(config, "bias"):
        config.bias = "none"  # PEFT lets only one adapter train the base's biases, and a frozen copy trains nothing
    config.inference_mode = True
    with _left_as_found(policy):
        if any(_of_reference(name) for name, _ in policy.named_parameters()):  # the copy of an earlier reference
            policy.peft_config[REFERENCE_ADAPTER] = config
            policy.delete_adapter(REFERENCE_ADAPTER)
        policy.add_adapter(REFERENCE_ADAPTER, config)
    weights = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    for name in filter(_of_reference, weights):
        own = ".".join(active if part == REFERENCE_ADAPTER else part for part in name.split("."))
        weights[name].data = weights[own].detach().clone()  # not copy_: PEFT may have chosen another dtype
        weights[name].requires_grad_(False)
    policy.register_state_dict_post_hook(_without_reference)
    return policy.peft_config.pop(REFERENCE_ADAPTER)


def _without_reference(policy: PeftModel, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """A state_dict hook that removes the reference's adapter from `state`: PEFT would save its weights, too."""
    if REFERENCE_ADAPTER not in policy.peft_config:
        for name in list(filter(_of_reference, state)):
            del state[name]


def _of_reference(name: str) -> bool:
    return REFERENCE_ADAPTER in name.split(".")


@contextmanager
def _wearing(policy: PeftModel, config: Any) -> Iterator[None]:
    """Inside this `with` block, the policy computes with the reference's adapter, whose configuration is `config`."""
    before = policy.active_adapter
    policy.peft_config[REFERENCE_ADAPTER] = config
    policy.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        policy.set_adapter(before)
        del policy.peft_config[REFERENCE_ADAPTER]


@contextmanager
def _left_as_found(policy: nn.Module) -> Iterator[None]:
    """Restores `requires_grad` of every weight and the train/eval mode of every module at the end of a `with` block.

    Needed where the policy computes as the reference: PEFT makes the weights of an adapter that it activates trainable,
    and the reference is scored in eval mode.
    """
    trainable = [(p, p.requires_grad) for p in policy.parameters()]
    training = [(module, module.training) for module in policy.modules()]
    try:
        yield
    finally:
        for p, requires_grad in trainable:
            p.requires_grad_(requires_grad)
        for module, mode in training:
            module.training = mode
