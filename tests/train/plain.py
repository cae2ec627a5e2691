"""Rows, quick settings, and a plain second way to the six log-probs: a row at a time, the whole softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from srpo import SixLogps, SRPOConfig, SRPOTrainer
from tests.conftest import EOS, make_byte_tokenizer, make_tiny_llama

ASK = "\n\nA better answer:"  # what the plain template puts after a draft

# Prompts and answers of unlike lengths, one an extension of the other, non-ASCII, a shared beginning.
ROWS = [
    {"prompt": "Two and two? ", "chosen": "Four.", "rejected": "Five, I think."},
    {"prompt": "A colour: ", "chosen": "green", "rejected": "greenish"},
    {"prompt": "Sí o no? ", "chosen": "Sí, señor", "rejected": "no"},
    {"prompt": "Q", "chosen": "yes", "rejected": "y"},
    {"prompt": "Spell cat: ", "chosen": "c-a-t", "rejected": "k-a-t-t"},
    {"prompt": "A colour: ", "chosen": "blue", "rejected": "Monday"},
    {"prompt": "Count: 1 2 3 ", "chosen": "4 5", "rejected": "9"},
]


def sharp_llama(seed: int = 0, **changes: Any) -> Any:
    """A tiny model with opinions: random weights large enough that two of them are nats apart."""
    return make_tiny_llama(seed=seed, initializer_range=0.15, **changes)


def settings(folder: Path, **changes: Any) -> SRPOConfig:
    """Settings of a quick run on the CPU that logs every step and saves nothing."""
    quick: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 1,
        "beta": 0.1,
        "alpha": 0.3,
        "learning_rate": 1e-3,
    }
    return SRPOConfig(**{**quick, **changes})


def trainer(folder: Path, rows: Any = None, *, model: Any = None, **keywords: Any) -> SRPOTrainer:
    """A trainer of the tiny model on ROWS; `args` is a dict of changed settings."""
    args = settings(folder, **keywords.pop("args", {}))
    return SRPOTrainer(
        model=sharp_llama() if model is None else model,
        args=args,
        train_dataset=ROWS if rows is None else rows,
        processing_class=keywords.pop("processing_class", None) or make_byte_tokenizer(),
        **keywords,
    )


def flat_logp(model: Any, context: list[int], answer: list[int]) -> torch.Tensor:
    """log π(answer | context) in nats: one row, no padding, every logit, a loop over tokens."""
    logits = model(torch.tensor([context + answer])).logits[0].double().log_softmax(-1)
    return torch.stack([logits[len(context) + i - 1, token] for i, token in enumerate(answer)]).sum()


TOKENIZER = make_byte_tokenizer()


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def flat_six(model: Any, rows: list[dict[str, str]]) -> SixLogps:
    """The six log-probs of string rows under the plain template, [B] each."""
    columns: dict[str, list[torch.Tensor]] = {field: [] for field in SixLogps._fields}
    for row in rows:
        texts = {"w": row["chosen"], "l": row["rejected"]}
        for field, column in columns.items():
            answer, _, draft = field.partition("_given_")
            context = row["prompt"] + texts[draft] + ASK if draft else row["prompt"]
            column.append(flat_logp(model, ids_of(context), [*ids_of(texts[answer]), EOS]))
    return SixLogps(**{field: torch.stack(column) for field, column in columns.items()})


def logged(run: SRPOTrainer, key: str) -> list[float]:
    """Every value logged under that key, in order."""
    return [entry[key] for entry in run.state.log_history if key in entry]


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
