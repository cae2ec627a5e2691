"""Names of settings that do not exist here: other tools' names, mistyped ones, and answers without importing torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from srpo import SRPOConfig
from srpo.cli.main import run
from srpo.cli.training_names import TRAINING_ARGUMENTS, training_names
from srpo.errors import ConfigError, UsageError
from srpo.renamed_settings import NOT_OFFERED, RENAMED, remedies
from srpo.train.arguments import known_settings

GIVEN = ["--model_name_or_path", "m", "--dataset_name", "d"]
FROM_DPO = Path(__file__).parents[2] / "docs" / "from-dpo.md"


def test_the_listed_names_are_the_settings_of_a_training() -> None:
    assert {each.name for each in fields(TrainingArguments) if each.init} <= set(TRAINING_ARGUMENTS)
    assert {*known_settings()} <= {*training_names()}


def test_a_newer_transformers_switches_the_list_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srpo.cli.training_names.version", lambda name: "5.99.0")
    assert training_names() == []
    monkeypatch.setattr("srpo.cli.training_names.version", lambda name: "5.16.1")
    assert training_names()


def test_renamed_settings_exist_and_the_others_do_not() -> None:
    known = {*known_settings(), "revisions", "max_new_tokens"}
    assert {new for new in RENAMED.values()} <= known
    assert not {*RENAMED, *NOT_OFFERED} & {*known_settings()}
    assert not {*RENAMED} & {*NOT_OFFERED}


@pytest.mark.parametrize("kind", ["DPOConfig", "ModelConfig", "ScriptArguments"])
def test_every_setting_of_trl_has_a_remedy(kind: str) -> None:
    trl: Any = pytest.importorskip("trl")
    known = known_settings()
    for each in fields(getattr(trl, kind)):
        if each.name not in known:
            assert each.name in RENAMED or each.name in NOT_OFFERED, each.name
            assert remedies([each.name], known).startswith(("did you mean", "not offered"))


def test_the_settings_of_dpo_that_are_missing_are_in_the_docs() -> None:
    trl: Any = pytest.importorskip("trl")
    text = FROM_DPO.read_text("utf-8")
    missing = [each.name for each in fields(trl.DPOConfig) if each.name not in known_settings()]
    assert len(missing) > 10
    assert [name for name in missing if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("--torch_dtype", "did you mean '--dtype'?"),
        ("--evaluation_strategy", "did you mean '--eval_strategy'?"),
        ("--lora-rank", "did you mean '--lora_r'?"),
        ("--lora_dropout_p", "did you mean '--lora_dropout'?"),
        ("--lora_task_type", "not offered: adapters are for causal language models"),
        ("--max_prompt_length", "not offered: max_length limits whole sequences"),
        ("--device", "not offered: a GPU is used where there is one"),
        ("--bteta", "did you mean '--beta'?"),
        ("--qqqq", "`srpo train --help` lists the options"),  # control: no remedy
    ],
)
def test_flags_of_other_tools_get_the_flag_that_is_meant_or_a_reason(flag: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(["train", *GIVEN, flag, "1"])
    assert f"unrecognized arguments: {flag}; {remedy}" in str(caught.value)


def test_every_unknown_name_is_in_one_error(tmp_path: Path) -> None:
    settings = {"truncation_mode": "keep_end", "loss_type": "sigmoid", "betaa": 1}
    parts = ["truncation_mode: not offered", "loss_type: did you mean 'objective'", "betaa: did you mean 'beta'"]
    with pytest.raises(ConfigError) as caught:
        SRPOConfig(output_dir="o", **settings)
    assert all(part in str(caught.value) for part in parts)
    (tmp_path / "s.yaml").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as caught:
        run(["train", "--config", str(tmp_path / "s.yaml")])
    assert all(part in str(caught.value) for part in parts)
    assert SRPOConfig(output_dir="o", beta=1.0, report_to="none").beta == 1.0  # control


@pytest.mark.parametrize(
    ("words", "torch"),
    [
        ("train --nonsense", False),
        ("train --config gone.yaml", False),
        ("train", False),
        ("rounds --config gone.yaml --nonsense", False),
        ("revise --nonsense", False),
        ("evaluate --nonsense", False),
        ("judge check --nonsense", False),
        ("convert --model_name_or_path m --output_dir o", True),  # control: flags that are right
    ],
)
def test_usage_errors_are_found_before_torch_is_imported(words: str, torch: bool, tmp_path: Path) -> None:
    code = (
        "import sys; from srpo.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, *words.split()]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    status, loaded = done.stdout.split()
    assert status != "0"
    assert loaded == str(torch), done.stderr
    assert re.search(r"^srpo: error: ", done.stderr, re.MULTILINE)
