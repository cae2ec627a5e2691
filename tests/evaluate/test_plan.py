"""Plans from files and flags: names in several forms, shared settings, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from srpo.errors import ConfigError, InputError
from srpo.evaluate.plan import Model, Plan, read_plan
from srpo.judge.settings import LLMSettings
from srpo.settings import build


def test_models_and_prompts_can_be_named_in_three_ways() -> None:
    wanted = {"srpo": "runs/srpo", "dpo": "runs/dpo"}
    for models in (wanted, ["runs/srpo", "dpo=runs/dpo"], {"srpo": {"model": "runs/srpo"}, "dpo": "runs/dpo"}):
        plan = Plan.of({"models": models, "prompts": ["in=a.jsonl", "out=b.jsonl"]})
        assert {name: model.model for name, model in plan.models.items()} == wanted
        assert plan.prompts == {"in": "a.jsonl", "out": "b.jsonl"}


def test_shared_settings_hold_for_all_models() -> None:
    models = {"a": "x", "b": {"model": "y", "policy": "if_preferred", "controls": ["best_of"]}}
    plan = Plan.of({"models": models, "prompts": "p", "references": "base", "revision_template": "quote"})
    assert plan.models == {
        "a": Model("x", "base", "quote"),
        "b": Model("y", "base", "quote", "if_preferred", None, ("best_of",)),
    }


def test_a_model_left_out_is_removed_from_figures() -> None:
    models = {"a": "x", "b": {"model": "y", "controls": ["best_of"]}}
    settings = {"models": models, "prompts": "p", "controls": ["gold"], "output_dir": "out"}
    settings["curves"] = ["b/best_of", "a", "a/gold"]
    whole, part = Plan.of(settings), Plan.of({**settings, "without": "b"})
    assert (list(part.models), part.curves) == (["a"], ["a", "a/gold"])
    for plan in (whole, part):
        plan.check()
    assert (whole.controls_of("a"), whole.controls_of("b")) == (["gold"], ["best_of"])
    for wrong in ({"curves": ["b/gold"]}, {"highlight": "c"}):
        with pytest.raises(ConfigError, match="no system"):
            Plan.of({**settings, "trails": "file", **wrong}).check()
    Plan.of({**settings, "trails": "file", "curves": ["file"], "highlight": "file"}).check()


def test_labels_can_be_given_in_two_ways() -> None:
    assert Plan.of({"trails": "a", "labels": {"a/gold": "Gold", "in": "In"}}).labels == {"a/gold": "Gold", "in": "In"}
    assert Plan.of({"trails": "a", "labels": ["a/gold=A=B"]}).labels == {"a/gold": "A=B"}


def test_a_recipe_holds_the_plan_below_evaluate(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("beta: 0.1\nevaluate:\n  seeds: 3\n  trails: [a.jsonl]\n")
    assert read_plan(str(tmp_path / "recipe.yaml")) == {"seeds": 3, "trails": ["a.jsonl"]}
    (tmp_path / "plain.yaml").write_text("trails: a.jsonl\ntemperature: 0\n")
    plan = Plan.of(read_plan(str(tmp_path / "plain.yaml")))
    assert (plan.trails, plan.temperature) == (["a.jsonl"], [0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trials": "a"}, "unknown key 'trials'; did you mean 'trails'"),
        ({}, "nothing to evaluate"),
        ({"models": "m"}, "models but no prompts"),
        ({"models": "m", "prompts": "p", "controls": ["best-of"]}, "did you mean 'best_of'"),
        ({"models": {"a": {"model": "m", "polcy": "x"}}, "prompts": "p"}, "models: a: unknown key 'polcy'"),
        ({"models": {"a": {"policy": "x"}}, "prompts": "p"}, "a mapping with `model`"),
        ({"models": ["x/a", "y/a"], "prompts": "p"}, "'y/a' has a name that is given twice"),
        ({"models": ["=x"], "prompts": "p"}, "names nothing"),
        ({"trails": {"a": "b"}}, "expected a list"),
        ({"trails": "a", "seeds": []}, "seeds: no value"),
        ({"models": "m", "prompts": "p", "without": "n"}, "without: no model 'n'"),
        ({"models": "m", "prompts": "p", "policy": "best_of", "temperature": 0}, "greedy drafts are all the same"),
        ({"trails": "a", "labels": ["a="]}, "labels: a name or a text is missing"),
    ],
)
def test_mistakes_in_settings_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Plan.of(settings)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (None, InputError, "no such file"),
        ("- a\n", ConfigError, "not a mapping"),
        ("a: [", ConfigError, "not YAML"),
        ("evaluate:\n  sed: 1\n", ConfigError, "did you mean 'seed'"),
    ],
)
def test_unreadable_plan_files_are_named(text: str | None, kind: type[Exception], said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(kind, match=said):
        read_plan(str(tmp_path / "plan.yaml"))


def test_settings_of_judge_llm_are_keys_of_the_plan() -> None:
    given = {"judge_model": "m", "judge_timeout": 2, "price_in": 1, "price_out": 2, "max_cost": 2.5}
    plan = Plan.of({"trails": "a", "judge": "llm", **given})
    assert plan.llm == build(LLMSettings, given)
    assert (plan.llm.model, plan.llm.endpoint.timeout, plan.llm.max_cost) == ("m", 2, 2.5)
    with pytest.raises(ConfigError, match="judge_timeout: -1; expected above 0"):
        Plan.of({"trails": "a", "judge_timeout": -1})
