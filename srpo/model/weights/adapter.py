"""Finds adapters of any trainer on disk or hub: their folder, their base model, and the embeddings they need."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.errors import ConfigError, InputError
from srpo.model.weights.untrusted import CONVERT, pickled

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
REFERENCE_ADAPTER = "srpo_reference"  # the frozen copy of an adapter in training; earlier versions saved it
GIVE_BASE = "name the base with base_model (--base_model)"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("tekken.json", "tiktoken.model", "sentencepiece.bpe.model"),
)
# Ending of a stored weight → its axis of tokens. LoRA of an input embedding has it in A, LoRA of a head in B.
_ROWS = {"weight": 0, "modules_to_save.weight": 0, "base_layer.weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}
# Parts of a weight's name that differ between PEFT's files and PEFT's models.
_WRAPPERS = re.compile(r"\.(?:default|modules_to_save|base_layer|token_adapter)(?=\.|$)")
log = logging.getLogger("srpo")


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, with its configuration and the name of its base model.

    Attributes:
        folder: the folder with `adapter_config.json`.
        base: folder or hub name of the base model.
        config: contents of `adapter_config.json`.
    """

    folder: Path
    base: str
    config: Mapping[str, Any]

    @property
    def tokenizer_folder(self) -> str:
        """Folder or hub name of the adapter's tokenizer: the adapter's folder, its parent, or else the base model."""
        up = [self.folder.parent] if not _holds_model(self.folder.parent) else []
        return next((str(folder) for folder in (self.folder, *up) if has_tokenizer(folder)), self.base)

    def without_base(self, error: InputError) -> InputError:
        """Returns the error to raise after loading the adapter's base model has failed with `error`.

        It is `error` itself, or, if the base model's name is no folder here, one that names adapter_config.json, which
        holds that name.
        """
        if Path(self.base).is_dir():
            return error
        problem = f"names the base model {self.base}, which is not here ({error.what})"
        return InputError(problem, where=str(self.folder / ADAPTER_FILE), fix=GIVE_BASE)

    @property
    def text_only(self) -> bool:
        """True if the adapter was trained on a text-only model: no weight name contains a vision-language part."""
        return not any(re.search(r"\.(language_model|visual|vision\w*)\.", name) for name in stored_shapes(self.folder))


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Returns name → shape of the weights in an adapter's file; reads the file's header only.

    Raises:
        InputError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"no model: {ADAPTER_WEIGHTS} is damaged ({error})", where=str(folder)) from None


def has_tokenizer(folder: Path) -> bool:
    """True if the folder holds a file of a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def find_adapter(path: str, base_model: str | None = None, revision: str = "main") -> Adapter | None:
    """Finds the adapter at a path or hub name; returns None if there is none, such as for a full model.

    Args:
        path: a folder with `adapter_config.json`, a folder with one named adapter in a subfolder, or a hub name.
        base_model: folder or hub name of the base model, instead of the one in `adapter_config.json`.
        revision: branch, tag or commit of an adapter on the hub.

    Raises:
        InputError: several named adapters, no safetensors, or a base model that is not named or not there.
        ConfigError: `base_model` for a path without an adapter.
    """
    folder = _adapter_folder(path) or _downloaded(path, revision)
    if folder is None:
        if base_model:
            raise ConfigError(f"{path} is not an adapter and has no base model", where="base_model", fix="leave it out")
        return None
    file = folder / ADAPTER_FILE
    if not (folder / ADAPTER_WEIGHTS).is_file():  # PEFT would read pickled weights, too
        there = pickled(folder)
        problem = f"an adapter without {ADAPTER_WEIGHTS}" + (f", but with {', '.join(there[:3])}" if there else "")
        raise InputError(problem, where=str(folder), fix=CONVERT)
    try:
        config = json.loads(file.read_text("utf-8"))
        named = config["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise InputError("not an adapter configuration", where=str(file)) from None
    return Adapter(folder, _base(file, named, base_model), config)


def _adapter_folder(path: str) -> Path | None:
    folder = Path(path)
    if (folder / ADAPTER_FILE).is_file():
        return folder
    if not path or not folder.is_dir() or _holds_model(folder):
        return None
    named = sorted(file.parent for file in folder.glob(f"*/{ADAPTER_FILE}"))
    adapters = [each for each in named if not re.fullmatch(r"checkpoint-\d+", each.name)]
    if len(adapters) == 1:
        log.info("srpo: the adapter of %s is %s", path, adapters[0])
        return adapters[0]
    if named:
        names = ", ".join(each.name for each in adapters or named)
        kind = "adapters" if adapters else "adapters of a training run"
        raise InputError(f"{len(adapters or named)} {kind}: {names}", where=path, fix=f"name one: {named[-1]}")
    return None


def _downloaded(name: str, revision: str) -> Path | None:
    """Downloads an adapter by hub name and returns its folder in the hub's cache.

    None if `name` is not the name of an adapter on the hub, or the hub cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).exists() or looks_local(name):
        return None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from transformers.utils.hub import cached_file

    try:
        if try_to_load_from_cache(name, "config.json", revision=revision) or not cached_file(
            name, ADAPTER_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
        ):
            return None
        wanted = ["adapter_*", "*.json", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError):
        return None  # loading reports a name that cannot be reached


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))


