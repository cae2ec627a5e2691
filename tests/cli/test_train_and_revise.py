"""`srpo train` and `srpo revise` as processes: from pairs to trails, killed, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser, progress
from srpo.cli.main import run
from srpo.errors import ConfigError, DataError, UsageError
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, sums, untrained_base, write_rows
from tests.warm_command import Fork, srpo_in_a_fork

NAMED = ["--model_name_or_path", "m", "--dataset_name", "d"]
QUICK = ["--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "1"]


def words_of(verb: str, settings: dict[str, Any]) -> list[str]:
    return [verb, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def interrupted(words: list[str], *, after: str) -> tuple[int, str]:
    """Runs a command and sends it SIGINT after that word on standard error; exit code and standard error."""
    fork, seen = Fork(*words, before=_frequent_lines), ""
    for line in fork.stderr:
        seen += line
        if after in line:
            break
    os.kill(fork.pid, signal.SIGINT)
    code, _, rest = fork.end()
    return code, seen + rest


def _frequent_lines() -> None:
    progress.FIRST, progress.EVERY = 0.0, 0.1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model over sums, pairs and prompts; every pair prefers the right sum to 000000."""
    folder = tmp_path_factory.mktemp("place")
    untrained_base(BaseConfig(hidden=24, layers=1, heads=2)).save_pretrained(folder / "base")
    carry_tokenizer().save_pretrained(folder / "base")
    TEMPLATE.save(folder / "base")
    rows = sums(40, "in", seed=1)
    pairs = [{"prompt": row["prompt"], "chosen": row["gold"], "rejected": "000000"} for row in rows]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", sums(10, "in", seed=2))
    write_rows(folder / "many.jsonl", sums(5000, "in", seed=3))
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    """What `srpo train` made."""
    settings = {
        "model_name_or_path": place / "base",
        "dataset_name": place / "pairs.jsonl",
        "output_dir": place / "model",
        "max_steps": 8,
        "learning_rate": 0.01,
        "beta": 0.5,
        "save_strategy": "no",
    }
    done = srpo_in_a_fork(*words_of("train", settings), *QUICK)
    assert done.returncode == 0, done.stderr
    assert f"saved {place / 'model'} (train loss " in done.stdout
    assert "srpo: reference: frozen copy" in done.stderr
    assert "Traceback" not in done.stderr
    return place / "model"


def revise_settings(place: Path, model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "model_name_or_path": model,
        "input": place / "prompts.jsonl",
        "output": output,
        "revisions": 2,
        "max_new_tokens": 7,
        "batch_size": 4,
        "reference": place / "base",
    }
    return {**settings, **changes}


