"""Load of `srpo serve`: requests a second, latencies and memory with one client and with many; the server's overhead.

    python -m benchmarks.serving --clients 64 --seconds 60 [--model FOLDER]

The model is the carry task's base without training, or the one in `--model`; greedy, one draft and one revision of 8
tokens at most. A client sends its next request when the last one is answered.

The overhead compares 32 requests sent at once with one call of the Reviser on the same 32 prompts, in turn: by the
clock, and by the processor time of the answering process. On a machine that others use only the second is comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from srpo.revise.reviser import Reviser
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, untrained_base

TOKENS = 8


def model_folder(folder: Path) -> Path:
    """Saves the model, its tokenizer and its template."""
    untrained_base(BaseConfig()).save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)
    return folder


def started(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server on a free port and waits until it answers."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--port", str(port), "--name", "base", "--temperature", "0"]
    command = [sys.executable, "-m", "srpo", *words, "--max_new_tokens", str(TOKENS)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(f"{url}/health")
            return process, url
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def cpu(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def batches(url: str) -> float:
    """Number of batches that the server has drawn so far."""
    import httpx

    lines = httpx.get(f"{url}/metrics", timeout=120).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("srpo_batch_size_count"))


async def load(url: str, clients: int, seconds: float, pid: int) -> dict[str, Any]:
    """Sends requests from `clients` clients for some seconds; returns rates, latencies, errors and memory.

    Args:
        pid: process of the server, whose memory and processor time are measured.
    """
    import httpx

    seen: list[float] = []
    errors, numbers, until = 0, itertools.count(), time.monotonic() + seconds
    memory: list[tuple[float, float]] = []

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal errors
        while time.monotonic() < until:
            number = next(numbers)
            body = {"model": "base", "prompt": f"{number % 9973}+{number % 7919}="}
            began = time.monotonic()
            found = await http.post(f"{url}/v1/completions", json=body)
            seen.append(time.monotonic() - began)
            errors += found.status_code != 200

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append((time.monotonic(), resident(pid)))
            await asyncio.sleep(1)

    began, spent, drawn = time.monotonic(), cpu(pid), batches(url)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits, timeout=120) as http:
        await asyncio.gather(watch(), *(client(http) for _ in range(clients)))
    ranked = sorted(seen)
    half = memory[len(memory) // 2 :]  # the first half fills caches
    slope = statistics.linear_regression(*zip(*half, strict=True)).slope if len(half) > 2 else float("nan")
    return {
        "clients": clients,
        "requests": len(seen),
        "errors": errors,
        "a second": len(seen) / (time.monotonic() - began),
        "cpu ms a request": 1000 * (cpu(pid) - spent) / len(seen),
        "answers a batch": 2 * len(seen) / (batches(url) - drawn),
        "p50 ms": 1000 * ranked[len(ranked) // 2],
        "p99 ms": 1000 * ranked[int(0.99 * (len(ranked) - 1))],
        "MB at the end": memory[-1][1],
        "MB a minute": 60 * slope,
    }


async def at_once(url: str, prompts: list[str]) -> list[str]:
    """Sends one request per prompt, all at once; returns their answers."""
    import httpx

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=len(prompts)), timeout=600) as http:
        bodies = [{"model": "base", "prompt": prompt} for prompt in prompts]
        found = await asyncio.gather(*(http.post(f"{url}/v1/completions", json=body) for body in bodies))
    return [each.json()["choices"][0]["text"] for each in found]


def overhead(url: str, pid: int, folder: Path, seconds: float, batch: int) -> dict[str, float]:
    """Answers batches through the server and by the Reviser in turn; returns the median seconds of a batch."""
    reviser = Reviser(str(folder), batch_size=batch)
    options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": TOKENS}
    rounds: list[tuple[float, ...]] = []
    equal, until = 0, time.monotonic() + seconds
    while time.monotonic() < until or len(rounds) < 2:
        prompts = [f"{len(rounds) * batch + i}+{i}=" for i in range(batch)]
        times = [time.monotonic(), cpu(pid)]
        served = asyncio.run(at_once(url, prompts))
        times += [time.monotonic(), cpu(pid), cpu(os.getpid())]
        trails = reviser.revise(prompts, 1, **options)
        times += [time.monotonic(), cpu(os.getpid())]
        began, spent, middle, after, own, ended, owned = times
        rounds.append((middle - began, after - spent, ended - middle, owned - own))
        equal += sum(text == trail.after(1).text for text, trail in zip(served, trails, strict=True))
    names = ("server", "server, processor", "Reviser", "Reviser, processor")
    found = {name: statistics.median(column) for name, column in zip(names, zip(*rounds[1:], strict=True), strict=True)}
    return {"batches": len(rounds) - 1, **found, "equal answers": equal / (batch * len(rounds))}


def main() -> None:
    """Prints one line for each load, the ratio of their rates, and the overhead of the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", type=Path, help="folder of a saved model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or model_folder(Path(temporary))
        process, url = started(folder)
        try:
            asyncio.run(load(url, args.clients, 3.0, process.pid))  # warm
            one = asyncio.run(load(url, 1, args.seconds / 3, process.pid))
            many = asyncio.run(load(url, args.clients, args.seconds, process.pid))
            more = overhead(url, process.pid, folder, args.seconds / 2, 32)
        finally:
            process.terminate()
            process.wait()
    for row in (one, many):
        print(json.dumps({key: round(value, 2) for key, value in row.items()}))
    print(f"throughput of {args.clients} clients against one: {many['a second'] / one['a second']:.2f}")
    print(json.dumps({key: round(value, 3) for key, value in more.items()}))
    by_clock, by_processor = (more["server" + part] / more["Reviser" + part] - 1 for part in ("", ", processor"))
    print(f"overhead of the server on 32 requests at once: {by_clock:.1%} by the clock, {by_processor:.1%} processor")


if __name__ == "__main__":
    main()
