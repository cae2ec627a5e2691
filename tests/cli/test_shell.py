"""Help for shells, editors and machines: completion, schemas of settings files, and the doctor's advice."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from srpo.cli import completion, config_schema, doctor
from srpo.cli.flags import ONLY_PARSER, FlagParser, ParserMade
from srpo.cli.main import VERBS, run
from srpo.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "recipes"


def printed(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run([*words]) == 0
    return out.getvalue()


# ---------------------------------------------------------------------- completion


@pytest.fixture(scope="module")
def parsers() -> dict[str, FlagParser]:
    return completion.parsers()


def test_every_verb_gives_its_parser(parsers: dict[str, FlagParser]) -> None:
    assert {verb.partition(" ")[0] for verb in parsers} == {*VERBS}
    assert all(parser.prog == f"srpo {verb}" for verb, parser in parsers.items())
    assert "--beta" in {flag for action in parsers["train"]._actions for flag in action.option_strings}


def test_an_ordinary_help_flag_is_not_taken_for_the_request() -> None:
    parser = FlagParser(prog="srpo x")
    with pytest.raises(ParserMade):
        parser.parse_args(ONLY_PARSER)
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        parser.parse_args([*ONLY_PARSER])


def test_a_shell_completes_verbs_and_flags(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    for shell in completion.SHELLS:
        assert "--max_new_tokens" in printed("completion", shell)
    script = tmp_path / "srpo.bash"
    script.write_text(printed("completion", "bash"), "utf-8")

    def completed(*words: str) -> list[str]:
        asked = f"""
source {script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_shtab_srpo
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
        return done.stdout.split()

    assert "train" in completed("srpo", "tr")
    assert completed("srpo", "train", "--truncat") == ["--truncate"]
    assert completed("srpo", "judge", "agr") == ["agree"]
    assert completed("srpo", "env", "--bet") == []


def test_without_the_library_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'srpo[completion]'")):
        run(["completion", "bash"])
    with pytest.raises(ConfigError, match="bash, zsh, fish"):
        run(["completion", "powershell"])


# ---------------------------------------------------------------------- schemas


def numbers(value: Any) -> Any:
    """YAML 1.1 reads 2e-6 as text; editors read YAML 1.2."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?e-?\d+", value) else value


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    settings = numbers(yaml.safe_load(path.read_text("utf-8")))
    file = "train" if "dataset_name" in settings else "evaluate"
    schema = config_schema.schema(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(settings, schema)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betta": 0.1}, "betta"),
        ({"beta": "high"}, "high"),
        ({"objective": "ppo"}, "ppo"),
        ({"alpha": 1.5}, "1.5"),
        ({"evaluate": {"judg": "x"}}, "judg"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(settings, config_schema.schema("train"))


def test_the_schema_is_printed_as_json() -> None:
    rounds = json.loads(printed("config-schema", "rounds"))["properties"]
    assert {"labels_per_round", "judge", "beta"} <= rounds.keys()
    assert rounds["beta"]["exclusiveMinimum"] == 0
    with pytest.raises(ConfigError, match="one of train, rounds, evaluate"):
        config_schema.main(["sample"])


# ---------------------------------------------------------------------- doctor

CPU = {"cpu": {"name": "x86_64", "isa": "AVX512", "threads": 8}}
OLD = {"cuda:0": {"name": "Tesla T4", "memory_gib": 14.6, "bf16": False}}
NEW = {"cuda:0": {"name": "H100", "memory_gib": 79.1, "bf16": True}}
FINE = doctor.Machine(CPU | NEW, 8, {"this folder": 100.0})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"devices": CPU}, ["slow: No GPU"]),
        ({"devices": CPU, "cores": 16}, ["slow: No GPU", "slow: torch uses 8 of 16 cores"]),
        ({"devices": CPU | OLD}, ["slow: cuda:0 (Tesla T4) has no bfloat16", "slow: cuda:0 has 14.6 GiB"]),
        ({"devices": CPU | NEW | {"cuda:1": NEW["cuda:0"]}}, ["slow: 2 GPUs: start `torchrun"]),
        ({"devices": CPU | {"mps": {"name": "arm"}}}, ["slow: No CUDA GPU: training runs on mps"]),
        ({"free_gib": {"this folder": 3.0}}, ["slow: this folder: 3.0 GiB are free"]),
        ({"offline": True}, ["missing: HF_HUB_OFFLINE is set"]),
        ({"absent": ("httpx", "vllm")}, ["missing: httpx, for --engine openai", "missing: vllm, for --engine vllm"]),
        ({"devices": CPU, "absent": ("vllm",)}, ["slow: No GPU"]),
    ],
)
def test_advice_follows_from_the_machine(change: dict[str, Any], expected: list[str]) -> None:
    given = [f"{kind}: {text}" for kind, text in doctor.advice(dataclasses.replace(FINE, **change)) if kind != "good"]
    assert len(given) == len(expected)
    assert all(text.startswith(start) for text, start in zip(given, expected, strict=True))


def test_doctor_prints_the_tables_and_the_advice() -> None:
    out = printed("doctor")
    assert "transformers" in out
    assert "No GPU" in out
