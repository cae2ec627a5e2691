"""One hash of everything that a model's log-probs depend on: weights, configuration, adapter.

Weights are hashed byte by byte: shapes, sums or samples would miss an edited row, or two rows that changed places.
Tensors are hashed in parallel threads; half a gigabyte takes about half a second of one core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from srpo.errors import ConfigError
from srpo.model.unwrap import adapted

if TYPE_CHECKING:
    from peft import PeftConfig

# Keys of a configuration that log-probs of given tokens do not depend on, or that the weights already determine.
ELSEWHERE = {
    *("_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "architectures"),
    *("dtype", "use_cache", "return_dict", "inference_mode", "pad_token_id", "bos_token_id", "eos_token_id"),
}
# Parts that PEFT inserts into the names of the base's own weights.
WRAPPED = ("base_model.model.", "base_layer.")


def fingerprint(model: nn.Module, *, without_trained: bool = False, adapter: PeftConfig | None = None) -> str:
    """Returns a sha256, in hex, over everything in a model that its log-probs depend on: weights and configuration.

    Args:
        model: a causal language model, or a PEFT model around one.
        without_trained: leave out trainable weights; for a model with a fresh adapter, the result is then the
            fingerprint of its base.
        adapter: configuration of an adapter to include; the adapter's scale is in the configuration alone.

    Raises:
        ConfigError: weights are spread over devices and cannot be hashed here.
    """
    tensors = sorted(_tensors(model, without_trained))
    digest = hashlib.sha256(_config(model).encode())
    if adapter is not None:
        digest.update(_canonical(adapter.to_dict()).encode())
    with ThreadPoolExecutor() as threads:
        for (name, tensor), each in zip(tensors, threads.map(lambda item: _bytes_of(*item), tensors), strict=True):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {each}".encode())
    return digest.hexdigest()


def is_whole(model: nn.Module) -> bool:
    """True if this process holds all weights of the model; False under ZeRO-3 and FSDP, and on the meta device."""
    return all(_is_here(p) for p in model.parameters())


def _is_here(tensor: Tensor) -> bool:
    return not (tensor.is_meta or hasattr(tensor, "ds_id") or hasattr(tensor, "_local_tensor"))


def _tensors(model: nn.Module, without_trained: bool) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of everything to hash: parameters, all buffers, and the scales of quantised weights.

    `without_trained` leaves out trainable weights.
    """
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    found: dict[str, Any] = {**model.state_dict(), **dict(model.named_buffers())}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or (without_trained and name in trained):
            continue
        for wrap in WRAPPED:
            name = name.replace(wrap, "")
        for part, inner in _parts(name, tensor):
            place = (inner.data_ptr(), tuple(inner.shape))  # a tied weight counts once; the configuration has the tie
            if inner.numel() and place in seen:
                continue
            seen.add(place)
            yield part, inner if hasattr(inner, "ds_id") else inner.detach()


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor of all plain tensors in a weight; for most weights, that is the weight alone.

    A weight of torchao is a tensor of another class, which has no memory of its own: its numbers, scales and zero
    points are tensors inside it, and its settings become part of their names.
    """
    if not (is_traceable_wrapper_subclass(tensor) and _is_here(tensor)):
        yield name, tensor
        return
    parts, settings = tensor.__tensor_flatten__()
    for part in parts:
        yield from _parts(f"{name}.{part} {type(tensor).__qualname__} {settings}", getattr(tensor, part))


def _bytes_of(name: str, tensor: Tensor) -> str:
    if not _is_here(tensor):
        fix = "leave reference_cache and precompute_ref_log_probs out where weights are spread over devices"
        raise ConfigError(f"the weight {name} is not here to be hashed", where="reference_cache", fix=fix)
    flat = tensor.cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def _config(model: nn.Module) -> str:
    """A model's configuration as text to hash: log-probs also depend on its windows, epsilons and attention kernel."""
    peft = adapted(model)
    inner: Any = peft.get_base_model() if peft else model
    config = inner.config
    return f"{type(inner).__qualname__} {config._attn_implementation} {_canonical(config.to_dict())}"


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps({key: settings[key] for key in settings if key not in ELSEWHERE}, sort_keys=True, default=_plain)


def _plain(value: object) -> str | list[str]:
    """JSON value for a value that JSON cannot hold: its text, or for a set the sorted list of its elements' texts.

    The order of a set changes from process to process.
    """
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
