"""The flags of a judge are the settings of a judge."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import pytest

from srpo.cli.judge_flags import add_judge_flags, judge_settings
from srpo.errors import ConfigError, UsageError
from srpo.evaluate.judge_arguments import JudgeArguments


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_judge_flags(parser)
    return parser.parse_args(words)


def test_every_setting_has_a_flag_with_its_default_and_every_flag_a_setting() -> None:
    assert vars(parsed()) == asdict(JudgeArguments())
    given = judge_settings(parsed("--judge", "llm", "--judge_price", "1", "2.5", "--max_cost", "2"))
    assert (given.judge, given.judge_price, given.max_cost) == ("llm", [1.0, 2.5], 2.0)


def test_a_judge_has_to_be_named_and_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="no judge"):
        judge_settings(parsed()).load()
    with pytest.raises(ConfigError, match="add --judge llm"):
        judge_settings(parsed("--judge", "numeric", "--judge_model", "m")).load()
    with pytest.raises(ConfigError, match="judge_body"):
        judge_settings(parsed("--judge", "llm", "--judge_model", "m", "--judge_body", "[]")).load()
    with pytest.raises(ConfigError, match="no model is named"):
        judge_settings(parsed("--judge", "llm")).load()
    assert judge_settings(parsed("--judge", "numeric")).load().identity == "numeric"
