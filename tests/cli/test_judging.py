"""The flags of a judge come from the settings of a judge."""

from __future__ import annotations

import pytest

from srpo.cli.flags import parse
from srpo.errors import ConfigError, UsageError
from srpo.judge.load import judge_from
from srpo.judge.settings import JudgeSettings
from srpo.settings import options


def parsed(*words: str) -> JudgeSettings:
    return parse("label", "Labels.", JudgeSettings, words)


def test_every_setting_has_a_flag() -> None:
    for option in options(JudgeSettings):
        value = {int: 3, float: 3.0, dict: {"n_probs": 3}}.get(type(option.default), "both")
        if option.hint == float | None:
            continue  # prices and limits, which need each other
        words = [f"--{option.name}", '{"n_probs": 3}' if isinstance(value, dict) else str(value)]
        assert parsed(*words) != JudgeSettings() or value == option.default


def test_settings_without_a_flag_take_their_defaults() -> None:
    assert parsed() == JudgeSettings()
    words = ("--judge", "llm", "--max_cost", "2", "--price_in", "1", "--price_out", "1", "--judge_timeout", "9")
    assert (parsed(*words).llm.max_cost, parsed(*words).llm.endpoint.timeout) == (2.0, 9.0)


def test_a_judge_and_a_model_behind_it_must_be_named() -> None:
    with pytest.raises(UsageError, match="no judge"):
        judge_from(parsed())
    with pytest.raises(ConfigError, match="judge_model"):
        judge_from(parsed("--judge", "llm", "--judge_base_url", "http://127.0.0.1:1"))
    assert judge_from(parsed("--judge", "numeric")).identity == "numeric"
