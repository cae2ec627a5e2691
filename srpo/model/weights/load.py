"""Paths and hub names → models and tokenizers. The only code that reads weights.

Safetensors only, and no code from a model's repository unless asked: a pickle or a module that comes with weights would
run as you. What is refused before a library looks at it is in untrusted.py; convert.py makes safetensors of pickles.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, InputError
from srpo.model.weights.untrusted import CONVERT, expect_safe, own_code, pickled

ADAPTER_FILE = "adapter_config.json"
TRAINING_FILE = "srpo_training.json"  # what training leaves beside a model about itself
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_tokenizer(path: str, *, trust_remote_code: bool = False, revision: str = "main") -> Any:
    """The tokenizer saved at a local path or hub name.

    Raises:
        InputError: there is none, or only one that would run code of its own.
    """
    from transformers import AutoTokenizer

    _expect_folder(path)
    expect_safe(Path(path), trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except _unreadable() as error:
        raise _refusal("tokenizer", path, error) from None


def load_model(
    path: str,
    *,
    dtype: Any = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str = "main",
    trainable: bool = False,
    **options: Any,
) -> Any:
    """A causal language model, or an adapter on its base model, from a local path or hub name.

    Args:
        path: a folder or hub name; one with an `adapter_config.json` is loaded as a PEFT model on the base it names.
        dtype: float32, bfloat16, float16, or auto: what the weights are stored in; or a dtype of torch.
        trainable: leave an adapter's weights open for training.
        trust_remote_code: run the code that a model brings along, with all your rights.
        options: passed on to `from_pretrained`.

    Raises:
        InputError: no model there, only weights that would have to be unpickled, or one that would run code of its own.
        ConfigError: a dtype that does not exist, or an option that is not one of loading.
    """
    from transformers import AutoModelForCausalLM

    weights = _dtype(dtype)
    if unsafe := {"use_safetensors", "weights_only"} & options.keys():
        raise ConfigError(f"{min(unsafe)} is not for choosing", where="model_init_kwargs", fix=CONVERT)
    _expect_folder(path)
    adapter = adapter_base(path)
    for folder in filter(None, (path, adapter)):
        expect_safe(Path(folder), trust_remote_code=trust_remote_code)
    try:
        model = _whole(
            AutoModelForCausalLM,
            adapter or path,
            dtype=weights,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision="main" if adapter else revision,
            **options,
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
    except _unreadable() as error:
        raise _refusal("model", path, error, adapter or path) from None
    return model


def load_reward_model(path: str, *, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """A sequence classification model with one output, from a local path or hub name.

    Args:
        dtype, trust_remote_code: as in `load_model`.

    Raises:
        InputError: no such model there (a language model without a head for scores, say), only weights that would have
            to be unpickled, or one that would run code of its own.
        ConfigError: it has several outputs, or a dtype that does not exist.
    """
    from transformers import AutoModelForSequenceClassification

    _expect_folder(path)
    expect_safe(Path(path), trust_remote_code=trust_remote_code)
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    try:
        model = _whole(AutoModelForSequenceClassification, path, **options)
    except _unreadable() as error:
        raise _refusal("reward model", path, error, path) from None
    if model.config.num_labels != 1:
        raise ConfigError(f"{model.config.num_labels} outputs", where=path, expected="a reward model, which has one")
    return model.eval()


def _dtype(name: Any) -> Any:
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"no dtype {name!r}", where="dtype", expected="auto, float32, bfloat16 or float16")
    return name if name == "auto" else getattr(torch, name)


def _whole(auto: Any, path: str, **options: Any) -> Any:
    """A model of that class whose weights were all there; transformers would make up those that are not."""
    model, found = auto.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{len(found['missing_keys'])} of the model's weights are not there: {some}", where=path)
    return model


def read_pickled(file: Path) -> Any:
    """What a pickle of tensors holds. For converting it alone: nothing else here unpickles.

    Raises:
        InputError: it is none, or would do more than build tensors, which it is then not let do.
    """
    import pickle

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, ValueError, RuntimeError, EOFError, AttributeError, LookupError) as error:
        unpickles = isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)
        what = (
            "would run code when unpickled, and was not"
            if unpickles
            else f"not a pickle of tensors: {_first_line(error)}"
        )
        fix = "get the weights as safetensors from whom you trust"
        raise InputError(what, where=str(file), fix=fix) from None


def inference_device(name: str = "") -> Any:
    """Where a model is put that is not trained: the device of that name, or else a GPU if there is one.

    Raises:
        ConfigError: it is neither a CPU nor a GPU by CUDA, or not here.
    """
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = (name or ("cuda" if cards else "cpu")).partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdecimal():
        raise ConfigError(f"{name!r}", where="device", expected="cpu, cuda, or one of several: cuda:1")
    if kind == "cuda" and int(number or 0) >= cards:
        seen = f"{cards} GPUs are" if cards != 1 else "1 GPU is"
        raise ConfigError(f"{name!r}, and {seen} seen by torch", where="device", fix="name one of them, or cpu")
    return torch.device(kind, int(number)) if number and kind == "cuda" else torch.device(kind)


def model_context(model: Any) -> int | None:
    """Longest sequence the model was built for, in tokens; None when its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def adapter_base(path: str) -> str | None:
    """The base model an adapter folder names; None when `path` is not one."""
    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        return None
    if not file.with_name(ADAPTER_WEIGHTS).is_file():  # PEFT would go on to look for pickled ones
        there = pickled(file.parent)
        what = f"an adapter without {ADAPTER_WEIGHTS}" + (f", but with {', '.join(there[:3])}" if there else "")
        raise InputError(what, where=path, fix=CONVERT)
    try:
        base = json.loads(file.read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise InputError("not an adapter configuration", where=str(file)) from None
    if not isinstance(base, str):
        raise InputError("names no base model", where=str(file), expected="base_model_name_or_path")
    _expect_folder(base)
    return base


def _refusal(what: str, path: str, error: Exception, weights: str = "") -> InputError:
    """Why there is no model or tokenizer, in words that name the file and the safe way.

    Args:
        weights: where the weights would be; under an adapter, the base.
    """
    folder = Path(weights or path)
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        code = ", ".join(own_code(folder)) or "its repository's code"
        fix = "read it first; --trust_remote_code (trust_remote_code=True) runs it, with all your rights"
        return InputError(f"no {what} without running {code}", where=path, fix=fix)
    there = pickled(folder) if weights and folder.is_dir() and not list(folder.glob("*.safetensors")) else []
    if there:
        return InputError(f"no {what}: only {', '.join(there[:3])}", where=path, fix=CONVERT)
    return InputError(f"no {what}: {_first_line(error)}", where=path, fix=_either(path))


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
