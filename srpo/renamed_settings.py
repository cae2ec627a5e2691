"""Maps names of settings in TRL, older transformers and other trainers to their name in srpo, or to why it has none.

Suggestions by spelling alone mislead: `--lora_rank` would suggest `--local_rank` instead of `--lora_r`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Name of a setting in other trainers → name in srpo. docs/from-dpo.md lists the names of TRL.
RENAMED = {
    # TRL
    "torch_dtype": "dtype",
    "dataset_config_name": "dataset_config",
    "generate_during_eval": "eval_revisions",
    "gradient_checkpointing_use_reentrant": "gradient_checkpointing_kwargs",
    "loss_type": "objective",
    "ref_model": "ref_model_name_or_path",
    # transformers before 5
    "evaluation_strategy": "eval_strategy",
    "adafactor": "optim",
    "bf16_backend": "bf16",
    "dispatch_batches": "accelerator_config",
    "split_batches": "accelerator_config",
    "fp16_backend": "fp16",
    "half_precision_backend": "fp16",
    "fsdp_min_num_params": "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config",
    "include_inputs_for_metrics": "include_for_metrics",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "tpu_metrics_debug": "debug",
    "warmup_ratio": "warmup_steps",
    "xpu_backend": "ddp_backend",
    # Axolotl, LLaMA-Factory, Unsloth and common usage
    "adapter": "use_peft",
    "base_model_name_or_path": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "cutoff_len": "max_length",
    "data_path": "dataset_name",
    "dataset": "dataset_name",
    "epochs": "num_train_epochs",
    "eval_dataset": "eval_dataset_name",
    "finetuning_type": "use_peft",
    "flash_attn": "attn_implementation",
    "learning_rate_scheduler": "lr_scheduler_type",
    "lora_dropout_p": "lora_dropout",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_new_token": "max_new_tokens",
    "max_seq_length": "max_length",
    "max_tokens": "max_new_tokens",
    "micro_batch_size": "per_device_train_batch_size",
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "num_epochs": "num_train_epochs",
    "num_revisions": "revisions",
    "optimizer": "optim",
    "output": "output_dir",
    "pref_beta": "beta",
    "pref_loss": "objective",
    "rl": "objective",
    "sequence_len": "max_length",
    "target_modules": "lora_target_modules",
    "train_batch_size": "per_device_train_batch_size",
    "train_file": "dataset_name",
    "validation_file": "eval_dataset_name",
    "wandb_project": "project",
}
_DPO = "a variant of DPO's loss, which the objective does not have"
_ALWAYS = "has no alternative any more"
# Settings of other trainers that srpo lacks → reason.
NOT_OFFERED = {
    "activation_offloading": "not built",
    "base_model_attribute_name": "a model's inner layers are found without it",
    "dataset_streaming": "pass a stream to SRPOTrainer as `train_dataset`, with max_steps",
    "device": "a GPU is used where there is one; `--use_cpu` or CUDA_VISIBLE_DEVICES choose otherwise",
    "discopop_tau": _DPO,
    "eos_token": "the terminator is the one of the tokenizer or its chat template",
    "f_alpha_divergence_coef": _DPO,
    "f_divergence_type": _DPO,
    "force_use_ref_model": "ref_model_name_or_path names a reference, with an adapter or without",
    "group_by_length": "rows are token trees, which have no one length",
    "ignore_bias_buffers": "not needed",
    "include_tokens_per_second": "rates are logged with every step",
    "is_encoder_decoder": "models are decoders",
    "jit_mode_eval": _ALWAYS,
    "label_pad_token_id": "packed trees have no padding",
    "label_smoothing": "the objective compares whole answers and has no labels",
    "ld_alpha": _DPO,
    "logging_dir": "loggers have settings of their own; metrics.jsonl is in output_dir",
    "lora_task_type": "adapters are for causal language models",
    "loss_weights": "alpha mixes the two terms of the objective",
    "max_completion_length": "no answer is cut; max_length limits whole sequences",
    "max_prompt_length": "max_length limits whole sequences, and truncate=prompt cuts the prompts of longer ones",
    "max_target_length": "no answer is cut; max_length limits whole sequences",
    "model_adapter_name": "the reference under an adapter is its base, or a frozen copy of the adapter",
    "mp_parameters": _ALWAYS,
    "overwrite_output_dir": "a finished run is never overwritten; `--resume` goes on with an interrupted one",
    "pad_token": "the tokenizer's own; packed trees have no padding",
    "padding_free": "packed trees have no padding",
    "padding_value": "packed trees have no padding",
    "past_index": _ALWAYS,
    "ref_adapter_name": "the reference under an adapter is its base, or a frozen copy of the adapter",
    "ref_model_init_kwargs": "a reference is loaded with model_init_kwargs; SRPOTrainer takes a loaded `ref_model`",
    "reference_free": "SRPO's objective needs the reference",
    "rpo_alpha": _DPO,
    "sanity_check": "`srpo check` shows rows before training",
    "save_safetensors": _ALWAYS,
    "sharded_ddp": "fsdp and deepspeed replace it",
    "tools": "a column of the rows",
    "tpu_num_cores": _ALWAYS,
    "truncation_mode": "whole answers are kept: truncate=prompt cuts prompts, bad_rows=skip leaves long rows out",
    "use_ipex": _ALWAYS,
    "use_legacy_prediction_loop": _ALWAYS,
    "use_liger_loss": "log-probs are computed in slices of the vocabulary without it",
    "use_logits_to_keep": "logits of the prompt are never made",
    "use_mps_device": "an Apple GPU is used where there is one",
    "use_weighting": _DPO,
}


def remedies(unknown: Iterable[str], known: Iterable[str], prefix: str = "") -> str:
    """Returns advice on unknown settings: the name in srpo, the reason for its absence, or the nearest spelling.

    Args:
        unknown: names that are no settings, without dashes.
        known: names of all settings.
        prefix: text before each name in the remedies: "--" for flags.

    Returns:
        The remedies, each with its name if there are several; "" if nothing is near.

    Example:
        >>> remedies(["torch_dtype"], ["dtype", "beta"], "--")
        "did you mean '--dtype'?"
        >>> remedies(["lr", "seed_"], ["learning_rate", "seed"])
        "lr: did you mean 'learning_rate'?; seed_: did you mean 'seed'?"
    """
    known, names = list(known), list(unknown)
    found = [(name, _remedy(name.replace("-", "_"), known, prefix)) for name in names]
    return "; ".join(f"{prefix}{name}: {fix}" if len(names) > 1 else fix for name, fix in found if fix)


def _remedy(name: str, known: list[str], prefix: str) -> str:
    if RENAMED.get(name) in known:
        return f"did you mean '{prefix}{RENAMED[name]}'?"
    if name in NOT_OFFERED and "per_device_train_batch_size" in known:  # settings of a training
        return f"not offered: {NOT_OFFERED[name]}"
    elsewhere = [old for old, new in RENAMED.items() if new in known]
    near = difflib.get_close_matches(name, [*known, *elsewhere], n=1)
    return f"did you mean '{prefix}{RENAMED.get(near[0], near[0])}'?" if near else ""
