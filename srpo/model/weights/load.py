"""Loads models and tokenizers from paths and hub names. The only code that reads weights.

Only safetensors and GGUF are read, and code from a model's repository runs only on request: a pickle or a module that
comes with weights has all rights of the user. untrusted.py checks a folder before any library reads it; adapter.py
finds adapters and their bases; convert.py converts pickles to safetensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.errors import ConfigError, InputError
from srpo.model.weights.adapter import Adapter, expect_used, find_adapter, fit_embeddings, looks_local
from srpo.model.weights.architecture import TOWERS, freeze_towers, loader_for
from srpo.model.weights.gguf import gguf_file, gguf_options, gguf_parsed_once
from srpo.model.weights.quantised import warn_of_other_base
from srpo.model.weights.stopping import stop_as_saved
from srpo.model.weights.untrusted import CONVERT, expect_safe, own_code, pickled
from srpo.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger("srpo")


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, revision: str = "main", base_model: str | None = None
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer at a local path or hub name; for an adapter without one, its base model's.

    Args:
        trust_remote_code: run the code in the tokenizer's repository, with all rights of the user.
        revision: branch, tag or commit on the hub.
        base_model: base model of an adapter, instead of the one in its `adapter_config.json`.

    Raises:
        InputError: no tokenizer there, or only one that needs its own code.
        ConfigError: `base_model` for a path without an adapter.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    where = path
    if adapter := find_adapter(path, base_model, revision):
        where = adapter.tokenizer_folder
        if where == adapter.base:
            options["revision"] = "main"
            log.info("srpo: %s has no tokenizer; the tokenizer of its base model %s is used", path, where)
    with gguf_parsed_once(where) as file:
        if file:
            where, options = str(file.parent), {**options, **gguf_options(file, weights=False)}
        _expect_folder(where)
        expect_safe(Path(where), trust_remote_code=trust_remote_code)
        try:
            with Progress(f"reading the tokenizer of {where}"):
                return AutoTokenizer.from_pretrained(where, **options)
        except _unreadable() as error:
            refusal = _refusal("tokenizer", path, error)
            raise (adapter.without_base(refusal) if adapter and where == adapter.base else refusal) from None


def load_processor(
    path: str, *, trust_remote_code: bool = False, revision: str = "main", base_model: str | None = None
) -> Any:
    """Loads a model's processor of pictures and text; for an adapter without one, its base model's.

    Returns:
        The processor; for a text model None or its tokenizer.

    Raises:
        InputError: no processor there, or only one that needs its own code.
        ConfigError: a library that the processor needs is not installed.
    """
    from transformers import AutoProcessor

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    where = path
    own = (Path(path) / "processor_config.json").is_file()
    if not own and (adapter := find_adapter(path, base_model, revision)):
        where, options["revision"] = adapter.base, "main"
    _expect_folder(where)
    expect_safe(Path(where), trust_remote_code=trust_remote_code)
    try:
        return AutoProcessor.from_pretrained(where, **options)
    except ImportError as error:
        fix = "pip install 'srpo[vision]'"
        raise ConfigError(f"the processor needs a library: {_first_line(error)}", where=path, fix=fix) from None
    except _unreadable() as error:
        config = load_config(path, trust_remote_code=trust_remote_code, revision=revision, base_model=base_model)
        if getattr(config, TOWERS[0], None) is None:
            return None
        raise _refusal("processor", path, error) from None


def load_model(
    path: str,
    *,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str = "main",
    trainable: bool = False,
    base_model: str | None = None,
    dequantised: bool = False,
    **options: object,
) -> Any:
    """Loads a causal language model, or an adapter on its base model, from a local path or hub name.

    A checkpoint with a vision tower is loaded whole, with the tower frozen. A GGUF file is dequantised.

    Args:
        path: a folder, hub name or GGUF file; a folder with an `adapter_config.json`, or with one adapter in a
            subfolder, is loaded as a PEFT model on its base.
        dtype: a torch dtype or its name, or "auto" for the dtype in which the weights are stored.
        trainable: True leaves an adapter's weights trainable.
        trust_remote_code: run the code in the model's repository, with all rights of the user.
        base_model: base model of an adapter, instead of the one in its `adapter_config.json`.
        dequantised: True converts an adapter's base, after `options` have quantised it, back to `dtype`; its weights
            keep their rounded values.
        options: further keywords of `from_pretrained`.

    Raises:
        InputError: no model there, or one with pickled weights only, or one that needs its own code.
        ConfigError: an unknown dtype, an option that would weaken the safety checks, or `base_model` for no adapter.
    """
    weights = _dtype(dtype)
    if unsafe := {"use_safetensors", "weights_only"} & options.keys():
        raise ConfigError(f"{min(unsafe)} is not for choosing", where="model_init_kwargs", fix=CONVERT)
    adapter = find_adapter(path, base_model, revision)
    options |= {"dtype": weights, "attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    if adapter:
        expect_safe(adapter.folder, trust_remote_code=trust_remote_code)
        return _with_adapter(adapter, options, trainable, dequantised)
    return _load_causal(path, path, {**options, "revision": revision})


def _load_causal(path: str, named: str, options: Mapping[str, Any], *, text_only: bool = False) -> Any:
    """Loads a model without an adapter from `path`; errors name the path `named` by the user."""
    with gguf_parsed_once(path) as file:
        if file:
            options = {**options, **gguf_options(file, weights=True)}
        log.info("srpo: reading the weights of %s", named)
        try:
            with Progress(f"reading the weights of {named}"):
                where, config = _config(path, options)
                model = _whole(loader_for(config, text_only=text_only), where, **options)
        except _unreadable() as error:
            raise _refusal("model", named, error, path) from None
    freeze_towers(model)
    return model


def _with_adapter(adapter: Adapter, options: Mapping[str, Any], trainable: bool, dequantised: bool = False) -> Any:
    """Loads an adapter's base model and the adapter on it; a base that is itself an adapter is merged first."""
    from peft import PeftModel

    folder = str(adapter.folder)
    if below := find_adapter(adapter.base):
        log.info("srpo: the base model %s is an adapter itself and is merged into %s", adapter.base, below.base)
        base = _with_adapter(below, options, False).merge_and_unload()
    else:
        try:
            base = _load_causal(adapter.base, folder, options, text_only=adapter.text_only)
        except InputError as error:
            raise adapter.without_base(error) from None
        base = base.dequantize() if dequantised else base
        warn_of_other_base(adapter.folder, options)
    beside = adapter.tokenizer_folder != adapter.base
    try:
        fit_embeddings(base, adapter, len(load_tokenizer(folder)) if beside else None)
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
        stop_as_saved(model, adapter.folder)
    except _unreadable() as error:
        raise _refusal("model", folder, error, adapter.base) from None
    expect_used(model, adapter)
    return model


