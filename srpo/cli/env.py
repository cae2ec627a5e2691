"""`srpo env`: prints versions, devices and attention back-ends for a bug report, but no paths."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from srpo.cli.flags import parse
from srpo.settings import setting

# A copy of names in srpo/model, whose import needs a working transformers. tests/cli compares the copy.
BACKENDS = {
    "path": "any device; attention that is a plain softmax, windows included",
    "flex": "CUDA; the same models, one fused kernel",
    "cache": "any device, scoring alone; recurrent and convolution layers too",
    "flat": "any device, any causal model",
}


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo env`, which prints versions of libraries, devices and attention back-ends."""

    json: bool = setting(False, "Print one JSON object instead of tables.")


def devices(torch: ModuleType) -> dict[str, dict[str, Any]]:
    """Returns device name ("cpu", "cuda:0", "mps") → its facts.

    `memory_gib` is its memory in GiB; `bf16` is true if it computes in bfloat16 without emulation.

    Args:
        torch: the module torch, which this file does not import.
    """
    isa = torch.backends.cpu.get_cpu_capability()
    found: dict[str, dict[str, Any]] = {
        "cpu": {"name": platform.machine(), "isa": isa, "threads": torch.get_num_threads()}
    }
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        # torch.cuda.is_bf16_supported() describes the current device only, and counts emulation as support.
        memory = round(card.total_memory / 2**30, 1)
        found[f"cuda:{index}"] = {"name": card.name, "memory_gib": memory, "bf16": card.major >= 8}
    if torch.backends.mps.is_available():
        found["mps"] = {"name": platform.processor()}
    return found


def main(argv: list[str]) -> int:
    """Runs `srpo env`: prints versions of libraries, devices, and the attention back-ends path, flex, cache and flat.

    Returns:
        0.
    """
    args = parse("env", "Versions, devices and back-ends on this machine.", Arguments, argv)

    import torch

    from srpo.versions import versions

    report: dict[str, dict[str, Any]] = {"versions": versions(), "devices": devices(torch), "backends": BACKENDS}
    if args.json:
        print(json.dumps(report, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in report.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        for name, value in rows.items():
            shown = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            table.add_row(name, shown or "not installed")
        console.print(table)
    return 0
