"""What a model's numbers come from, in one hash: weights, configuration, adapter.

Weights are hashed byte by byte: shapes, sums or samples would tell neither an edited row nor two that changed places
apart. Tensors are hashed in threads of their own; half a gigabyte takes about half a second of a core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from srpo.errors import ConfigError

# What a configuration says that log-probs of given tokens do not depend on, or that the weights say better.
ELSEWHERE = {
    *("_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "architectures"),
    *("dtype", "use_cache", "return_dict", "inference_mode", "pad_token_id", "bos_token_id", "eos_token_id"),
}
# What PEFT and its adapters put before and into the names of the base's own weights.
WRAPPED = ("base_model.model.", "base_layer.")


def fingerprint(model: Any, *, without_trained: bool = False, adapter: Any = None) -> str:
    """sha256, in hex, of everything in a model that its numbers come from.

    Args:
        model: a causal language model, or a PEFT model around one.
        without_trained: leave out the weights that are open to training: of a model whose adapter is fresh this is
            the base, which gives what the base by itself does.
        adapter: configuration of an adapter whose weights count, for its scale is not among them.

    Raises:
        ConfigError: the weights are not here to be hashed.
    """
    tensors = sorted(_tensors(model, without_trained))
    digest = hashlib.sha256(_config(model).encode())
    if adapter is not None:
        digest.update(_canonical(adapter.to_dict()).encode())
    with ThreadPoolExecutor() as threads:
        for (name, tensor), each in zip(tensors, threads.map(lambda item: _bytes_of(*item), tensors), strict=True):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {each}".encode())
    return digest.hexdigest()


def is_whole(model: Any) -> bool:
    """Whether all weights are in this process, as numbers; not under ZeRO-3 or FSDP, and not on the meta device."""
    return all(_is_here(p) for p in model.parameters())


def _is_here(tensor: Tensor) -> bool:
    return not (tensor.is_meta or hasattr(tensor, "ds_id") or hasattr(tensor, "_local_tensor"))


def _tensors(model: Any, without_trained: bool) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and every buffer, those too that are not saved; quantised weights with their scales."""
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    found: dict[str, Any] = {**model.state_dict(), **dict(model.named_buffers())}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or (without_trained and name in trained):
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape))  # a tied weight once; that it is tied, the configuration says
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        for wrap in WRAPPED:
            name = name.replace(wrap, "")
        yield name, tensor if hasattr(tensor, "ds_id") else tensor.detach()


def _bytes_of(name: str, tensor: Tensor) -> str:
    if not _is_here(tensor):
        fix = "leave reference_cache and precompute_ref_log_probs out where weights are spread over devices"
        raise ConfigError(f"the weight {name} is not here to be hashed", where="reference_cache", fix=fix)
    flat = tensor.cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def _config(model: Any) -> str:
    """Sizes are in the weights, but bases of positions, epsilons, windows and the kind of attention are not."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = inner.config
    return f"{type(inner).__qualname__} {config._attn_implementation} {_canonical(config.to_dict())}"


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps({key: settings[key] for key in settings if key not in ELSEWHERE}, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """A set in one order, whatever the seed of its hashes."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