def load_reward_model(path: str, *, dtype: str = "float32", trust_remote_code: bool = False) -> Any:
    """Loads a sequence classification model with one output from a local path or hub name.

    Args:
        dtype: a torch dtype's name, or "auto" for the dtype in which the weights are stored.
        trust_remote_code: run the code in the model's repository, with all rights of the user.

    Raises:
        InputError: no such model there (a language model has no head for scores), or one with pickled weights only, or
            one that needs its own code.
        ConfigError: a model with several outputs, or an unknown dtype.
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


def _dtype(name: str | torch.dtype) -> str | torch.dtype:
    import torch

    if isinstance(name, torch.dtype):
        return name
    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"no dtype {name!r}", where="dtype", expected="auto, float32, bfloat16 or float16")
    dtype: torch.dtype = torch.float32 if name == "auto" else getattr(torch, name)
    return name if name == "auto" else dtype


def _whole(auto: type, path: str, **options: object) -> Any:
    """Loads a model by transformers' class `auto`; raises InputError if weights are missing from its files.

    transformers would fill missing weights with random numbers.
    """
    loader: Any = auto
    model, found = loader.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise InputError(f"{len(found['missing_keys'])} of the model's weights are not there: {some}", where=path)
    return model


def read_pickled(file: Path) -> Any:
    """Reads a pickle of tensors and returns its content, without running any code in it.

    Only `srpo convert` and resuming use it.

    Raises:
        InputError: the file is not such a pickle.
    """
    import pickle

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, ValueError, RuntimeError, EOFError, AttributeError, LookupError) as error:
        runs_code = isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)
        problem = (
            "would run code when unpickled, and was not"
            if runs_code
            else f"not a pickle of tensors: {_first_line(error)}"
        )
        raise InputError(problem, where=str(file), fix="get the weights as safetensors from a trusted source") from None


def inference_device(name: str = "") -> torch.device:
    """Returns the device for a model that is not trained: the named one; for "" a GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is neither "cpu" nor a CUDA device of this machine.
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