def _base(file: Path, named: object, given: str | None) -> str:
    """Folder or hub name of an adapter's base: `given` by the user, else `named` in the adapter's configuration `file`.

    Raises:
        InputError: no base is given or named, or its folder does not exist.
    """
    if given:
        if looks_local(given) and not Path(given).is_dir():
            raise InputError("no such folder", where=given, expected="the base model of the adapter")
        return given
    if not isinstance(named, str) or not named:
        raise InputError("names no base model", where=str(file), expected="base_model_name_or_path", fix=GIVE_BASE)
    if Path(named).is_dir():
        return named
    beside = file.parent / named
    if not Path(named).is_absolute() and beside.is_dir():
        return str(beside)
    if looks_local(named):
        raise InputError(f"names the base model {named}, which is not here", where=str(file), fix=GIVE_BASE)
    return named


def looks_local(path: str) -> bool:
    """True if a name can only be a local path, unlike a hub name such as "org/model"."""
    outside_hub = path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path
    # In `runs/final`, `runs` is a folder here.
    return outside_hub or ("/" in path and Path(path).parent.is_dir())


# ---------------------------------------------------------------------- added tokens


def fit_embeddings(base: PreTrainedModel, adapter: Adapter, vocabulary: int | None) -> None:
    """Resizes the base model's embeddings to the number of rows that the adapter was trained with.

    New rows become the mean of the old ones until the adapter is loaded, which replaces those rows that it stores. A
    warning counts the rows that it does not store.

    Args:
        vocabulary: number of tokens of the tokenizer saved with the adapter; None if no tokenizer was saved.
    """
    import torch

    before = _rows(base.get_input_embeddings())
    stored = max(_stored_rows(adapter, _embedding_names(base)), default=0)
    trained = max(_trained_indices(adapter.config), default=-1) + 1
    rows = stored or max(before, trained, vocabulary or 0)
    if rows == before:
        return
    base.resize_token_embeddings(rows, mean_resizing=False)
    matrices = {id(m): m for m in (base.get_input_embeddings(), base.get_output_embeddings()) if m is not None}
    with torch.no_grad():
        for matrix in matrices.values():
            weight: Any = matrix.weight
            weight[before:] = weight[:before].mean(0)
    log.info("srpo: embeddings of %s resized from %d to %d rows for the adapter", adapter.base, before, rows)
    unknown = 0 if stored else len(set(range(before, rows)) - set(_trained_indices(adapter.config)))
    if unknown > 0:
        message = "srpo: %d added tokens have no embedding in %s; the mean of the others replaces them"
        log.warning(message, unknown, adapter.folder)


def _rows(matrix: Any) -> int:
    return len(matrix.weight)


def _embedding_names(base: PreTrainedModel) -> set[str]:
    """Names of the modules of the base model that are its input and output embeddings."""
    matrices = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    return {name for name, module in base.named_modules() if id(module) in matrices}


def _stored_rows(adapter: Adapter, names: set[str]) -> Iterator[int]:
    """Yields the number of rows of each embedding matrix that the adapter's file stores, whole or as low-rank factors.

    `names` are the names of the base's embedding modules.
    """
    for key, shape in stored_shapes(adapter.folder).items():
        name = key.removeprefix("base_model.model.")
        for ending, axis in _ROWS.items():
            if name.endswith(f".{ending}") and name.removesuffix(f".{ending}") in names:
                yield shape[axis]


def _trained_indices(config: Mapping[str, Any]) -> list[int]:
    """Ids of the tokens whose embeddings an adapter trains, from `trainable_token_indices` of its configuration."""
    indices = config.get("trainable_token_indices") or []
    return [i for each in indices.values() for i in each] if isinstance(indices, dict) else list(indices)


def expect_used(model: PeftModel, adapter: Adapter) -> None:
    """Checks that the model uses every weight in the adapter's file, and that the file has every weight of the adapter.

    PEFT silently drops weights for which the model has no module, and fills missing ones with initial values.

    Raises:
        InputError: the names of the weights differ, as for the wrong base model.
    """
    from peft import get_peft_model_state_dict

    stored = {_WRAPPERS.sub("", name) for name in stored_shapes(adapter.folder) if REFERENCE_ADAPTER not in name}
    expected = {_WRAPPERS.sub("", name) for name in get_peft_model_state_dict(model, save_embedding_layers=False)}
    known = expected | {_WRAPPERS.sub("", name) for name in model.state_dict()}
    fix = "name the base that the adapter was trained on with base_model (--base_model)"
    for names, problem in ((stored - known, "have no place in the base model"), (expected - stored, "are not there")):
        if names:
            some = ", ".join(sorted(names)[:3])
            problem = f"{len(names)} of the adapter's weights {problem}: {some}"
            raise InputError(problem, where=str(adapter.folder), fix=fix)
