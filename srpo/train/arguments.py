"""Dataclasses of a training run's settings besides `SRPOConfig`: model, data, and the run itself. Names are TRL's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from srpo.data.source import Source, columns_of
from srpo.settings import expect_known, expect_valid, options, setting, shared
from srpo.settings_file import read_settings as read_file
from srpo.train.config import DATA, EVALUATION, MODEL, PRESETS, REFERENCE, RUN, SRPOConfig


@dataclass
class ModelArguments:
    """Settings that choose the model to train and its adapter."""

    model_name_or_path: str | None = setting(None, "Folder or hub name of the model to train.", group=MODEL)
    ref_model_name_or_path: str | None = setting(
        None, "Folder or hub name of another reference; unset: the model as it is before training.", group=REFERENCE
    )
    model_revision: str = setting("main", "Branch, tag or commit of the model on the hub.", group=MODEL)
    base_model: str | None = shared("base_model", group=MODEL)
    dtype: str | None = shared(
        "dtype",
        None,
        "Precision of frozen weights: float32, bfloat16, float16, or auto: as stored; trained ones are float32. Unset: "
        "bfloat16 for the base of a LoRA adapter where the device computes it fast, else float32.",
        group=MODEL,
    )
    attn_implementation: str | None = setting(
        None, "Attention implementation of transformers, for everything except packed log-probs.", group=MODEL
    )
    use_peft: bool = setting(False, "Train a LoRA adapter instead of all weights.", group=MODEL)
    lora_r: int = setting(16, "Rank of the LoRA adapter.", group=MODEL)
    lora_alpha: int = setting(32, "Scale of the LoRA adapter.", group=MODEL)
    lora_dropout: float = setting(0.05, "Dropout of the LoRA adapter.", group=MODEL)
    lora_target_modules: list[str] | None = setting(
        None, "Modules that get a LoRA adapter, or all-linear; unset: peft's choice for the model.", group=MODEL
    )
    lora_target_parameters: list[str] | None = setting(
        None, "Parameters that get a LoRA adapter, such as the experts' weights in a layer of experts.", group=MODEL
    )
    lora_modules_to_save: list[str] | None = setting(
        None, "Modules trained whole beside the LoRA adapter, such as lm_head.", group=MODEL
    )
    use_rslora: bool = setting(False, "Scale the LoRA adapter by lora_alpha/√r instead of lora_alpha/r.", group=MODEL)
    use_dora: bool = setting(
        False, "Train direction and length of each weight apart (DoRA, arXiv 2402.09353).", group=MODEL
    )
    load_in_4bit: bool = setting(
        False, "Keep the frozen base of an adapter in 4 bits (QLoRA), by bitsandbytes.", group=MODEL
    )
    load_in_8bit: bool = setting(False, "Keep the frozen base of an adapter in 8 bits, by bitsandbytes.", group=MODEL)
    bnb_4bit_quant_type: str = setting("nf4", "Values of a base in 4 bits.", group=MODEL, choices=("nf4", "fp4"))
    use_bnb_nested_quant: bool = setting(
        False, "Quantise the scales of a base in 4 bits as well; saves 0.4 bits per weight.", group=MODEL
    )
    bnb_4bit_quant_storage: str | None = setting(
        None,
        "Type that stores the base in 4 bits; FSDP needs that of the other weights. Unset: uint8.",
        group=MODEL,
        choices=("uint8", "float16", "bfloat16", "float32"),
    )

    def __post_init__(self) -> None:
        expect_valid(self)


@dataclass
class DataArguments:
    """Settings that choose the preference pairs for training and evaluation, and how they are read."""

    dataset_name: str | None = setting(
        None, "A JSONL, JSON, CSV or Parquet file of pairs, or a folder or name that `datasets` can load.", group=DATA
    )
    dataset_config: str | None = shared("dataset_config", group=DATA)
    dataset_train_split: str = shared("dataset_train_split", group=DATA)
    dataset_test_split: str = shared("dataset_test_split", group=DATA)
    eval_dataset_name: str | None = shared("eval_dataset_name", group=DATA)
    map: str | None = shared("map", group=DATA)
    rankings: str = shared("rankings", group=DATA)

    def source(self) -> Source:
        """Returns the source of the training pairs."""
        name, columns = str(self.dataset_name), columns_of(self.map)
        return Source(name, columns, self.rankings, self.dataset_train_split, self.dataset_config)


@dataclass
class RunArguments:
    """Settings of a run: its preset, resuming, and the drafts and revisions drawn during training."""

    preset: str | None = setting(None, "Published configuration: " + ", ".join(PRESETS), group=RUN)
    launch: str | None = setting(
        None,
        "Start processes on this machine: single, ddp (each keeps all weights), fsdp2 (weights split), or by DeepSpeed "
        "zero2 (optimiser split), zero3 (weights split).",
        group=RUN,
    )
    processes: int | None = setting(None, "Number of processes of `launch`; unset: one per GPU.", group=RUN, least=1)
    resume: bool = setting(False, "Resume from the newest checkpoint in output_dir.", group=RUN)
    eval_revisions: int | None = setting(
        None, "Revisions of each draft at every evaluation; unset: no drafts are drawn.", group=EVALUATION, least=0
    )
    eval_judge: str | None = setting(
        None, "Judge of those drafts and revisions: exact_match, rouge_l, module:function, …", group=EVALUATION
    )
    eval_prompts: int = setting(64, "Number of prompts to answer at each evaluation.", group=EVALUATION, least=1)
    eval_temperature: float = setting(
        1.0, "Sampling temperature of drafts and revisions at each evaluation; 0 decodes greedily.", group=EVALUATION
    )
    eval_max_new_tokens: int = setting(
        128, "Largest number of tokens in each answer drawn at an evaluation.", group=EVALUATION, least=1
    )

    def __post_init__(self) -> None:
        expect_valid(self)


GROUPS: tuple[Any, ...] = (SRPOConfig, ModelArguments, DataArguments, RunArguments)


def known_settings(more: Iterable[Any] = ()) -> list[str]:
    """Returns the names of all settings that a settings file of a training may hold.

    Args:
        more: further dataclasses of settings besides those of `srpo train`.
    """
    own = [each.name for group in GROUPS for each in fields(group) if each.init]
    return own + [option.name for kind in more for option in options(kind)]


def read_settings(path: str, more: Iterable[Any] = ()) -> dict[str, Any]:
    """Reads a flat YAML file of training settings.

    Args:
        path: the YAML file.
        more: further dataclasses whose settings the file may hold.

    Raises:
        InputError: the file is missing.
        ConfigError: not a flat mapping, or an unknown key.
    """
    found = read_file(path)
    settings = {key: value for key, value in found.items() if key != "evaluate"}  # a section for `srpo evaluate`
    expect_known(settings, known_settings(more), where=path, verb="train")
    return settings
