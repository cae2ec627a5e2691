"""Records of a run for people: `run.json` (command, settings, versions, data) and the facts of the model card.

Resuming compares the identity in the checkpoint's manifest, not these files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo.disk import write_file
from srpo.model.weights.card import Card, portable
from srpo.secrets import redacted, redacted_command
from srpo.train.dataset import TreeDataset
from srpo.train.view import TrainerView
from srpo.versions import versions

RECORD_FILE = "run.json"
_OF_TIME = re.compile(r"runtime|per_second|^epoch$|^step$")


def write_record(
    folder: Path, *, command: Sequence[str], settings: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `run.json`, with secrets redacted, and returns its contents.

    Args:
        command: words of the command line; empty for a run from Python.
        settings: all settings of the run by name, defaults included.
        data: facts about the training data, from `data_of`.

    Raises:
        OutputError: the file cannot be written.
    """
    record = {
        "format": 1,
        "command": redacted_command(command),
        "data": redacted(dict(data)),
        "versions": {name: version for name, version in versions().items() if version},
        "settings": redacted(dict(settings)),
    }
    write_file(folder / RECORD_FILE, (json.dumps(record, indent=2, default=str) + "\n").encode())
    return record


def data_of(source: object, pairs: TreeDataset) -> dict[str, Any]:
    """Returns facts about training data for `run.json`: source, number of pairs, sha256 of their token trees."""
    name = str(source) if isinstance(source, str | Path) else "rows given in Python"
    return {"source": name, "pairs": len(pairs), "sha256": pairs.digest()}


def card_of(trainer: TrainerView) -> Card:
    """Returns the model card for a trainer's model as it is now."""
    facts: dict[str, Any] = {
        "reference": trainer.reference.kind,
        "revision template": trainer.renderer.template.name,
    }
    if trainer.train_dataset is not None:
        data = data_of(trainer.source, trainer.train_dataset)
        facts |= {"data": portable(data["source"]), "pairs": data["pairs"]}
        facts["data sha256, of the token trees"] = data["sha256"]
    facts["optimiser steps"] = trainer.state.global_step
    model = trainer.accelerator.unwrap_model(trainer.model)
    return Card(
        base=getattr(model.config, "_name_or_path", "") or "",
        adapter=hasattr(model, "peft_config"),
        settings=trainer.args.to_dict(),
        facts=facts,
        results=_results(trainer.state.log_history),
        command=trainer.command,
    )


def _results(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the last metrics of training and of evaluation in a trainer's log history; timings are left out."""
    found: dict[str, float] = {}
    for name in ("train_loss", "loss", "eval_loss"):
        last: Mapping[str, Any] = next((logs for logs in reversed(history) if name in logs), {})
        found |= {key: value for key, value in last.items() if not _OF_TIME.search(key)}
    return found
