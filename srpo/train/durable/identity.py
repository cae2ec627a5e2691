"""The identity of a run: everything that its numbers depend on, key by key.

Resuming compares the identity with the one in the checkpoint and refuses a difference. Files are compared by content,
so a moved file is the same file. Settings that change only where and how much is written are left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from srpo.errors import ConfigError, did_you_mean
from srpo.model.weights.fingerprint import fingerprint
from srpo.train.split_weights import splitting
from srpo.train.view import TrainerView
from srpo.versions import versions

# Settings that no trained number depends on; every other setting belongs to the identity, also in later versions.
FREE_PREFIXES = ("logging_", "save_", "eval_", "hub_", "trackio_", "report_", "log_", "include_", "accept_")
FREE = {
    *("output_dir", "disable_tqdm", "run_name", "project", "push_to_hub", "debug", "use_cpu", "prediction_loss_only"),
    *("do_train", "do_eval", "do_predict", "skip_memory_metrics", "local_rank", "per_device_eval_batch_size"),
    *("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataset_num_proc", "ddp_timeout"),
    *(
        "torch_empty_cache_steps",
        "trust_remote_code",
        "remove_unused_columns",
        "label_names",
        "bad_rows",
        "on_collapse",
    ),
    *("batch_eval_metrics", "revision_template", "model_init_kwargs"),  # the last two: template and weights count
}
# A checkpoint's weights and optimiser moments fit only one value of these keys, so a change cannot be accepted. A
# checkpoint of DeepSpeed also fits only one number of processes.
FIXED = ("adapter", "optim", "weights_split_by")
LIBRARIES = ("srpo", "torch", "transformers", "accelerate", "peft")
STEP_OF_PAIRS = ("processes", "per_device_train_batch_size", "gradient_accumulation_steps")
log = logging.getLogger("srpo")


def identity_of(trainer: TrainerView) -> dict[str, Any]:
    """Returns, as JSON values by key, all that the numbers of a run depend on: data, settings, device and more."""
    renderer = trainer.renderer
    args = trainer.args
    found: dict[str, Any] = {
        "data": trainer.train_dataset.content if trainer.train_dataset else "not known",
        "template": f"{renderer.template.name} {_hash(renderer.template.identity())}",
        "chat_template": _hash(renderer.tokenizer.chat_template),
        "tokenizer": renderer.tokenizer_hash,
        "reference": frozen_weights_hash(trainer),
        "adapter": _adapter(trainer.model),
        "processes": args.world_size,
        "threads": torch.get_num_threads(),
        "device": device_name(args.device),
        **({"weights_split_by": split} if (split := splitting(trainer)) != "no" else {}),
        **{name: version for name, version in versions().items() if name in LIBRARIES},
    }
    for each in fields(args):
        if each.init and each.name not in FREE and not each.name.startswith(FREE_PREFIXES):
            found[each.name] = _plain(getattr(args, each.name))
    return found


def frozen_weights_hash(trainer: TrainerView) -> str:
    """Returns the sha256 of all frozen weights of a run: the reference's, and the frozen ones of the policy."""
    reference = trainer.reference
    if reference.kind in ("given", "moving"):  # other references share the policy's frozen weights
        return f"{reference.fingerprint} {fingerprint(trainer.model, without_trained=True)}"
    return reference.fingerprint


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (key, old value, new value) for every difference of two dicts; the value of a missing key is None."""
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def accepted(
    old: Mapping[str, Any], new: Mapping[str, Any], accept: Iterable[str], *, step: int, where: str
) -> list[dict[str, Any]]:
    """Compares a checkpoint's identity with the run's; returns the accepted changes as records for the manifest.

    Args:
        old: identity stored in the checkpoint.
        new: identity of the run that resumes.
        accept: keys that the user allows to change (`accept_change`).
        step: optimiser steps taken before the change.
        where: the checkpoint, for the error.

    Raises:
        ConfigError: another key changed, a changed key cannot be accepted, or `accept` names an unknown key.
    """
    accept = list(accept)
    for key in accept:
        if key not in {**old, **new}:
            fix = did_you_mean(key, {**old, **new}) or "a refused resume lists the keys"
            raise ConfigError(f"unknown key {key!r}", where="accept_change", fix=fix)
    found = changes(old, new)
    fixed_keys = {*FIXED, *(["processes"] if str(new.get("weights_split_by")).startswith("ZeRO") else [])}
    if refused := [each for each in found if each[0] not in accept or each[0] in fixed_keys]:
        listed = "".join(f"\n  {line}" for key, was, now in refused for line in _lines(key, was, now))
        keys = [key for key, _, _ in refused]
        what = f"the run began under other conditions:{listed}\n"
        fixed, free = [[key for key in keys if (key in fixed_keys) is it] for it in (True, False)]
        fix = f"restore {' and '.join(fixed)} (no checkpoint can be loaded otherwise), or start a new run"
        if free:
            others = "the others" if fixed else "them"
            fix = f"{fix}; " if fixed else ""
            fix += f"restore {others}, or add `--accept_change {' '.join(free)}`, which is recorded"
        raise ConfigError(what, where=where, fix=fix)
    if not _same_place(old, new):
        log.warning("srpo: the pairs of a step change: this epoch may repeat some pairs and leave out others")
    return [{"step": step, "key": key, "old": was, "new": now} for key, was, now in found]


def _same_place(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """True if a step takes the same pairs under the old and the new identity, so that an epoch continues exactly."""
    before, now = (math.prod(each.get(key, 1) for key in STEP_OF_PAIRS) for each in (old, new))
    batch = "per_device_train_batch_size"  # decides which prompts are drawn together
    return before == now and not (new.get("group_by_prompt") and old.get(batch) != new.get(batch))


def _adapter(model: nn.Module) -> dict[str, Any] | None:
    """Settings of the model's trained adapter, for the identity; None without an adapter.

    The name of the base model is left out, since the hash of the frozen weights identifies it.
    """
    adapters: Any = getattr(model, "peft_config", None)
    if adapters is None:
        return None
    active: Any = getattr(model, "active_adapters", None)
    settings = adapters[active[0]].to_dict()
    left_out = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping")
    return {key: _plain(value) for key, value in sorted(settings.items()) if key not in left_out}


def device_name(device: torch.device) -> str:
    """Returns a device's name for the identity of a run: the model of a GPU, or the instruction set of a CPU.

    Another model or instruction set gives other numbers.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _plain(value: object) -> Any:
    """Converts a value to the form in which JSON reads it back, so that a stored identity equals a fresh one."""
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _hash(value: object) -> str | None:
    return None if value is None else hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _lines(key: str, was: object, now: object) -> list[str]:
    """Lines for the error about a changed key of the identity: its old value `was` and its new value `now`.

    Of two dicts, each changed entry has a line.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        return [f"{key}.{part}: {_shown(old)} → {_shown(new)}" for part, old, new in changes(was, now)]
    was, now = (value.get("peft_type", value) if isinstance(value, dict) else value for value in (was, now))
    return [f"{key}: {_shown(was)} → {_shown(now)}"]


def _shown(value: object) -> str:
    """Text of a value for one line of an error message; hashes are shortened to 12 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = [word[:12] if len(word) == 64 else word for word in text.split(" ")]
    return " ".join(words)
