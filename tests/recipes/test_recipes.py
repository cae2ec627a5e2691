"""Every recipe, as its own two commands would run it: a tiny model in the place of the big one, ten rows of the same
columns in the place of each data set, one step, one revision. Nothing else in the file is changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from srpo.cli.main import run
from srpo.cli.recipes import CHAT_MODELS, TEMPLATE, text_of
from srpo.errors import OutputError, UsageError
from srpo.evaluate.plan import CONTROLS
from srpo.score.results_file import read_results
from tests.conftest import make_byte_tokenizer, make_tiny_llama

pytestmark = pytest.mark.usefixtures("empty_figures")
RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ["arena-hard", "carry", "tldr", "ultrafeedback", "xsum"]
WHOLE = "carry-evaluation"  # trains nothing: evaluates what `srpo demo` and the rounds have trained
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# name in a recipe → a row of it, the row's number in the place of {i}; "chat" and "plain" are models
POST = "SUBREDDIT: r/advice\n\nTITLE: Cats\n\nPOST: {i} of them.\n\nTL;DR:"
SAID = [{"role": "user", "content": "How many {i}?"}, {"role": "assistant", "content": "Some {i}."}]
STANDS_FOR: dict[str, Any] = {
    "trl-lib/tldr-preference": {"prompt": POST, "chosen": " {i} cats.", "rejected": " Dogs {i}."},
    "trl-lib/tldr": {"prompt": POST, "completion": " {i} cats."},
    "EdinburghNLP/xsum": {"document": "It rained {i} days.", "summary": "Rain {i}.", "id": "{i}"},
    "trl-lib/ultrafeedback_binarized": {
        "chosen": SAID,
        "rejected": [SAID[0], {"role": "assistant", "content": "No {i}."}],
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    },
    "arena-hard-v2.0/question.jsonl": {"uid": "{i}", "category": "hard", "subcategory": "code", "prompt": "Sort {i}."},
    "runs/carry/seed0/pairs/pairs.jsonl": {"prompt": "{i}+1=", "chosen": "0{i}", "rejected": "1{i}"},
    "runs/carry/seed0/prompts/in.jsonl": {"prompt": "{i}+2=", "gold": "2{i}"},
    "runs/carry/seed0/prompts/out.jsonl": {"prompt": "{i}9+2=", "gold": "3{i}"},
    "runs/carry/seed0/base": "plain",
    "runs/demo3/seed{seed}/prompts/in.jsonl": {"prompt": "{i}+2=", "gold": "2{i}"},
    "runs/demo3/seed{seed}/prompts/out.jsonl": {"prompt": "{i}9+2=", "gold": "3{i}"},
    "runs/tldr-sft": "plain",
    "runs/chat-sft": "chat",
    "meta-llama/Llama-3.1-8B-Instruct": "chat",
} | {model.hub: "chat" for model in CHAT_MODELS.values()}
QUICK = ["--max_steps", "1", "--use_cpu", "true", "--report_to", "none", "--per_device_train_batch_size", "2"]
QUICK += ["--gradient_accumulation_steps", "1", "--disable_tqdm", "true", "--revision_template"]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name in a recipe → what stands in its place."""
    folder, found = tmp_path_factory.mktemp("stand_ins"), {}
    for kind, template in (("plain", None), ("chat", CHAT)):
        make_tiny_llama(num_hidden_layers=1, max_position_embeddings=1024).save_pretrained(folder / kind)
        make_byte_tokenizer(chat_template=template).save_pretrained(folder / kind)
    for number, (name, what) in enumerate(STANDS_FOR.items()):
        path = folder / (what if isinstance(what, str) else f"{number}.jsonl")
        if not isinstance(what, str):
            path.write_text("".join(json.dumps(what).replace("{i}", str(i)) + "\n" for i in range(10)))
        found[name] = str(path)
    return found


