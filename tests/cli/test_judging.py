"""The flags of a judge are the settings of a judge."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from srpo.cli.judging import FLAGS, NUMBERS, add_judge_flags, judge_of
from srpo.errors import ConfigError, UsageError
from srpo.judge.settings import JudgeArguments


def parsed(*words: str) -> JudgeArguments:
    parser = argparse.ArgumentParser()
    add_judge_flags(parser)
    return judge_of(parser.parse_args(words))


def test_every_setting_has_a_flag_of_its_kind() -> None:
    assert list(FLAGS) == [field.name for field in fields(JudgeArguments)]
    hints = get_type_hints(JudgeArguments)  # not `field.type`, which a parser of the settings writes over
    kinds = {name: (*get_args(hint), hint)[0] for name, hint in hints.items()}
    assert {name: kind for name, kind in kinds.items() if kind is not str} == NUMBERS


def test_what_is_not_given_is_as_the_settings_have_it() -> None:
    assert parsed() == JudgeArguments()
    assert parsed("--judge", "llm", "--max_cost", "2").max_cost == 2.0


def test_a_judge_has_to_be_named_and_a_model_behind_one_too() -> None:
    with pytest.raises(UsageError, match="no judge"):
        parsed().load()
    with pytest.raises(ConfigError, match="judge_model"):
        parsed("--judge", "llm", "--judge_base_url", "http://127.0.0.1:1").load()
    assert parsed("--judge", "numeric").load().identity == "numeric"
