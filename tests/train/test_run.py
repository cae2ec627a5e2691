"""Settings from file and flags: which wins, what is refused before anything is read, and what a run leaves behind."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.errors import ConfigError, InputError, UsageError
from srpo.train.arguments import known_settings, read_settings
from srpo.train.config import PRESETS, SRPOConfig, settings_of_preset
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.train.plain import ROWS

STEP = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved model and pairs to train it on."""
    folder = tmp_path_factory.mktemp("place")
    make_tiny_llama().save_pretrained(folder / "model")
    make_byte_tokenizer().save_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return folder


@pytest.fixture
def settings(place: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of one step."""
    return {
        **STEP,
        "model_name_or_path": str(place / "model"),
        "dataset_name": str(place / "pairs.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "logging_steps": 1,
    }


def write(file: Path, settings: dict[str, Any], more: str = "") -> str:
    """A YAML file; JSON values are YAML values."""
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()) + more, "utf-8")
    return str(file)


def trained(folder: Path) -> dict[str, Any]:
    """What a run recorded: its settings and its first log."""
    first = json.loads((folder / "metrics.jsonl").read_text("utf-8").split("\n")[0])
    record: dict[str, Any] = json.loads((folder / "srpo_training.json").read_text("utf-8"))
    return {**record, **first}


# ---------------------------------------------------------------------- who wins


def test_flags_win_over_the_file_and_the_file_over_a_preset(settings: dict[str, Any], tmp_path: Path) -> None:
    file = write(
        tmp_path / "s.yaml", settings, "preset: paper-ultrafeedback\nlearning_rate: 2e-3\nalpha: 0.7\nbeta: 1\n"
    )
    assert run(["train", "--config", file, "--alpha", "0.6", "--warmup_steps", "0"]) == 0
    found = trained(tmp_path / "run")
    assert (found["alpha"], found["beta"], found["logps_reduction"]) == (0.6, 1.0, "mean")
    assert found["learning_rate"] == 2e-3  # YAML reads 2e-3 as text


def test_a_preset_by_flag_wins_over_one_in_the_file(settings: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", settings, "preset: paper-ultrafeedback\n")
    assert run(["train", f"--config={file}", "--preset", "paper-tldr"]) == 0
    found = trained(tmp_path / "run")
    assert (found["beta"], found["logps_reduction"]) == (0.01, "sum")
    assert found["learning_rate"] == 0.0  # the first of its 150 warm-up steps


def test_every_kind_of_value_reaches_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    more = "objective: ipo\nbeta: 2e-1\nmax_length:\nlora_target_modules: [q_proj]\nuse_peft: yes\noptim: sgd\n"
    more += 'model_init_kwargs: {"attn_implementation": "eager"}\nseed: 3\nbad_rows: skip\n'
    assert run(["train", "--config", write(tmp_path / "s.yaml", settings, more)]) == 0
    found = trained(tmp_path / "run")
    assert (found["objective"], found["beta"], found["reference"]) == ("ipo", 0.2, "adapter off")
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text("utf-8"))
    assert adapter["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("value", "made"), [("q_proj", {"q_proj"}), ("[v_proj, q_proj]", {"q_proj", "v_proj"}), ("all-linear", None)]
)
def test_lora_modules_have_trls_names(
    value: str, made: set[str] | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    file = write(tmp_path / "s.yaml", settings, f"use_peft: true\nlora_target_modules: {value}\n")
    assert run(["train", "--config", file]) == 0
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text("utf-8"))
    found = set(adapter["target_modules"])
    assert found == made if made else {name.split(".")[-1] for name in found} >= {"q_proj", "down_proj"}, found


def test_no_in_a_settings_file_is_the_text_no(settings: dict[str, Any], tmp_path: Path) -> None:
    """YAML reads it as false."""
    del settings["save_strategy"]
    file = write(tmp_path / "s.yaml", settings, "save_strategy: no\neval_strategy: no\nlogging_strategy: no\n")
    assert run(["train", "--config", file]) == 0
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_one_accepted_change_in_a_settings_file_needs_no_list(settings: dict[str, Any], tmp_path: Path) -> None:
    saving = {**settings, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    assert run(["train", "--config", write(tmp_path / "s.yaml", saving)]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    (tmp_path / "run" / "manifest.json").unlink()
    file = write(tmp_path / "s.yaml", saving, "beta: 0.3\naccept_change: beta\nresume: true\n")
    assert run(["train", "--config", file]) == 0


def test_no_loss_is_printed_if_only_the_save_was_missing(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s.yaml", {**settings, "save_strategy": "steps", "save_steps": 1, "max_steps": 2})
    assert run(["train", "--config", file]) == 0
    assert "(train loss 0." in capsys.readouterr().out
    (tmp_path / "run" / "manifest.json").unlink()
    assert run(["train", "--config", file, "--resume"]) == 0
    assert capsys.readouterr().out.endswith(f"saved {tmp_path / 'run'} (all steps had been taken before)\n")


def test_a_hub_revision_applies_to_the_policy_only(
    settings: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches the policy's tokenizer, and no other repository is asked for the policy's branch."""
    import srpo.train.load_models
    import srpo.train.trainer

    asked: list[str] = []

    def noted(module: Any, name: str) -> Any:
        load = getattr(module, name)

        def loaded(path: str, **options: Any) -> Any:
            asked.append(f"{name} {Path(path).name} {options.get('revision', 'main')}")
            return load(path, **options)

        return loaded

    for name in ("load_tokenizer", "load_config", "load_model"):
        module = srpo.train.trainer if name == "load_config" else srpo.train.load_models
        monkeypatch.setattr(module, name, noted(module, name))
    shutil.copytree(place / "model", tmp_path / "other")
    more = f"model_revision: ours\nref_model_name_or_path: {tmp_path / 'other'}\n"
    assert run(["train", "--config", write(tmp_path / "s.yaml", settings, more)]) == 0
    of_policy = [f"{name} model ours" for name in ("load_tokenizer", "load_config", "load_model")]
    assert asked == [*of_policy, "load_model other main"]


def test_every_setting_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["train", "--help", "all"])
    shown = capsys.readouterr().out
    assert [key for key in known_settings() if f"--{key}" not in shown] == []
    assert {"beta", "model_name_or_path", "dataset_name", "preset", "resume", "learning_rate"} <= set(known_settings())


