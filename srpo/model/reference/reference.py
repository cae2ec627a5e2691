"""π_ref: the policy as it was when training began, however it is trained.

    full fine-tuning          a frozen copy, made before the first step
    a fresh adapter           the same model with the adapter off
    a pre-trained adapter     the same model with a frozen copy of that adapter

It is never read again from a path: a model edited in memory would get another reference than itself. Reference and
policy go through the same layout and back-end, so that every log-ratio is exactly zero at step 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from srpo.errors import ConfigError, InputError
from srpo.maths.objective import SixLogps
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.weights.fingerprint import fingerprint, is_whole
from srpo.sequences.tree import PrefixTree

REFERENCE_ADAPTER = "srpo_reference"


class Reference:
    """The frozen reference of a policy.

    Args:
        policy: the model to be trained, as it is now; for a fresh adapter, with the adapter already on it.
        frozen: a model to use instead: the caller's own reference.

    Attributes:
        kind: "given", "frozen copy", "adapter off" or "frozen adapter".
        fingerprint: sha256 of all that its numbers come from; "not known" of weights spread over processes.
        model: what is scored; the policy itself where an adapter is switched.

    Raises:
        ConfigError: the policy is given as its own reference, or trains weights that switching an adapter leaves.
    """

    def __init__(self, policy: Any, frozen: Any = None) -> None:
        self.kind, self.model = kind_of(policy, frozen), policy
        start = policy if frozen is None else frozen
        self.fingerprint = reference_fingerprint(self.kind, start) if is_whole(start) else "not known"
        if self.kind == "given":
            self.model = _freeze(frozen)
        elif self.kind == "frozen copy":
            self.model = _freeze(copy.deepcopy(policy))
        elif self.kind == "frozen adapter":
            self._adapter = _copy_adapter(policy)

    @torch.no_grad()
    def six_logps(self, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
        """The reference's log-probs of the same answers; no graph."""
        with self.active():
            return six_logps(self.model, trees, backend)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """`self.model` is the reference inside."""
        if self.kind == "adapter off":
            with _left_as_found(self.model), self.model.disable_adapter():
                yield self.model.eval()
        elif self.kind == "frozen adapter":
            with _left_as_found(self.model), _wearing(self.model, self._adapter):
                yield self.model.eval()
        else:
            yield self.model

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Lets a trainer place the reference on its devices; a switched adapter is where the policy is."""
        if self.kind not in ("adapter off", "frozen adapter"):
            self.model = wrap(self.model)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold for the reference to go on from it: nothing, where the reference stays what
        the policy was when training began. Tensors are those in use, not copies."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            InputError: it is of another reference.
        """