def test_every_recipe_is_tried() -> None:
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == sorted([*NAMES, WHOLE])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_its_commands_and_asks_no_paid_judge(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    assert ("srpo demo --prepare" if name == "carry" else "trl sft ") in text
    for verb in ("train", "evaluate"):
        assert f"#   srpo {verb} --config recipes/{name}.yaml" in text
    recipe = yaml.safe_load(text)
    assert recipe["evaluate"].get("judge") in (None, "exact_match", "rouge_l")
    assert recipe["evaluate"]["output_dir"].startswith("runs/")


@pytest.mark.parametrize("name", [*NAMES, "qwen3-0.6b"])
def test_both_commands_of_a_recipe_run(
    name: str, stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = text_of(name, "recipe.yaml")
    names = sorted(stand_ins, key=len, reverse=True)
    replaced = re.sub("|".join(map(re.escape, names)), lambda found: stand_ins[found[0]], text)
    (tmp_path / "recipe.yaml").write_text(replaced, "utf-8")
    recipe = yaml.safe_load(replaced)
    template = recipe.get("revision_template", "plain")
    assert run(["train", "--config", "recipe.yaml", *QUICK, template]) == 0
    assert (tmp_path / recipe["output_dir"] / "run.json").is_file()
    against_draft = recipe["evaluate"].get("against") == "draft"
    judge = "tests.judge.pair_judges:LONGEST" if against_draft else "exact_match"
    small = ["--revisions", "1", "--max_new_tokens", "3", "--limit", "4", "--batch_size", "4"]
    assert run(["evaluate", "--config", "recipe.yaml", *small, "--judge", judge]) == 0
    results = read_results(tmp_path / recipe["evaluate"]["output_dir"] / "results.json")
    wanted = [*recipe["evaluate"]["models"], *(f"srpo/{control}" for control in recipe["evaluate"]["controls"])]
    assert sorted(results.values("system")) == sorted(wanted)
    assert {row["n"] for row in results.rows if row["seed"] == 0} == {4}


def test_the_whole_evaluation_of_the_carry_task(
    stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (RECIPES / f"{WHOLE}.yaml").read_text("utf-8")
    for command in ("srpo demo --full --seeds 3", "python -m benchmarks.carry_rounds", "srpo evaluate --config"):
        assert f"#   {command}" in text
    for name in (name for name in stand_ins if name.startswith("runs/demo3/")):
        text = text.replace(name, stand_ins[name])
    text = re.sub(r"runs/(demo3|rounds)/seed\{seed\}[\w/]*", "trained", text)
    shutil.copytree(stand_ins["runs/carry/seed0/base"], "trained")
    record = {"format": 1, "objective": "srpo", "beta": 0.3, "alpha": 0.5, "logps_reduction": "sum"}
    Path("trained/srpo_training.json").write_text(json.dumps(record))
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    recipe = yaml.safe_load(text)
    rounds = [name for name in recipe["models"] if "rounds" in name]
    assert f"`--without {' '.join(rounds)}`" in text
    small = [
        "--revisions",
        "1",
        "--max_new_tokens",
        "3",
        "--limit",
        "4",
        "--seeds",
        "3",
        "--revision_template",
        "plain",
    ]
    systems = {}
    for out, without in (("whole", []), ("part", ["--without", *rounds])):
        # One folder, so that the second evaluation finds the answers of the first.
        assert run(["evaluate", "--config", "recipe.yaml", *small, *without, "--output_dir", "report"]) == 0
        results = read_results(tmp_path / "report" / "results.json")
        systems[out] = {*results.values("system")}
        assert {*results.drawn} <= systems[out] <= {*recipe["labels"]} | {f"srpo/{each}" for each in CONTROLS}
    assert {f"srpo/{each}" for each in CONTROLS} | {*recipe["models"]} <= systems["whole"]
    assert systems["whole"] - systems["part"] == {*rounds, "srpo_rounds/best_of"}


# ---------------------------------------------------------------------- those of chat models


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_a_chat_model_s_recipe_names_its_model_and_calls_its_numbers_estimates(name: str) -> None:
    text, model = text_of(name, "mine.yaml"), CHAT_MODELS[name]
    recipe = yaml.safe_load(text)
    assert (recipe["model_name_or_path"], recipe["evaluate"]["references"]) == (model.hub, model.hub)
    assert ("chat_template_kwargs" in recipe) == model.thinking
    assert ("gated" in text) == model.gated
    assert "Estimates from parameter counts, not measured" in text
    assert "#   srpo train --config mine.yaml" in text
    assert max(map(len, text.splitlines())) <= 120
    assert recipe["learning_rate"] == 1e-5
    assert recipe["activation_checkpointing"] is model.checkpointing
    assert recipe.get("load_in_4bit", False) is model.four_bits
    assert model.memory < 24


def test_estimates_grow_with_the_model() -> None:
    small, large = CHAT_MODELS["qwen3-0.6b"], CHAT_MODELS["qwen3-4b"]
    assert small.memory < large.memory
    assert small.minutes < large.minutes
    assert small.minutes == pytest.approx(6 * 0.6e9 * 2600 * 10_000 / (0.4 * 165e12) / 60)


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["recipes"]) == 0
    listed = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {*CHAT_MODELS, *NAMES, WHOLE} <= listed
    assert run(["recipes", "copy", "tldr", "--output", "mine.yaml"]) == 0
    text = Path("mine.yaml").read_text("utf-8")
    assert "srpo train --config mine.yaml" in text
    assert yaml.safe_load(text) == yaml.safe_load((RECIPES / "tldr.yaml").read_text("utf-8"))
    with pytest.raises(OutputError, match="exists already"):
        run(["recipes", "copy", "tldr", "--output", "mine.yaml"])
    with pytest.raises(UsageError, match="did you mean 'qwen3-4b'"):
        run(["recipes", "copy", "qwen3-4"])
    assert (RECIPES / TEMPLATE).is_file()
