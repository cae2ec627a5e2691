"""What a run tells of itself: `run.json`, with its command, settings, versions and data, and the model card.

For people. What resuming compares is not this file.
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
from srpo.versions import versions

RECORD_FILE = "run.json"
_OF_TIME = re.compile(r"runtime|per_second|^epoch$|^step$")


def write_record(
    folder: Path, *, command: Sequence[str], settings: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the record and returns it; no secret is in it.

    Args:
        command: the words of the command line; empty where there was none.
        settings: as they were resolved.
        data: what is known of the rows: their source, number and hash.

    Raises:
        OutputError: it cannot be written.
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


def data_of(trainer: Any) -> dict[str, Any]:
    """Where the pairs came from, how many there are, and the sha256 of what was made of them."""
    source, pairs = trainer.source, trainer.train_dataset
    told = str(source) if isinstance(source, str | Path) else "rows given in Python"
    return {"source": told, "pairs": len(pairs), "sha256": pairs.digest()}


def card_of(trainer: Any) -> Card:
    """The card of what a trainer would save now."""
    facts: dict[str, Any] = {
        "reference": trainer.reference.kind,
        "revision template": trainer.renderer.template.name,
    }
    if trainer.train_dataset is not None:
        data = data_of(trainer)
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
    """The last logs of training and of evaluation, without their timings."""
    found: dict[str, float] = {}
    for name in ("loss", "eval_loss"):
        last: Mapping[str, Any] = next((logs for logs in reversed(history) if name in logs), {})
        found |= {key: value for key, value in last.items() if not _OF_TIME.search(key)}
    return found
