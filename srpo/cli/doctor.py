"""`srpo doctor`: prints the tables of `srpo env`, then advice on this machine: good, missing and slow parts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from srpo.cli.flags import parse

# Package → what it is for, and the command that installs it.
OPTIONAL = {
    "httpx": ("--engine openai and chat, and the judge llm", "pip install 'srpo[server]'"),
    "vllm": ("--engine vllm", "pip install vllm"),
    "gguf": ("GGUF files", "pip install 'srpo[gguf]'"),
    "math_verify": ("the judge math", "pip install 'srpo[judges]'"),
    "rouge_score": ("the judge rouge", "pip install 'srpo[rouge]'"),
    "shtab": ("srpo completion", "pip install 'srpo[completion]'"),
}
FREE_GIB = 20.0  # a 3B model, its optimiser and two checkpoints do not fit into less


class Advice(NamedTuple):
    """One finding about this machine: `kind` is "good", "missing" or "slow", `text` the finding and its remedy."""

    kind: Literal["good", "missing", "slow"]
    text: str


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo doctor`; it has no flags of its own."""


@dataclass(frozen=True)
class Machine:
    """Facts about a machine, from which `advice` follows.

    Attributes:
        devices: device name, such as "cuda:0" → its facts, as `srpo env --json` prints them.
        cores: number of processor cores of this process.
        free_gib: name of a folder → free space there, in GiB.
        absent: optional packages that are not installed.
        offline: true if HF_HUB_OFFLINE switches downloads off.
    """

    devices: Mapping[str, Mapping[str, Any]]
    cores: int
    free_gib: Mapping[str, float]
    absent: tuple[str, ...] = ()
    offline: bool = False


def advice(machine: Machine) -> Iterator[Advice]:
    """Yields the findings about a machine: devices first, then disk space, downloads and missing packages."""
    cards = {name: facts for name, facts in machine.devices.items() if name.startswith("cuda")}
    for name, facts in cards.items():
        if facts["bf16"]:
            yield Advice("good", f"{name} ({facts['name']}): back-end flex, bfloat16.")
        else:
            text = f"{name} ({facts['name']}) has no bfloat16: train with --fp16 true or in float32."
            yield Advice("slow", text)
        if facts["memory_gib"] < 16:
            text = f"{name} has {facts['memory_gib']:g} GiB: train an adapter (--use_peft)."
            yield Advice("slow", text)
    if len(cards) > 1:
        yield Advice("slow", f"{len(cards)} GPUs: start `torchrun --nproc_per_node {len(cards)} -m srpo train …`.")
    if not cards and "mps" in machine.devices:
        yield Advice("slow", "No CUDA GPU: training runs on mps in float32 with the back-end path.")
    elif not cards:
        yield Advice("slow", "No GPU: training above 0.5B parameters takes hours or days; `srpo demo` needs no GPU.")
        threads = machine.devices["cpu"]["threads"]
        if threads < machine.cores:
            yield Advice("slow", f"torch uses {threads} of {machine.cores} cores: OMP_NUM_THREADS limits it.")
    for folder, free in machine.free_gib.items():
        if free < FREE_GIB:
            text = f"{folder}: {free:.1f} GiB are free; a 3B model with two checkpoints needs {FREE_GIB:g} GiB."
            yield Advice("slow", text)
    if machine.offline:
        yield Advice("missing", "HF_HUB_OFFLINE is set: models and data sets by name are not downloaded.")
    for package in machine.absent:
        use, command = OPTIONAL[package]
        if package == "vllm" and not cards:
            continue  # of no use without a GPU
        yield Advice("missing", f"{package}, for {use}: {command}")


def this_machine() -> Machine:
    """Returns the facts about the machine that runs this process: devices, cores, free space, missing packages."""
    import torch

    from srpo.cli.env import devices

    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    folders = {"the cache of the hub": hub, "this folder": Path.cwd()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        devices=devices(torch),
        cores=cores,
        free_gib={name: _free(folder) for name, folder in folders.items()},
        absent=tuple(name for name in OPTIONAL if importlib.util.find_spec(name) is None),
        offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    )


def _free(folder: Path) -> float:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free / 2**30


def main(argv: list[str]) -> int:
    """Runs `srpo doctor`: prints the tables of `srpo env`, then advice on this machine; returns 0."""
    parse("doctor", "What srpo would use on this machine, what is missing, what is slow.", Arguments, argv)

    from rich.console import Console

    from srpo.cli.env import main as env

    env([])
    console = Console(highlight=False)
    styles = {"good": "green", "missing": "yellow", "slow": "yellow"}
    console.print("advice")
    for kind, text in advice(this_machine()):
        console.print(f"  [{styles[kind]}]{kind:<8}[/] ", end="")
        console.print(text, markup=False, soft_wrap=True)
    return 0
