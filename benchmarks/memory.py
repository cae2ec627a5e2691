"""Peak memory of the head and of a training step, each case in a process of its own.

    python -m benchmarks.memory head                         vocabularies of 32k, 128k, 256k; trained and frozen heads
    python -m benchmarks.memory step                         LoRA rank 16: packed and flat, with and without checkpoints

Peak is the peak of resident memory minus the memory with weights and inputs loaded, in MiB; it includes the gradient of
the weights. `head` compares a softmax over [P, V], TRL's chunked kernel and ours, on 1,536 scored positions of hidden
size 512; `step` takes one pair of (1024, 128) through the largest Llama that is given room, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shapes import llama, trees_of
from srpo.model.packed import head as packed_head
from srpo.model.packed.attention import serving
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import sequence_logps
from srpo.model.packed.head import Scored, answer_logps
from srpo.model.packed.tiles import After, TiledLogps

POSITIONS, HIDDEN = 1536, 512
HEADS = ("softmax", "linear_cross_entropy", "trl", "srpo", "srpo stored")
STEP_VOCABULARY = 32_000


def main() -> None:
    """Runs every case in a process of its own, and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("head", "step"))
    parser.add_argument("--vocabularies", default="32000,128256,256000")
    parser.add_argument("--dtype", default="float32", help="of the head's weight and hidden states")
    parser.add_argument("--shape", default="1024,128")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one case, in this process
    args = parser.parse_args()
    if args.case:
        torch.set_num_threads(1)
        print(json.dumps(_head(*args.case.split(","), args.dtype) if args.what == "head" else _step(args)))
        return
    cases = (
        [f"{v},{way},{head}" for v in args.vocabularies.split(",") for head in ("trained", "frozen") for way in HEADS]
        if args.what == "head"
        else [f"{backend},{kept}" for backend in ("path", "flat") for kept in ("all", "checkpoints")]
    )
    for case in cases:
        done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--case", case], check=False)
        if done.returncode:
            print(json.dumps({"case": case, "exit_code": done.returncode}), flush=True)


def peak_of(run: Callable[[], Any]) -> tuple[float, float]:
    """Calls `run`; returns the peak of resident memory above the memory before, in MiB, and processor seconds."""
    page, peak, stop = 4096, 0, threading.Event()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, resident())

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    peak = max(peak, resident())
    stop.set()
    watcher.join()
    return (peak - before) / 2**20, seconds


# ---------------------------------------------------------------------- the head


class HeadAlone(nn.Module):
    """A causal language model that has only a head: its forward pass takes hidden states."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        from transformers import PreTrainedConfig

        self.config = PreTrainedConfig(vocab_size=vocabulary)
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.02)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, hidden_1PD: Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.lm_head(hidden_1PD))


def _head(vocabulary: str, way: str, head: str, dtype: str) -> dict[str, Any]:
    torch.manual_seed(0)
    kind: torch.dtype = getattr(torch, dtype)
    model = HeadAlone(int(vocabulary)).requires_grad_(head == "trained").to(kind)
    hidden_PD = torch.randn(POSITIONS, HIDDEN, dtype=kind, requires_grad=True)
    packed_head.KEPT_SHARE = float(way == "srpo stored")
    token_P = torch.randint(0, int(vocabulary), (POSITIONS,))
    weight_VD, place_P = model.lm_head.weight, torch.arange(POSITIONS)
    signs_P = torch.tensor([1.0, -0.9, 0.8, -0.7, 0.6, -0.5]).repeat_interleave(POSITIONS // 6)

    def logps() -> Tensor:
        if way == "softmax":
            return -F.cross_entropy(hidden_PD @ weight_VD.T, token_P, reduction="none")
        if way == "linear_cross_entropy":  # since torch 2.13
            return -F.linear_cross_entropy(hidden_PD, weight_VD, token_P, reduction="none")
        if way == "trl":
            from trl.kernels import ChunkedLogProbFunction

            return ChunkedLogProbFunction.apply(
                hidden_PD, weight_VD, None, token_P, 1.0, 32768, None, 1.0, ("log_probs",)
            )[0]
        return answer_logps(model, lambda **_: model(hidden_PD[None]), Scored(place_P, place_P, token_P, POSITIONS))

    _warm_up(way)
    peak, seconds = peak_of(lambda: (logps().double() * signs_P).sum().div(64).backward())
    norms = {"hidden": hidden_PD.grad, "weight": weight_VD.grad}
    return {
        "vocabulary": int(vocabulary),
        "head": head,
        "dtype": dtype,
        "way": way,
        "peak_MiB": round(peak),
        "seconds": round(seconds, 2),
        "gradient_norms": {name: None if g is None else g.double().norm().item() for name, g in norms.items()},
    }


def _warm_up(way: str) -> None:
    """Runs a small forward and backward pass, so that libraries loaded by the first one are not in the peak."""
    if way == "trl":
        import trl.kernels  # noqa: F401
    small, weight = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    row = torch.arange(8)
    (TiledLogps.apply(small, weight, None, row, row, After()).sum() + F.cross_entropy(small @ weight, row)).backward()


# ---------------------------------------------------------------------- the step


def _step(args: argparse.Namespace) -> dict[str, Any]:
    backend, kept = args.case.split(",")
    x, y = map(int, args.shape.split(","))
    model = llama(vocabulary=STEP_VOCABULARY, hidden=args.hidden, layers=args.layers, lora=True)
    if kept == "checkpoints":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trees = trees_of([(x, y, y)], "turn", instruction=32, vocabulary=STEP_VOCABULARY)

    def run() -> None:
        with serving(model, backend):
            sequence_logps(model, Forest.plant(trees), backend).sum().backward()

    # Settling on path attention compares it with flat rows, which no later step does.
    from srpo.model.packed.backends import settle_backend

    with torch.no_grad():
        settle_backend(model, trees_of([(8, 4, 4)], "turn", instruction=4, vocabulary=STEP_VOCABULARY), backend)
    peak, seconds = peak_of(run)
    return {
        "backend": backend,
        "kept": kept,
        "weights_M": round(sum(p.numel() for p in model.parameters()) / 1e6),
        "shape": args.shape,
        "peak_MiB": round(peak),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
