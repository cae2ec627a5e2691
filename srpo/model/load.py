"""Paths and hub names → models and tokenizers. The only code that reads weights.

Safetensors only, and no code from a model's repository unless asked: a pickle or a module that comes with weights would
run as you.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_tokenizer(path: str, *, trust_remote_code: bool = False, revision: str = "main") -> Any:
    """The tokenizer saved at a local path or hub name.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    _expect_folder(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except _unreadable() as error:
        raise InputError(f"no tokenizer: {_first_line(error)}", where=path, fix=_either(path)) from None


def load_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str = "main",
    trainable: bool = False,
    **options: Any,
) -> Any:
    """A causal language model, or an adapter on its base model, from a local path or hub name.

    Args:
        path: a folder or hub name; one with an `adapter_config.json` is loaded as a PEFT model on the base it names.
        dtype: float32, bfloat16, float16, or auto: what the weights are stored in.
        trainable: leave an adapter's weights open for training.
        options: passed on to `from_pretrained`.

    Raises:
        InputError: no model there, or only weights that would have to be unpickled.
        ConfigError: a dtype that does not exist.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"no dtype {dtype!r}", where="dtype", expected="auto, float32, bfloat16 or float16")
    _expect_folder(path)
    adapter = _adapter_base(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            adapter or path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision="main" if adapter else revision,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        model, found = loaded
        if found["missing_keys"]:
            some = ", ".join(sorted(found["missing_keys"])[:3])
            raise InputError(f"{len(found['missing_keys'])} of the model's weights are not there: {some}", where=path)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except _unreadable() as error:
        pickled = os.path.isdir(path) and not list(Path(path).glob("*.safetensors"))
        fix = "weights must be .safetensors; pickled ones (.bin, .pt) are not read" if pickled else _either(path)
        raise InputError(f"no model: {_first_line(error)}", where=path, fix=fix) from None
    return model


def model_context(model: Any) -> int | None:
    """Longest sequence the model was built for, in tokens; None when its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _adapter_base(path: str) -> str | None:
    """The base model an adapter folder names; None when `path` is not one."""
    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        return None
    if not file.with_name(ADAPTER_WEIGHTS).is_file():  # PEFT would go on to look for pickled ones
        fix = "weights must be .safetensors; pickled ones (.bin, .pt) are not read"
        raise InputError(f"an adapter without {ADAPTER_WEIGHTS}", where=path, fix=fix)
    try:
        base = json.loads(file.read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise InputError("not an adapter configuration", where=str(file)) from None
    if not isinstance(base, str):
        raise InputError("names no base model", where=str(file), expected="base_model_name_or_path")
    _expect_folder(base)
    return base


def _unreadable() -> tuple[type[Exception], ...]:
    """What loading raises over files that are missing, torn, or made for another model or for a library not here."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError


def _expect_folder(path: str) -> None:
    """Something that looks like a path but is none deserves a plain word, not a hub lookup."""
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or (os.sep == "\\" and "\\" in path)
    looks_local |= "/" in path and os.path.isdir(os.path.dirname(path))  # of `runs/final`, runs is here
    if looks_local and not Path(path).is_dir():
        raise InputError("no such folder", where=path, expected="a saved model, or a hub name")


def _either(path: str) -> str:
    """What to say where a name like `runs/final` may have been meant as a folder or as a name on the hub."""
    if os.path.isdir(path):
        return ""
    return "no folder of that name is here, so it was looked for on the hub: write ./ before it if a folder is meant"


def _first_line(error: Exception) -> str:
    """The first line of a library's message, with the second where it only announces that."""
    first, *rest = str(error).strip().split("\n")
    return " ".join([first.strip(), rest[0].strip()]) if rest and first.rstrip().endswith(":") else first