# ---------------------------------------------------------------------- what was resolved is said


def test_resolved_settings_are_logged(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "s.yaml", settings)
    with caplog.at_level(logging.INFO, "srpo"):
        run(["train", "--config", file, "--beta", "0.5", "--resume"])
    for said in (
        "srpo: beta 0.5 (given)",
        "srpo: alpha 0.8 (default: arXiv 2406.01660, Section 5)",
        "srpo: reference: frozen copy",
        "srpo: revision template: plain",
        "srpo: precision: as loaded",
        f"srpo: nothing to resume in {tmp_path / 'run'}; starting from scratch",
        f"srpo: {len(ROWS)} pairs; sharing prefixes saves a factor of",
    ):
        assert said in caplog.text


def test_resume_goes_on_from_the_newest_checkpoint(settings: dict[str, Any], tmp_path: Path) -> None:
    saving = {**settings, "save_strategy": "steps", "save_steps": 1, "max_steps": 3, "learning_rate": 1e-3}
    assert run(["train", "--config", write(tmp_path / "s.yaml", saving), "--output_dir", str(tmp_path / "whole")]) == 0
    file = write(tmp_path / "s.yaml", saving)
    assert run(["train", "--config", file]) == 0
    for step in ("checkpoint-2", "checkpoint-3"):
        (tmp_path / "run" / step).rename(tmp_path / step)
    (tmp_path / "run" / "model.safetensors").unlink()
    assert run(["train", "--config", file, "--resume"]) == 0
    whole, again = (tmp_path / name / "model.safetensors" for name in ("whole", "run"))
    assert again.read_bytes() == whole.read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert steps == [1, 2, 3, 3]


# ---------------------------------------------------------------------- evaluation


