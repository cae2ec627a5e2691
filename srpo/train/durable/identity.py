"""What a run's numbers depend on, key by key, so that resuming under other conditions is found out.

Everything is compared by content: a file that moved is the same file, and one that was edited is not. Of the settings
those are left out that change where and how much is written, and nothing that is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch

from srpo.errors import ConfigError, did_you_mean
from srpo.versions import versions

# Settings that no trained number depends on; every other one is part of the identity, those of later versions too.
FREE_PREFIXES = ("logging_", "save_", "eval_", "hub_", "trackio_", "report_", "log_", "include_", "accept_")
FREE = {
    *(
        "output_dir",
        "per_device_eval_batch_size",
        "prediction_loss_only",
        "batch_eval_metrics",
        "enable_jit_checkpoint",
    ),
    *("disable_tqdm", "run_name", "project", "push_to_hub", "do_train", "do_eval", "do_predict", "debug", "use_cpu"),
    *("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "skip_memory_metrics", "local_rank"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataset_num_proc", "ddp_timeout"),
    *("torch_empty_cache_steps", "trust_remote_code", "remove_unused_columns", "label_names", "bad_rows"),
    *("revision_template", "model_init_kwargs"),  # said better by the contents: rows, template, weights
}
# A checkpoint's weights and moments do not fit any other: such a change cannot be accepted.
FIXED = ("adapter", "optim")
LIBRARIES = ("srpo", "torch", "transformers", "accelerate", "peft")


def identity_of(trainer: Any) -> dict[str, Any]:
    """Key → value of everything that a trainer's numbers depend on."""
    renderer = trainer.renderer
    args = trainer.args
    found: dict[str, Any] = {
        "data": getattr(trainer.train_dataset, "content", "not known"),
        "template": f"{renderer.template.name} {_hash(renderer.template.identity())}",
        "chat_template": _hash(renderer.tokenizer.chat_template),
        "tokenizer": renderer.tokenizer_hash,
        "reference": trainer.reference_hash(),
        "adapter": _adapter(trainer.model),
        "processes": args.world_size,
        "threads": torch.get_num_threads(),
        "device": device_name(args.device),
        **{name: version for name, version in versions().items() if name in LIBRARIES},
    }
    for each in fields(args):
        if each.init and each.name not in FREE and not each.name.startswith(FREE_PREFIXES):
            found[each.name] = _plain(getattr(args, each.name))
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, old and new value of what differs; None where one has no such key."""
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def accepted(
    old: Mapping[str, Any], new: Mapping[str, Any], accept: Iterable[str], *, step: int, where: str
) -> list[dict[str, Any]]:
    """The changes that are let pass, as they are recorded.

    Args:
        accept: keys whose change is wanted.
        step: optimiser steps taken before the change.
        where: the checkpoint.

    Raises:
        ConfigError: something else changed, or what cannot be accepted did, or a key is none.
    """
    accept = list(accept)
    for key in accept:
        if key not in {**old, **new}:
            fix = did_you_mean(key, {**old, **new}) or "a refused resume lists the keys"
            raise ConfigError(f"no {key!r} that could change", where="accept_change", fix=fix)
    found = changes(old, new)
    if refused := [each for each in found if each[0] not in accept or each[0] in FIXED]:
        listed = "".join(f"\n  {line}" for key, was, now in refused for line in _lines(key, was, now))
        keys = [key for key, _, _ in refused]
        what = f"the run would go on under other conditions than it began with:{listed}\n"
        fixed, free = [[key for key in keys if (key in FIXED) is it] for it in (True, False)]
        fix = f"restore {' and '.join(fixed)}, without which no checkpoint can be read, or begin another run"
        if free:
            others = "the others" if fixed else "them"
            fix = f"{fix}; " if fixed else ""
            fix += f"restore {others}, or add `--accept_change {' '.join(free)}`, which is recorded"
        raise ConfigError(what, where=where, fix=fix)
    return [{"step": step, "key": key, "old": was, "new": now} for key, was, now in found]


def _adapter(model: Any) -> dict[str, Any] | None:
    """What kind of adapter is trained; where its base was read from says the hash of the weights."""
    if not hasattr(model, "peft_config"):
        return None
    settings = model.peft_config[model.active_adapters[0]].to_dict()
    left_out = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping")
    return {key: _plain(value) for key, value in sorted(settings.items()) if key not in left_out}


def device_name(device: torch.device) -> str:
    """What numbers depend on of a device: of a GPU its model, of a CPU what it can do at once."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _plain(value: Any) -> Any:
    """As JSON gives it back: what is read must equal what was written."""
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _hash(value: Any) -> str | None:
    return None if value is None else hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _lines(key: str, was: Any, now: Any) -> list[str]:
    """What changed, a line for each part that did; of an adapter that comes or goes its kind."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [f"{key}.{part}: {_shown(old)} → {_shown(new)}" for part, old, new in changes(was, now)]
    was, now = (value.get("peft_type", value) if isinstance(value, dict) else value for value in (was, now))
    return [f"{key}: {_shown(was)} → {_shown(now)}"]


def _shown(value: Any) -> str:
    """A value on one line; of a hash as much as tells it from another."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = [word[:12] if len(word) == 64 else word for word in text.split(" ")]
    return " ".join(words)
