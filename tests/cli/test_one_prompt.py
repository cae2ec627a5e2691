"""`srpo revise` without a file of trails: one prompt, plain text or rows on standard input, and columns by --map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from srpo import Reviser
from srpo.cli.main import run
from srpo.errors import DataError, InputError, UsageError
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, untrained_base
from tests.warm_command import Fork, srpo_in_a_fork

FEW = ["--revisions", "2", "--max_new_tokens", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    untrained_base(BaseConfig(hidden=24, layers=1, heads=2)).save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)
    return str(folder)


def revised(model: str, *words: str, input: bytes = b"", **environment: str) -> tuple[int, str, str]:
    """Exit code, output and error output of `srpo revise`; in a new process if the environment changes."""
    command = ["revise", "--model_name_or_path", model, *FEW, *words]
    if not environment:
        warm = srpo_in_a_fork(*command, input=input)
        return warm.returncode, warm.stdout, warm.stderr
    command = [sys.executable, "-m", "srpo", *command]
    done = subprocess.run(command, input=input, capture_output=True, env={**os.environ, **environment})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_one_prompt_is_drafted_revised_and_printed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["revise", "--model_name_or_path", model, *FEW, "12+34="]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12+34="
    assert [line.split()[0] for line in lines[1:4]] == ["draft", "revision", "revision"]
    (trail,) = Reviser(model).revise(["12+34="], 2, max_new_tokens=6)  # the same draws as in Python
    assert f" {trail.answers[0].text or '(empty)'} " in lines[1]
    assert list(tmp_path.iterdir()) == []


def test_plain_text_on_standard_input_is_one_prompt_and_rows_are_rows(model: str, tmp_path: Path) -> None:
    _, whole, _ = revised(model, "12+34=")
    code, piped, errors = revised(model, "--input", "-", input=b"12+34=\n")
    assert (code, piped.split("   ")[0]) == (0, whole.split("   ")[0]), errors
    rows = b"".join(json.dumps({"prompt": prompt}).encode() + b"\n" for prompt in ("12+34=", "1+1="))
    code, piped, errors = revised(model, "--input", "-", "--output", str(tmp_path / "t.jsonl"), input=rows)
    assert (code, piped) == (0, f"{tmp_path / 't.jsonl'}: 2 trails\n"), errors
    code, _, errors = revised(model, "--input", "-", input=b'{"prompt": 5}\n')  # control: rows are still checked
    assert code == 65
    assert "/dev/stdin:1" in errors
    code, _, errors = revised(model, "--input", "-", input=b"\xff\xfe plain")
    assert (code, "not UTF-8" in errors) == (65, True)


def test_columns_of_other_names_are_mapped(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"instruction": "12+34="}\n')
    words = ["--model_name_or_path", model, *FEW, "--input", str(tmp_path / "p.jsonl")]
    with pytest.raises(DataError, match="say `--map prompt=instruction`"):
        run(["revise", *words])
    assert run(["revise", *words, "--map", "prompt=instruction"]) == 0
    assert capsys.readouterr().out.startswith("12+34=\n")
    assert run(["sample", *words, "--map", "prompt=instruction", "--output", str(tmp_path / "s.jsonl")]) == 0


def test_wrong_data_are_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "1+1="}\n')
    for words in (["--input", str(tmp_path / "p.jsonl")], ["--input", str(tmp_path / "gone.jsonl")]):
        for output in ([], ["--output", str(tmp_path / "t.jsonl")]):
            with pytest.raises((DataError, InputError), match=r"p\.jsonl|gone\.jsonl"):
                run(["revise", "--model_name_or_path", str(tmp_path / "no-model"), *words, *output])


@pytest.mark.parametrize("words", [[], ["1+1=", "--input", "p.jsonl"]])
def test_one_source_of_prompts_is_needed(words: list[str]) -> None:
    with pytest.raises(UsageError, match="one prompt or --input"):
        run(["revise", "--model_name_or_path", "m", *words])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("words", ["--help", "train --help", "env"])
def test_standard_output_may_have_any_encoding(words: str, encoding: str) -> None:
    if words == "--help":  # a new process shows that the variable has this effect
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-m", "srpo", words], capture_output=True, env=environment)
        code, out, err = done.returncode, done.stdout, done.stderr.decode()
    else:
        code, out, err = Fork(*words.split(), encoding=encoding).end()
    assert code == 0, err
    if words == "train --help":  # the page has an ellipsis
        assert (b"\\u2026" in out) == (encoding == "ascii")


def test_the_base_of_an_adapter_that_moved_is_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft: Any = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(model)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    TEMPLATE.save(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/gone/base"}))
    words = ["revise", "--model_name_or_path", str(tmp_path / "adapter"), *FEW, "1+1="]
    with pytest.raises(InputError, match="base_model"):
        run(words)
    assert run([*words, "--base_model", model]) == 0
    assert capsys.readouterr().out.startswith("1+1=\n")


def test_rounds_read_their_prompts_before_the_offline_training(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "1+1="}\n')
    (tmp_path / "d.jsonl").write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    words = [
        "--model_name_or_path",
        str(tmp_path / "no-model"),
        "--dataset_name",
        str(tmp_path / "d.jsonl"),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    for flag in ("--sample_prompts", "--validation_prompts"):
        with pytest.raises(DataError, match=r"p\.jsonl"):
            run(["rounds", *words, "--judge", "numeric", flag, str(tmp_path / "p.jsonl")])
    (tmp_path / "d.jsonl").write_text('{"question": "1+1=", "chosen": "2", "rejected": "3"}\n{"question": 5}\n')
    mapped = [*words, "--judge", "numeric", "--map", "prompt=question", "--sample_prompts", str(tmp_path / "p.jsonl")]
    with pytest.raises(InputError, match="no-model"):  # control: once the files can be read, the training begins
        run(["rounds", *mapped, "--bad_rows", "skip", "--validation_prompts", str(tmp_path / "d.jsonl")])
    with pytest.raises(DataError, match=r"d\.jsonl:2: .*number"):
        run(["rounds", *mapped, "--validation_prompts", str(tmp_path / "d.jsonl")])