def test_an_evaluation_file_is_used(settings: dict[str, Any], place: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", settings, "eval_strategy: steps\n")
    assert run(["train", "--config", file, "--eval_dataset_name", str(place / "pairs.jsonl")]) == 0
    assert "eval_loss" in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")


def test_evaluation_without_data_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", settings, "eval_strategy: steps\n")
    with pytest.raises(ConfigError, match="eval_strategy: no data to evaluate on; add `--eval_dataset_name"):
        run(["train", "--config", file])


# ---------------------------------------------------------------------- files of settings


def test_a_flat_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# a comment\nbeta: 0.1\n\nmodel_name_or_path: m\nuse_peft: true\n", "utf-8")
    assert read_settings(str(tmp_path / "s.yaml")) == {"beta": 0.1, "model_name_or_path": "m", "use_peft": True}
    (tmp_path / "empty.yaml").write_text("", "utf-8")
    assert read_settings(str(tmp_path / "empty.yaml")) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"beat: 0.1\n", "unknown key 'beat'; did you mean 'beta'?"),
        (b"beta: 0.1\nalpah: 0.5\n", "unknown key 'alpah'; did you mean 'alpha'?"),
        (b"zzzzzz: 0.5\n", "unknown key 'zzzzzz'; `srpo train --help` lists the keys"),
        (b"5: 0.5\n", "unknown key 5; `srpo train --help` lists the keys"),
        (b"config: other.yaml\n", "unknown key 'config'"),
        (b"beta: [0.1\n", "not YAML: while parsing a flow sequence"),
        (b"\tbeta: 0.1\n", "not YAML: "),
        (b"\xff\xfe\x00", "not YAML: "),
        (b"- beta\n- 0.1\n", "not a mapping; expected lines of `key: value`"),
        (b"just text\n", "not a mapping; expected lines of `key: value`"),
    ],
)
def test_a_file_that_cannot_be_used(text: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(str(file))
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"), [("beta: 1\nbeta: 2\n", 2), ("a: {b: 1, b: 2}\n", 1), ("a:\n- b: 1\n- c: 1\n  c: 2\n", 4)]
)
def test_a_repeated_key_is_refused(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"s\.yaml:{line}: key '\w' stands twice, first in line|key 'beta'"):
        read_settings(str(tmp_path / "s.yaml"))


def test_a_missing_settings_file_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file; expected a YAML file of settings"):
        read_settings(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_settings(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("beta: much", "beta: invalid float value: 'much'"),
        ("max_steps: 1.5", "max_steps: invalid int value: '1.5'"),
        ("use_cpu: maybe", "use_cpu: Truthy value expected: got maybe"),
        ("resume: sometimes", "resume: Truthy value expected: got sometimes"),
    ],
)
def test_a_value_of_the_wrong_kind_names_file_and_key(
    line: str, said: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings.pop(line.partition(":")[0], None)
    file = write(tmp_path / "s.yaml", settings, line + "\n")
    with pytest.raises(ConfigError) as caught:
        run(["train", "--config", file])
    assert str(caught.value).startswith(f"{file}: {said}")


def test_presets_by_name() -> None:
    assert settings_of_preset(None) == {}
    assert settings_of_preset("paper-tldr") == PRESETS["paper-tldr"]
    with pytest.raises(ConfigError, match=r"preset: 'paper-tdlr'; .*did you mean 'paper-tldr'\?"):
        settings_of_preset("paper-tdlr")
    known = set(known_settings())
    assert all(set(preset) <= known for preset in PRESETS.values())


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_a_run_needs_a_model_and_data(missing: str, settings: dict[str, Any], tmp_path: Path) -> None:
    del settings[missing]
    with pytest.raises(UsageError, match=f"no {missing}; add `--{missing}") as caught:
        run(["train", "--config", write(tmp_path / "s.yaml", settings)])
    assert caught.value.exit_code == 64


def test_errors_of_training_arguments_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="non-zero --logging_steps"):
        SRPOConfig(output_dir=str(tmp_path), logging_steps=0, use_cpu=True, report_to="none")
    with pytest.raises(ConfigError, match=r"model_init_kwargs: '\[1\]'; expected a mapping: a JSON object"):
        SRPOConfig(output_dir=str(tmp_path), model_init_kwargs="[1]", use_cpu=True, report_to="none")


def test_unknown_lora_modules_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", settings, "use_peft: true\nlora_target_modules: [nope]\n")
    with pytest.raises(ConfigError, match="peft_config: Target modules"):
        run(["train", "--config", file])