@pytest.fixture(scope="module")
def trails(place: Path, model: Path) -> Path:
    """What `srpo revise` made of the trained model."""
    done = srpo_in_a_fork(*words_of("revise", revise_settings(place, model, place / "trails.jsonl")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{place / 'trails.jsonl'}: 10 trails\n"
    assert "srpo: 10 of 10 prompts" in done.stderr
    return place / "trails.jsonl"


def rows(file: Path) -> list[dict[str, Any]]:
    """Trails without the seconds they took."""
    found = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
    for row in found:
        for answer in row["answers"]:
            del answer["seconds"]
    return found


# ---------------------------------------------------------------------- done


def test_train_writes_a_trained_model_and_the_files_for_revising(model: Path) -> None:
    losses = [json.loads(line).get("loss") for line in (model / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert losses[0] == pytest.approx(0.6, abs=1e-6)
    assert losses[7] < 0.9 * losses[0]
    assert json.loads((model / "revision_template.json").read_text("utf-8"))["name"] == "carry"
    assert json.loads((model / "srpo_training.json").read_text("utf-8"))["beta"] == 0.5


def test_revise_reads_standard_input(place: Path, model: Path, trails: Path) -> None:
    settings = revise_settings(place, model, place / "piped.jsonl", input="-")
    done = srpo_in_a_fork(*words_of("revise", settings), input=(place / "prompts.jsonl").read_bytes())
    assert done.returncode == 0, done.stderr
    assert rows(place / "piped.jsonl") == rows(trails)


def test_revise_draws_with_the_saved_template_and_confidence(place: Path, model: Path, trails: Path) -> None:
    found = rows(trails)
    assert [row["prompt"] for row in found] == [row["prompt"] for row in sums(10, "in", seed=2)]
    assert [row["meta"] for row in found] == [{"gold": row["gold"]} for row in sums(10, "in", seed=2)]
    assert {len(row["answers"]) for row in found} == {3}
    assert all(answer["preferred"] is not None for row in found for answer in row["answers"][1:])
    # The same by hand, told which template it is.
    subject = Reviser(str(model), carry_tokenizer(), TEMPLATE, reference=str(place / "base"), batch_size=4)
    by_hand = subject.revise(sums(10, "in", seed=2), 2, max_new_tokens=7)
    drawn = [[answer["text"] for answer in row["answers"]] for row in found]
    assert drawn == [[answer.text for answer in trail.answers] for trail in by_hand]


@pytest.mark.parametrize("keep", [0, 1, 5, 9, 10])
def test_revise_goes_on_to_the_same_file(
    keep: int, place: Path, model: Path, trails: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = trails.read_bytes().splitlines(keepends=True)
    torn = lines[keep][: len(lines[keep]) // 2] if keep < len(lines) else b""
    cut = tmp_path / "trails.jsonl"
    cut.write_bytes(b"".join(lines[:keep]) + torn)
    cut.with_name(cut.name + ".settings.json").write_bytes(trails.with_name("trails.jsonl.settings.json").read_bytes())
    assert run(words_of("revise", revise_settings(place, model, cut))) == 0
    assert rows(cut) == rows(trails)
    assert cut.read_bytes().startswith(b"".join(lines[:keep]))
    told = f" ({keep} were already there)" if keep else ""
    assert capsys.readouterr().out == f"{cut}: 10 trails{told}\n"


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revisions": 3}, "revisions 2 → 3"),
        ({"seed": 1, "temperature": 0.5}, "temperature 1.0 → 0.5, seed 0 → 1"),
        ({"revision_template": "plain"}, "revision_template 'saved' → 'plain'"),
        ({"policy": "if_preferred"}, "policy 'auto' → 'if_preferred'"),
    ],
)
def test_a_file_started_with_other_settings_is_refused(
    changes: dict[str, Any], said: str, place: Path, model: Path, trails: Path
) -> None:
    before = trails.read_bytes()
    with pytest.raises(ConfigError) as caught:
        run(words_of("revise", revise_settings(place, model, trails, **changes)))
    assert f"{trails}: was begun with other settings: {said}; use the same settings" in str(caught.value)
    assert caught.value.exit_code == 78
    assert trails.read_bytes() == before


def test_another_model_or_reference_is_refused(place: Path, model: Path, trails: Path) -> None:
    settings = revise_settings(place, model, trails)
    del settings["reference"]
    with pytest.raises(ConfigError, match=r"reference '.*base' → ''"):
        run(words_of("revise", settings))
    with pytest.raises(ConfigError, match=r"model '.*model' → '.*base'"):
        run(words_of("revise", revise_settings(place, place / "base", trails)))


def test_trails_of_other_prompts_are_refused(place: Path, model: Path, trails: Path) -> None:
    with pytest.raises(DataError, match=r"trails\.jsonl:1: a trail of another prompt") as caught:
        run(words_of("revise", revise_settings(place, model, trails, input=place / "pairs.jsonl")))
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--bteta", "0.1"], "srpo train: unrecognized arguments: --bteta; did you mean '--beta'?"),
        (["train", "--qqqq"], "srpo train: unrecognized arguments: --qqqq; `srpo train --help` lists the options"),
        (["train", *NAMED, "--beta"], "argument --beta: expected one argument"),
        (["train", *NAMED, "--beta", "much"], "argument --beta: invalid float value: 'much'"),
        (["train", "--config"], "srpo train: --config needs a value"),
        (["revise", "--modle", "x"], "unrecognized arguments: --modle; did you mean '--model_name_or_path'?"),
        (["revise", "--temprature", "0"], "did you mean '--temperature'?"),
        (["sample", "--temperature", "0"], "the following arguments are required: --input, --output"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(words)
    assert said in str(caught.value)
    assert caught.value.exit_code == 64


# ---------------------------------------------------------------------- interrupted


def test_ctrl_c_while_training_is_75_and_resume_goes_on(place: Path, tmp_path: Path) -> None:
    settings = {"model_name_or_path": place / "base", "dataset_name": place / "pairs.jsonl", "output_dir": tmp_path}
    words = [*words_of("train", settings), *QUICK, "--save_strategy", "no"]
    code, err = interrupted([*words, "--max_steps", "1000000"], after="step 2 of 1000000")
    assert code == 75, err
    (saved,) = tmp_path.glob("checkpoint-*")
    step = int(saved.name.split("-")[1])
    last = err.rstrip("\n").split("\n")[-1]
    assert last == (
        f"srpo: error: {tmp_path}: SIGINT: stopped after step {step} of 1000000; checkpoint-{step} is saved; "
        "continue with the same command and --resume"
    )
    assert "Traceback" not in err
    assert not (tmp_path / "model.safetensors").exists()  # nothing is named final
    fewer = ["--max_steps", str(step + 2), "--accept_change", "max_steps"]
    assert run([*words, *fewer, "--resume"]) == 0
    assert (tmp_path / "model.safetensors").is_file()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == list(range(1, step + 3))


def test_ctrl_c_while_revising_is_75_and_the_same_command_goes_on(place: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "trails.jsonl"
    settings = revise_settings(place, model, out, input=place / "many.jsonl", batch_size=50, revisions=1)
    code, err = interrupted(words_of("revise", settings), after=" left")
    assert code == 75, err
    last = err.rstrip("\n").split("\n")[-1]
    others = f", other finished answers in {out}.answers.jsonl"
    assert (
        last.replace(others, "") == f"srpo: error: interrupted; finished trails are in {out}; the same command goes on"
    )
    assert "Traceback" not in err
    done = rows(out)
    assert 0 < len(done) < 5000
    # Control: the command does go on where it was, given less to do.
    few = tmp_path / "few.jsonl"
    few.write_text("".join((place / "many.jsonl").read_text("utf-8").splitlines(True)[: len(done) + 3]), "utf-8")
    assert run(words_of("revise", {**settings, "input": few})) == 0
    assert rows(out)[: len(done)] == done
    assert len(rows(out)) == len(done) + 3
