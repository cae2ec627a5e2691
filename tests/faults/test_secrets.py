"""Fault 19: secrets planted wherever a user may have them are nowhere in what a command prints or writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from srpo import SRPOConfig
from srpo.cli import main as command
from srpo.errors import InputError
from srpo.secrets import redacted, redacted_command
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.warm_command import Fork

# Where it is planted → the secret.
PLANTED = {
    "environment": "planted-in-env-4711",
    "setting": "planted-in-yaml-4712",
    "option": "planted-in-option-4713",
    "url": "planted-in-url-4714",
    "header": "planted-in-header-4715",
    "shape": "hf_plantedByShape0123456789AbCdEf",
}
NOTE = f"from https://me:{PLANTED['url']}@host/pairs, Authorization: Bearer {PLANTED['header']} {PLANTED['shape']}"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file that trains, with secrets in it."""
    make_tiny_llama(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    make_byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    told = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "run_name": f"{NOTE} {PLANTED['environment']}",
        "hub_token": PLANTED["setting"],
        "model_init_kwargs": json.dumps({"token": PLANTED["option"]}),
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(told), "utf-8")  # JSON is YAML
    return tmp_path / "settings.yaml"


def told_by(settings: Path, before: Callable[[], object] | None = None) -> tuple[int, dict[str, set[str]]]:
    """The exit code of a training run, and where it told which secret: "output", or the name of a file."""
    words = ["train", "--config", str(settings), "--hub_token", PLANTED["setting"]]
    environment = {**os.environ, "WANDB_API_KEY": PLANTED["environment"]}
    code, stdout, stderr = Fork(*words, env=environment, before=before).end()
    out = settings.parent / "out"
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    texts = {**files, "output": stdout + stderr.encode()}
    found = {name: {secret for secret in PLANTED.values() if secret.encode() in text} for name, text in texts.items()}
    return code, found


def unguarded() -> None:
    """Removes redaction from every module that imported it."""
    for module in [module for name, module in sys.modules.items() if name.startswith("srpo")]:
        for name, none in (("redacted", lambda value: value), ("redacted_command", list)):
            if hasattr(module, name):
                setattr(module, name, none)


def test_a_run_writes_and_prints_no_secret(settings: Path) -> None:
    code, found = told_by(settings)
    assert code == 0
    assert {name for name, secrets in found.items() if secrets} == set()
    assert {"run.json", "README.md", "metrics.jsonl", "checkpoint-1/README.md"} <= found.keys()
    assert not [name for name in found if name.endswith("training_args.bin")]
    record = json.loads((settings.parent / "out" / "run.json").read_text("utf-8"))
    assert record["command"][-2:] == ["--hub_token", "***"]
    assert record["settings"]["hub_token"] == "***"
    assert record["settings"]["run_name"] == "from https://***@host/pairs, Authorization: Bearer *** *** ***"
    assert record["settings"]["beta"] == 0.01
    card = (settings.parent / "out" / "README.md").read_text("utf-8")
    assert str(settings.parent) not in card
    assert "--config settings.yaml" in card


def test_control_without_redaction_the_record_has_secrets(settings: Path) -> None:
    code, found = told_by(settings, unguarded)
    assert code == 0
    assert found["run.json"] == set(PLANTED.values())


def test_control_training_args_bin_would_have_the_secret(tmp_path: Path) -> None:
    torch.save(SRPOConfig(output_dir=str(tmp_path), hub_token=PLANTED["setting"]), tmp_path / "training_args.bin")
    assert PLANTED["setting"].encode() in (tmp_path / "training_args.bin").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--model_name_or_path", f"https://me:{PLANTED['url']}@host/model", "--dataset_name", "x"],
        ["train", "--model_name_or_path", "m", "--dataset_name", "d", "--beta", PLANTED["shape"]],
        ["check", "--dataset_name", NOTE, "--model_name_or_path", f"./{PLANTED['environment']}"],
        ["revise", "--model_name_or_path", "x", "--input", f"./{PLANTED['environment']}", "--output", "out"],
        [PLANTED["environment"]],
    ],
    ids=["url", "value", "data", "environment", "verb"],
)
def test_errors_of_settings_are_redacted(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended_with(words, monkeypatch) in (64, 66, 78)
    out, err = capsys.readouterr()
    assert "***" in err
    assert not [secret for secret in PLANTED.values() if secret in out + err]


def ended_with(words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("WANDB_API_KEY", PLANTED["environment"])
    monkeypatch.setattr(sys, "argv", ["srpo", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def planted_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that logs and then fails as a library does that repeats what it was given."""
    import logging

    verb = ModuleType("srpo.cli.stop")

    def main(argv: list[str]) -> int:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("srpo").info("asking %s", NOTE)
        raise RuntimeError(f"401 for {{'Authorization': 'Basic {PLANTED['header']}'}}: {NOTE}")

    vars(verb)["main"] = main
    monkeypatch.setitem(sys.modules, verb.__name__, verb)
    monkeypatch.setitem(command.VERBS, "stop", "stops")


def test_messages_of_libraries_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_verb(monkeypatch)
    assert ended_with(["stop"], monkeypatch) == 70
    err = capsys.readouterr().err
    assert "internal error: RuntimeError: 401 for" in err
    assert "asking from https://***@host" in err
    assert not [secret for secret in PLANTED.values() if secret in err]


def test_a_requested_traceback_is_redacted(tmp_path: Path) -> None:
    script = f"from srpo.cli import main\ndef fail(argv): raise RuntimeError({NOTE!r})\nmain.run = fail\nmain.main()\n"
    environment = {**os.environ, "SRPO_TRACEBACK": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "RuntimeError: from https://***@host" in done.stderr
    assert not [secret for secret in PLANTED.values() if secret in done.stderr]


def test_errors_and_settings_are_redacted_in_python() -> None:
    error = InputError(f"no answer from {NOTE}", where=f"https://me:{PLANTED['url']}@host")
    args = SRPOConfig(output_dir="x", model_init_kwargs={"token": PLANTED["option"]}, hub_token=PLANTED["setting"])
    for shown in (str(error), repr(error), str(args), repr(args), json.dumps(args.to_dict()), args.to_json_string()):
        assert not [secret for secret in PLANTED.values() if secret in shown]
    assert args.loading_options() == {"token": PLANTED["option"]}


@pytest.mark.parametrize(
    "text",
    [
        "eos_token: 12, max_new_tokens=5, pad_token='<pad>'",
        "next token: 5; the token: <eos>",
        "see https://arxiv.org/abs/2406.01660 and write to me@host",
        "unknown key 'passwort'; did you mean 'beta'?",
        "--max_new_tokens 5 --tokenizer x",
        "Basic understanding, bearer of news",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redacted(text) == text


def test_settings_without_secrets_are_unchanged() -> None:
    told = {"eos_token": "<eos>", "max_new_tokens": 5, "hub_token": None, "push_to_hub": False, "beta": 0.1}
    assert redacted(told) == told
    words = ["srpo", "revise", "--max_new_tokens", "5", "--input", "a.jsonl"]
    assert redacted_command(words) == words