class MovingReference(Reference):
    """A reference that follows the policy from time to time (TR-DPO, arXiv 2404.09656).

    Its weights, and with them the log-probs, depend on the way the policy has come: they cannot be had again from the
    policy as training began, so they belong into checkpoints, and into no cache.

    Args:
        policy: the model to be trained.
        frozen: where the reference starts from, if not from the policy; it is moved itself.

    Raises:
        ConfigError: there is nothing that could be moved, or it has other weights than the policy.
    """

    def __init__(self, policy: Any, frozen: Any = None) -> None:
        if hasattr(policy, "disable_adapter"):
            # A mean of two adapters' factors is not the factor of a mean: the reference would move off the line
            # between the two, which is all that the method says.
            fix = "leave sync_ref_model out, or train all weights"
            raise ConfigError("the reference of an adapter cannot move", where="sync_ref_model", fix=fix)
        super().__init__(policy, frozen)
        self.kind = "moving"
        self._ours, self._theirs = dict(self.model.named_parameters()), dict(policy.named_parameters())
        if {n: p.shape for n, p in self._ours.items()} != {n: p.shape for n, p in self._theirs.items()}:
            raise ConfigError("has other weights than the policy, which it is to follow", where="ref_model")

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Moves to (1 − share) · itself + share · policy, weight by weight."""
        for name, ours in self._ours.items():
            ours.lerp_(self._theirs[name].to(ours), share)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._ours.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        if {n: p.shape for n, p in state.items()} != {n: p.shape for n, p in self._ours.items()}:
            raise InputError("a reference with other weights", where="checkpoint", expected="those of this model")
        for name, ours in self._ours.items():
            ours.copy_(state[name])


def kind_of(policy: Any, frozen: Any = None) -> str:
    """What the reference of this policy is: `Reference.kind`.

    Raises:
        ConfigError: as for `Reference`.
    """
    if frozen is policy:
        fix = "leave it out for the policy as it is now"
        raise ConfigError("the policy itself, which freezing would stop from learning", where="ref_model", fix=fix)
    if frozen is not None:
        return "given"
    if not hasattr(policy, "disable_adapter"):  # a PEFT model; transformers' own adapters have no such switch
        return "frozen copy"
    _refuse_open_base(policy)
    return "adapter off" if _is_fresh(policy) else "frozen adapter"


def reference_fingerprint(kind: str, model: Any) -> str:
    """sha256 of the reference that this model is now. A frozen adapter's is taken before it is copied: the copy puts
    weights of another name into the model."""
    adapter = model.peft_config[model.active_adapter] if kind == "frozen adapter" else None
    return fingerprint(model, without_trained=kind == "adapter off", adapter=adapter)


def _freeze(model: Any) -> Any:
    return model.eval().requires_grad_(False)


def _is_fresh(policy: Any) -> bool:
    """No adapter has changed anything yet: LoRA's second factor is still zero everywhere."""
    seconds = [p for name, p in policy.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(seconds) and not any(p.detach().any() for p in seconds)


def _refuse_open_base(policy: Any) -> None:
    """Switching adapters leaves the base as it is: a base weight in training (LoRA's bias="all") would be trained in
    the reference as well."""
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    if shared := [name for name in names if policy.active_adapter not in name.split(".")]:
        problem = f"{len(shared)} weights outside the adapter are trained, {shared[0]} for one"
        raise ConfigError(problem, where="model", fix="freeze them, or give a ref_model")


def _copy_adapter(policy: Any) -> Any:
    """Adds a copy of the active adapter's weights; returns its configuration, which the policy itself forgets, so that
    saving and merging it see its own adapters only."""
    active = policy.active_adapter
    config = copy.deepcopy(policy.peft_config[active])
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True  # PiSSA and its like would carve their start out of the base weights once more
    if hasattr(config, "bias"):
        config.bias = "none"  # PEFT allows one adapter to train the base's biases, and a frozen copy trains nothing
    config.inference_mode = True
    with _left_as_found(policy):
        if any(_of_reference(name) for name, _ in policy.named_parameters()):  # left by an earlier reference
            policy.peft_config[REFERENCE_ADAPTER] = config
            policy.delete_adapter(REFERENCE_ADAPTER)
        policy.add_adapter(REFERENCE_ADAPTER, config)
    weights = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    for name in filter(_of_reference, weights):
        own = ".".join(active if part == REFERENCE_ADAPTER else part for part in name.split("."))
        weights[name].data = weights[own].detach().clone()  # not copy_: PEFT may have chosen another dtype
        weights[name].requires_grad_(False)
    return policy.peft_config.pop(REFERENCE_ADAPTER)


def _of_reference(name: str) -> bool:
    return REFERENCE_ADAPTER in name.split(".")


@contextmanager
def _wearing(policy: Any, config: Any) -> Iterator[None]:
    """The reference's adapter is active inside."""
    before = policy.active_adapter
    policy.peft_config[REFERENCE_ADAPTER] = config
    policy.set_adapter(REFERENCE_ADAPTER)
    try:
        yield
    finally:
        policy.set_adapter(before)
        del policy.peft_config[REFERENCE_ADAPTER]


@contextmanager
def _left_as_found(policy: Any) -> Iterator[None]:
    """What was there before ends as trainable as it began, for PEFT opens the weights of whatever it activates; and in
    the mode it was in, for the reference has no dropout."""
    trainable = [(p, p.requires_grad) for p in policy.parameters()]
    training = [(module, module.training) for module in policy.modules()]
    try:
        yield
    finally:
        for p, open_ in trainable:
            p.requires_grad_(open_)
        for module, mode in training:
            module.training = mode
