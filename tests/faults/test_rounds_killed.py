"""`srpo rounds` killed at ten moments of a run: it ends with the weights of one left alone; no label is asked twice.

The judge writes down what it is asked. It kills its own process at a call that is told to it; at the other moments the
process is killed from outside as soon as a file of the run is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, sums, untrained_base, write_rows

JUDGE = """
import json, os, signal

def digits(prompt, answer, gold):
    asked = sum(1 for _ in open("asked.jsonl")) if os.path.exists("asked.jsonl") else 0
    if asked == int(os.environ.get("KILLED_AT", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    with open("asked.jsonl", "a") as file:
        file.write(json.dumps([prompt, answer]) + "\\n")
    return sum(a == b for a, b in zip(answer, gold)) / max(len(answer), len(gold))

class Digits:
    identity = "digits"

    def compare(self, comparisons):
        from srpo.judge.verdict import Verdict
        for each in comparisons:
            one = digits(each.prompt, each.first + " " + each.second, each.gold)
            first, second = (sum(a == b for a, b in zip(text, each.gold)) for text in (each.first, each.second))
            yield Verdict(0.5 + 0.5 * ((first > second) - (first < second)))

judge = Digits()
"""
SETTINGS = """
model_name_or_path: base
dataset_name: pairs.jsonl
max_steps: 4
per_device_train_batch_size: 4
learning_rate: 0.001
beta: 0.1
use_cpu: true
report_to: none
save_steps: 2
disable_tqdm: true
rounds: 2
sample_prompts: prompts.jsonl
sample_max_new_tokens: 4
labels_per_round: 30
round_steps: 4
validation_prompts: validation.jsonl
validation_revisions: 1
patience: 5
judge: my_judge:judge
"""
# A file whose being there is the moment, or the number of the judge's call.
MOMENTS: tuple[str | int, ...] = (
    "round0/model/run.json",
    "round0/model/checkpoint-2",
    "round0/validation.jsonl",
    "round1/trails.jsonl",
    21,
    44,
    "round1/pairs.jsonl",
    "round1/model/checkpoint-2",
    "round2/trails.jsonl",
    "round2/model/checkpoint-4",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    untrained_base(BaseConfig(digits=2, hidden=24, layers=1, heads=2)).save_pretrained("base")
    carry_tokenizer().save_pretrained("base")
    TEMPLATE.save(Path("base"))
    rows = sums(40, "in", digits=2, seed=1)
    write_rows(Path("pairs.jsonl"), [{**row, "chosen": row["gold"], "rejected": "000"} for row in rows])
    write_rows(Path("prompts.jsonl"), sums(20, "in", digits=2, seed=2))
    write_rows(Path("validation.jsonl"), sums(10, "in", digits=2, seed=3))
    Path("my_judge.py").write_text(JUDGE)
    Path("rounds.yaml").write_text(SETTINGS)
    return tmp_path


def command(out: str, killed_at: int = -1) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "srpo", "rounds", "--config", "rounds.yaml", "--output_dir", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KILLED_AT": str(killed_at), "PYTHONPATH": os.pathsep.join([".", *sys.path])},
    )


def killed(out: str, moment: str | int) -> bool:
    """Runs until the moment and kills; whether the process was still running then."""
    process = command(out, moment if isinstance(moment, int) else -1)
    if isinstance(moment, str):
        while process.poll() is None and not Path(out, moment).exists():
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def weights(out: str) -> Iterator[str]:
    for number in range(3):
        yield hashlib.sha256(Path(out, f"round{number}/model/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.sweep
def test_rounds_killed_at_ten_moments_end_with_the_same_files(place: Path) -> None:
    whole = command("whole")
    said, error = whole.communicate()
    assert whole.returncode == 0, error
    Path("asked.jsonl").unlink()
    assert all(killed("cut", moment) for moment in MOMENTS)
    last = command("cut")
    again, error = last.communicate()
    assert last.returncode == 0, error
    assert list(weights("cut")) == list(weights("whole"))
    asked = Counter(Path("asked.jsonl").read_text().splitlines())
    assert len(asked) > 60
    assert max(asked.values()) == 1
    accounts = [json.loads(Path(out, "rounds.json").read_text()) for out in ("cut", "whole")]
    for ours, theirs in zip(*accounts, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    lines = [[line for line in each.splitlines() if line.startswith("round ")] for each in (again, said)]
    assert [len(each) for each in lines] == [3, 3]


@pytest.mark.sweep
def test_without_the_verdict_cache_labels_are_judged_again(place: Path) -> None:
    """The control: what the file is for."""
    assert killed("cut", 44)
    Path("cut/verdicts.jsonl").unlink()
    last = command("cut")
    last.communicate()
    assert last.returncode == 0
    assert max(Counter(Path("asked.jsonl").read_text().splitlines()).values()) > 1
