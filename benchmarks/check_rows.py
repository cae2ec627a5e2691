"""Cost of `srpo check`: wall seconds, processor seconds and the memory of all its processes, over generated rows.

    python -m benchmarks.check_rows --rows 100000 --prompt 150 --answer 40 --repeat 3

Words are made of syllables and drawn by Zipf's law; the tokenizer is byte-level BPE of 8,192 tokens trained on them,
with a chat template. Each repetition starts with an empty store; `again` repeats the same command, `template` runs it
with another revision template.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
WORDS, VOCABULARY = 20_000, 8_192
LOOKS: dict[str, list[str]] = {"first": [], "again": [], "template": ["--revision_template", "turn"]}
EVERY = 0.1  # seconds between two looks at the memory


class Cost(NamedTuple):
    """Cost of one command: seconds by the clock and of processors; peak memory of all its processes in MB.

    `resident` counts the resident pages of each process, `proportional` divides shared pages among their processes.
    """

    wall: float
    cpu: float
    resident: float
    proportional: float


def main() -> None:
    """Measures and prints a line per command and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--prompt", type=int, default=150, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=40, help="tokens of an answer")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS), help="which commands to measure")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw = Drawn(random.Random(0))
        tokenizer = save_tokenizer(folder / "model", draw)
        per_word = len(tokenizer(draw.text(20_000))["input_ids"]) / 20_000
        words = (round(args.prompt / per_word), round(args.answer / per_word))
        with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(args.rows):
                row = {"prompt": draw.text(words[0]), "chosen": draw.text(words[1]), "rejected": draw.text(words[1])}
                file.write(json.dumps(row) + "\n")
        print(
            f"{args.rows} rows of {words[0]} and {words[1]} words, {per_word:.2f} tokens each; {os.cpu_count()} cores"
        )
        found: dict[str, list[Cost]] = {name: [] for name in args.looks}
        for turn in range(args.repeat):
            home = folder / f"home{turn}"
            for name in args.looks:
                cost = measured(folder, home, LOOKS[name])
                found[name].append(cost)
                print(f"  {name}: " + in_words(cost), flush=True)
        for name, costs in found.items():
            median = Cost(*map(statistics.median, zip(*costs, strict=True)))
            print(f"{name}, median of {len(costs)}: " + in_words(median))


class Drawn:
    """Draws texts of made-up words; the n-th most frequent word has a probability of about 1/n of the first."""

    def __init__(self, rng: random.Random) -> None:
        syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        self.words = [" " + "".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3)))) for _ in range(WORDS)]
        self.weights: list[float] = []
        total = 0.0
        for n in range(WORDS):
            total += 1 / (n + 3)
            self.weights.append(total)
        self.rng = rng

    def text(self, words: int) -> str:
        """Returns a text of `words` random words."""
        return "".join(self.rng.choices(self.words, cum_weights=self.weights, k=words)).strip()


def save_tokenizer(folder: Path, draw: Drawn) -> Any:
    """Trains a byte-level BPE tokenizer on drawn texts, gives it a chat template, saves it in `folder`, returns it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    texts = [draw.text(100) for _ in range(3_000)]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return tokenizer


def measured(folder: Path, home: Path, more: list[str]) -> Cost:
    """Runs one `srpo check` and returns its cost.

    Args:
        folder: holds the model and the pairs.
        home: folder of the caches.
        more: further flags.

    Raises:
        SystemExit: the command failed.
    """
    command = [sys.executable, "-m", "srpo", "check", "--dataset_name", str(folder / "pairs.jsonl"), "--json"]
    command += ["--model_name_or_path", str(folder / "model"), "--max_length", "4096", *more]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    most_resident = most_proportional = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as running:
        while running.poll() is None:
            resident, proportional = memory(running.pid)
            most_resident, most_proportional = max(most_resident, resident), max(most_proportional, proportional)
            time.sleep(EVERY)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:
        raise SystemExit(running.returncode)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, most_resident, most_proportional)


def memory(pid: int) -> tuple[float, float]:
    """Memory in MB of a process and its descendants: their resident pages summed, and with shared pages divided."""
    resident = proportional = 0.0
    waiting = [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            rollup = (process / "smaps_rollup").read_text()
            for task in (process / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ProcessLookupError):  # it has ended
            continue
        kb = {name: int(value) for name, value in re.findall(r"^(Rss|Pss):\s+(\d+) kB", rollup, re.MULTILINE)}
        resident, proportional = resident + kb.get("Rss", 0) / 1000, proportional + kb.get("Pss", 0) / 1000
    return resident, proportional


def in_words(cost: Cost) -> str:
    """Returns a cost as one line of text."""
    return (
        f"{cost.wall:.1f} s wall, {cost.cpu:.1f} s CPU, "
        f"{cost.resident:.0f} MB resident summed, {cost.proportional:.0f} MB with shared pages counted once"
    )


if __name__ == "__main__":
    main()