def load_config(
    path: str, *, trust_remote_code: bool = False, revision: str = "main", base_model: str | None = None
) -> PretrainedConfig:
    """Loads the configuration of a model, or of an adapter's base; no weights are read.

    Raises:
        InputError: no configuration there, or only one that needs its own code.
        ConfigError: `base_model` for a path without an adapter.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if adapter := find_adapter(path, base_model, revision):
        expect_safe(adapter.folder, trust_remote_code=trust_remote_code)
        try:
            return load_config(adapter.base, **options)
        except InputError as error:
            raise adapter.without_base(error) from None
    try:
        return _config(path, {**options, "revision": revision})[1]
    except _unreadable() as error:
        raise _refusal("model", path, error, path) from None


def _config(path: str, options: Mapping[str, Any]) -> tuple[str, PretrainedConfig]:
    """Returns the folder or hub name to load `path` from (a GGUF file's folder), and the configuration there."""
    from transformers import AutoConfig

    where, remote = path, {key: options[key] for key in ("trust_remote_code", "revision") if key in options}
    if file := gguf_file(path):
        where, remote = str(file.parent), {**remote, "gguf_file": file.name}
    _expect_folder(where)
    expect_safe(Path(where), trust_remote_code=bool(options["trust_remote_code"]))
    return where, AutoConfig.from_pretrained(where, **remote)


def model_context(model: nn.Module) -> int | None:
    """Returns the longest sequence that a model was built for, in tokens; None if its configuration has no limit."""
    return context_of(model.config)


def context_of(config: Any) -> int | None:
    """Returns the longest sequence of a model with this configuration, in tokens; None if it has no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def adapter_base(path: str, base_model: str | None = None) -> str | None:
    """Returns the folder or hub name of an adapter's base model; None if there is no adapter at the path.

    Args:
        base_model: folder or hub name to take instead of the one in the adapter's configuration.

    Raises:
        InputError: several adapters in the folder, no safetensors, or a base model that is not named or not there.
        ConfigError: `base_model` for a path without an adapter.
    """
    adapter = find_adapter(path, base_model)
    return adapter.base if adapter else None


def _refusal(kind: str, path: str, error: Exception, weights: str = "") -> InputError:
    """Builds the error for a model or tokenizer that a library could not load, with the file and a safe remedy.

    Args:
        kind: "model", "reward model" or "tokenizer".
        path: the path or hub name that the user gave.
        error: the library's error.
        weights: folder of the weights (for an adapter, of its base); "" for a tokenizer.
    """
    folder = Path(weights or path)
    if "custom code" in str(error) or "trust_remote_code" in str(error):
        code = ", ".join(own_code(folder)) or "its repository's code"
        fix = "read it first; --trust_remote_code (trust_remote_code=True) runs it, with all your rights"
        return InputError(f"no {kind} without running {code}", where=path, fix=fix)
    there = pickled(folder) if weights and folder.is_dir() and not list(folder.glob("*.safetensors")) else []
    if there:
        return InputError(f"no {kind}: only {', '.join(there[:3])}", where=path, fix=CONVERT)
    return InputError(f"no {kind}: {_first_line(error)}", where=path, fix=_either(path))


def _unreadable() -> tuple[type[Exception], ...]:
    """Classes of the errors that libraries raise for files that are missing, damaged, or made for another model."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError


def _expect_folder(path: str) -> None:
    """Raises InputError for a local path that is no folder: a library would look its name up on the hub."""
    if looks_local(path) and not Path(path).is_dir():
        raise InputError("no such folder", where=path, expected="a saved model, or a hub name")


def _either(path: str) -> str:
    """Advice for an error about a path like `runs/final` that is no folder here, so that it was taken as a hub name.

    "" if the folder exists, since the error has another cause.
    """
    if os.path.isdir(path):
        return ""
    return "no folder of that name is here, so it was looked for on the hub: write ./ before it if a folder is meant"


def _first_line(error: Exception) -> str:
    """First line of a library's error message; the second is added if the first ends with a colon, as a heading."""
    first, *rest = str(error).strip().split("\n")
    return " ".join([first.strip(), rest[0].strip()]) if rest and first.rstrip().endswith(":") else first
