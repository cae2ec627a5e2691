"""No verb is silent: with a wait of no seconds each verb shows everything that a slow run would show.

`srpo.progress` decides when a line is due, and tests/test_progress.py tests those times with a clock of its own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from srpo import progress
from srpo.cli.main import run
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.warm_command import srpo_in_a_fork

DRAW = "--revisions 1 --max_new_tokens 4"
TRAIN = "--dataset_name pairs.jsonl --model_name_or_path model --output_dir NEW --max_steps 1 --use_peft --use_cpu"
TRAIN += " --report_to none --save_strategy no --revision_template quote"
# verb → its command line, and the work that it names while it does it
VERBS = {
    "check": (
        "--dataset_name pairs.jsonl --model_name_or_path model",
        ["tokenizer of", "reading and tokenising pairs"],
    ),
    "train": (TRAIN, ["tokenizer of", "pairs tokenised", "weights of", "steps"]),
    "revise": (f"--model_name_or_path adapter --input pairs.jsonl --output NEW {DRAW}", ["weights of", "prompts"]),
    "sample": (f"--model_name_or_path adapter --input pairs.jsonl --output NEW {DRAW}", ["weights of", "prompts"]),
    "evaluate": (f"--models adapter --prompts pairs.jsonl --output_dir NEW {DRAW}", ["weights of", "prompts"]),
    "label": ("--trails trails.jsonl --output NEW --judge tests.cli.test_silence:even_bytes", ["comparisons"]),
    "merge": (
        "--model_name_or_path adapter --output_dir NEW --max_new_tokens 1",
        ["prompts answered with the adapter", "merging the adapter", "prompts compared"],
    ),
    "calibrate": (
        f"--model_name_or_path adapter --input many.jsonl --output_dir NEW {DRAW}",
        ["weights of", "of 40 prompts"],
    ),
    "rounds": (
        f"{TRAIN} --rounds 1 --judge tests.cli.test_silence:even_bytes --sample_max_new_tokens 4 --sample_revisions 1",
        ["weights of", "steps", "prompts", "comparisons"],
    ),
}


# Verbs whose progress is shown on a pseudo-terminal; that of the others goes to a file.
TERMINAL = ("train", "revise", "merge")


def even_bytes(prompt: str, answer: str, gold: str) -> float:
    """A judge that finds some answer of two random ones better."""
    return sum(answer.encode()) % 101 / 101


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny chat model, an adapter, pairs and trails."""
    folder = tmp_path_factory.mktemp("place")
    make_tiny_llama(num_hidden_layers=1).save_pretrained(folder / "model")
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    make_byte_tokenizer(chat_template=chat).save_pretrained(folder / "model")
    rows = [{"prompt": f"{a}+1=", "chosen": str(a + 1), "rejected": str(a), "gold": str(a + 1)} for a in range(40)]
    for name, some in (("pairs", rows[:4]), ("many", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", *TRAIN.replace("NEW", "adapter").split()]) == 0
        assert run(["revise", *VERBS["revise"][0].replace("NEW", "trails.jsonl").split()]) == 0
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_names_its_work(verb: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words, shown), terminal = VERBS[verb], verb in TERMINAL
    monkeypatch.chdir(place)
    monkeypatch.setattr(progress, "FIRST", 0.0)
    command = [verb, *words.replace("NEW", str(tmp_path / "new")).split()]
    done = srpo_in_a_fork(*command, terminal=terminal, env={**os.environ, "TERM": "xterm"})
    assert done.returncode == 0, done.stderr
    assert f"srpo: {verb} under way, 0 s" in done.stderr.splitlines()[0]
    assert [each for each in shown if each not in done.stderr] == []
    assert ("\x1b[?25l" in done.stderr) == terminal
    assert [noise for noise in ("Warning", "pin_memory", "it/s]") if noise in done.stderr] == []


def test_one_flag_is_quiet(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(progress, "FIRST", 0.0)
    words = TRAIN.replace("NEW", str(tmp_path / "run")).split()
    done = srpo_in_a_fork("train", *words, "--quiet", terminal=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"saved {tmp_path}")
    assert "--quiet" in srpo_in_a_fork("--quiet", "train", "--help").stdout
