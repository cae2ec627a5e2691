"""π_ref: the policy as it was when training began, however it is trained.

    full fine-tuning          a frozen copy, made before the first step
    a fresh adapter           the same model with the adapter off
    a pre-trained adapter     the same model with a frozen copy of that adapter

It is never read again from a path: a model edited in memory would get another reference than itself. Reference and
policy go through the same layout and back-end, so that every log-ratio is exactly zero at step 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from srpo.maths.objective import SixLogps
from srpo.model.forest import Forest
from srpo.model.forward import six_logps
from srpo.pairs.tree import PrefixTree

REFERENCE_ADAPTER = "srpo_reference"


class Reference:
    """The frozen reference of a policy.

    Args:
        policy: the model to be trained, as it is now; for a fresh adapter, with the adapter already on it.
        frozen: a model to use instead: the caller's own reference.

    Attributes:
        kind: "given", "frozen copy", "adapter off" or "frozen adapter".
        model: what is scored; the policy itself where an adapter is switched.
    """

    def __init__(self, policy: Any, frozen: Any = None) -> None:
        if frozen is not None:
            self.kind, self.model = "given", _freeze(frozen)
        elif not hasattr(policy, "peft_config"):
            self.kind, self.model = "frozen copy", _freeze(copy.deepcopy(policy))
        elif _is_fresh(policy):
            self.kind, self.model = "adapter off", policy
        else:
            self.kind, self.model = "frozen adapter", policy
            _copy_adapter(policy)

    @torch.no_grad()
    def six_logps(self, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
        """The reference's log-probs of the same answers; no graph."""
        with self.active():
            return six_logps(self.model, trees, backend)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """`self.model` is the reference inside."""
        if self.kind == "adapter off":
            with self.model.disable_adapter():
                yield self.model
        elif self.kind == "frozen adapter":
            with _wearing(self.model, REFERENCE_ADAPTER):
                yield self.model
        else:
            yield self.model

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """Lets a trainer place the reference on its devices; a switched adapter is where the policy is."""
        if self.kind in ("given", "frozen copy"):
            self.model = wrap(self.model)


def _freeze(model: Any) -> Any:
    return model.eval().requires_grad_(False)


def _is_fresh(policy: Any) -> bool:
    """No adapter has changed anything yet: LoRA's second factor is still zero everywhere."""
    seconds = [p for name, p in policy.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(seconds) and not any(p.detach().any() for p in seconds)


def _copy_adapter(policy: Any) -> None:
    active = policy.active_adapter
    if REFERENCE_ADAPTER in policy.peft_config:
        policy.delete_adapter(REFERENCE_ADAPTER)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    policy.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(policy.peft_config[active]))
    weights = dict(policy.named_parameters())
    for name, weight in weights.items():
        if f".{REFERENCE_ADAPTER}." in name:
            weight.data.copy_(weights[name.replace(f".{REFERENCE_ADAPTER}.", f".{active}.")].data)
        weight.requires_grad_(name in trainable)


@contextmanager
def _wearing(policy: Any, adapter: str) -> Iterator[None]:
    """Another adapter is active inside. PEFT opens the weights of whatever it activates, so what was trainable is put
    back as it was."""
    before, trainable = policy.active_adapter, [p.requires_grad for p in policy.parameters()]
    policy.set_adapter(adapter)
    try:
        yield
    finally:
        policy.set_adapter(before)
        for p, open_ in zip(policy.parameters(), trainable, strict=True):
            p.requires_grad_(open_)
