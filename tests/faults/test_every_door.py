"""Fault 17 at the doors that test_malice.py does not try: whatever verb loads a model, nothing of its folder runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from srpo.cli.main import VERBS, run
from tests.faults.test_malice import SUNG, bring_code, clean, pickle_weights, place, refusal  # noqa: F401

QUICK = ["--report_to", "none", "--use_cpu", "true", "--max_steps", "1", "--save_strategy", "no"]
SHORT = ["--revisions", "1", "--max_new_tokens", "2"]
# The demo alone loads models: the tiny ones that it trains.
LOADS_NO_MODEL = {"demo", "label", "exchange", "bandit", "env", "doctor", "config-schema", "completion", "recipes"}
READS_NO_WEIGHTS = {"plan"}
ELSEWHERE = {"check", "train", "revise", "convert"}  # in test_malice.py

DOORS: dict[str, Callable[[str, str, str], list[str]]] = {
    "precompute": lambda model, pairs, out: ["--dataset_name", pairs, "--reference_cache", out, *QUICK],
    "sample": lambda model, pairs, out: ["--input", pairs, "--output", out, "--samples", "1", *SHORT],
    "calibrate": lambda model, pairs, out: ["--input", pairs, "--gold_key", "chosen", "--output_dir", out, *SHORT],
    "rounds": lambda model, pairs, out: [
        *("--dataset_name", pairs, "--output_dir", out, "--judge", "exact_match", *QUICK)
    ],
    "merge": lambda model, pairs, out: ["--output_dir", out, "--prompts", pairs, "--max_new_tokens", "2"],
    "export": lambda model, pairs, out: ["--output_dir", out, "--max_new_tokens", "2"],
    "evaluate": lambda model, pairs, out: [
        *("--models", f"x={model}", "--prompts", f"test={pairs}", "--gold_key", "chosen", "--judge", "exact_match"),
        *("--output_dir", out, *SHORT),
    ],
    "serve": lambda model, pairs, out: ["--port", "0", *SHORT],
    "chat": lambda model, pairs, out: ["--votes", out, *SHORT],
    "judge": lambda model, pairs, out: ["check", "--pairs", pairs, "--judge", f"reward:{model}"],
}


def words(verb: str, place: Path) -> list[str]:  # noqa: F811
    """The verb's command on the folder's model, or on the adapter whose base it is."""
    model = str(place / ("adapter" if verb == "merge" else "model"))
    flags = DOORS[verb](model, str(place / "pairs.jsonl"), str(place / f"out-{verb}"))
    if verb in ("serve", "chat"):
        return [verb, model, *flags]
    return [verb, *flags] if verb in ("evaluate", "judge") else [verb, *flags, "--model_name_or_path", model]


def test_every_loading_function_is_listed() -> None:
    assert {*VERBS} == LOADS_NO_MODEL | READS_NO_WEIGHTS | ELSEWHERE | {*DOORS}


# Without malice the others ask for more than these two pairs, or wait for requests.
@pytest.mark.parametrize("verb", sorted({*DOORS} - {"calibrate", "rounds", "judge", "serve", "chat"}))
def test_control_harmless_models_load(verb: str, place: Path) -> None:  # noqa: F811
    assert run(words(verb, place)) == 0


@pytest.mark.parametrize("verb", sorted(DOORS))
def test_pickled_weights_do_not_run(verb: str, place: Path) -> None:  # noqa: F811
    pickle_weights(place, "model", "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(words(verb, place))
    assert not (place / SUNG).exists()


CODE = [(verb, kind) for verb in sorted(DOORS) for kind in ("model", "tokenizer")]
CODE.remove(("merge", "tokenizer"))  # an adapter brings one of its own


@pytest.mark.parametrize(("verb", "kind"), CODE)
def test_code_of_a_repository_does_not_run(verb: str, kind: str, place: Path) -> None:  # noqa: F811
    bring_code(place, kind)
    assert "without running theirs.py (named in " in refusal(words(verb, place))
    assert not (place / SUNG).exists()


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_a_plan_runs_no_code_of_a_repository(kind: str, place: Path) -> None:  # noqa: F811
    bring_code(place, kind)
    plan = ["plan", "--model_name_or_path", str(place / "model"), "--dataset_name", str(place / "pairs.jsonl")]
    assert "without running theirs.py (named in " in refusal(plan)
    assert not (place / SUNG).exists()
