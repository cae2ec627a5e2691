"""Flags and help pages that are made from dataclasses of settings."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from typing import Any

import pytest

from srpo.cli.flags import FlagParser, parser_of
from srpo.cli.main import VERBS, run
from srpo.cli.plan import Arguments
from srpo.cli.training_flags import (
    COMMON,
    FROM_TRANSFORMERS,
    HEADINGS,
    _training_parser,
    parse_training,
    training_groups,
)
from srpo.errors import UsageError
from srpo.evaluate.plan import Plan
from srpo.judge.settings import JudgeSettings
from srpo.rounds.plan import RoundsArguments
from srpo.settings import options

GIVEN = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
# A help text that needs another flag's text, or the code, to be understood.
LEANING = re.compile(
    r"^(of|as|at|that|those|these|which|likewise|the same|what|who)\b|\b(then|likewise|ditto|as above)\b"
    r"|\b(said|told|stands?)\b",
    re.IGNORECASE,
)


def leans(help: str) -> bool:
    return len(help.split()) < 2 or bool(LEANING.search(help))


def kinds() -> Iterator[Any]:
    """The dataclasses of settings of every verb."""
    for verb in (*VERBS, "judge_files"):
        for name, kind in vars(importlib.import_module(f"srpo.cli.{verb.replace('-', '_')}")).items():
            if name.endswith("Arguments") and is_dataclass(kind):
                yield kind
    yield from (Plan, RoundsArguments, JudgeSettings)


def training_parser() -> FlagParser:
    return _training_parser("rounds", "Rounds.", [*options(RoundsArguments), *options(JudgeSettings)])


def test_every_help_text_of_ours_is_understood_alone() -> None:
    ours = {f"{kind.__qualname__} --{option.name}": option.help for kind in kinds() for option in options(kind)}
    parser = training_parser()
    folded = parser.heading(FROM_TRANSFORMERS)._group_actions
    ours |= {action.option_strings[0]: action.help or "" for action in parser._actions if action not in folded}
    assert len(ours) > 150
    assert [name for name, help in ours.items() if leans(help)] == []


@pytest.mark.parametrize("help", ["Prompts that are answered then.", "At which; 0 is greedy.", "of the choice", "Who."])
def test_a_help_text_that_leans_on_another_is_found(help: str) -> None:
    assert leans(help)


def test_help_of_train_lists_the_method_first_and_folds_the_flags_of_transformers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = []
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit) as ended:
            run(["train", *words])
        assert ended.value.code == 0
        pages.append(capsys.readouterr().out)
    short, long = pages
    places = [short.index(f"\n{title}:\n") for title in (*HEADINGS, FROM_TRANSFORMERS)]
    assert places == sorted(places)
    flags = [short.index(f"\n  --{name} ") for name in ("beta", "num_train_epochs", "dataset_name")]
    assert flags == sorted(flags)
    assert "--neftune_noise_alpha" in long
    assert "--neftune_noise_alpha" not in short
    assert "`srpo train --help all` lists them" in short
    for name in COMMON:
        assert f"--{name}" in short


def test_flags_become_the_settings_of_a_training() -> None:
    found, _ = parse_training("train", "Trains.", [*GIVEN, "--beta", "2", "--lora_r", "4"])
    config, model, _, _ = training_groups(found)
    assert (config.output_dir, config.beta, model.lora_r) == ("o", 2.0, 4)


def test_flags_with_three_states_need_no_value() -> None:
    for words, value in ((["--bf16"], True), (["--bf16", "false"], False), ([], None)):
        found, _ = parse_training("train", "Trains.", [*GIVEN, *words])
        assert found["bf16"] is value


def test_defaults_are_shown_where_there_are_any() -> None:
    text = " ".join(parser_of("label", "Labels.", JudgeSettings).format_help().split())
    assert "Seconds that one request to the server may take. [120.0]" in text
    assert "Name of the model at the server; not needed if the server serves one model. --" in text


def test_every_setting_that_is_on_by_default_can_be_switched_off() -> None:
    parsers = {kind: parser_of("verb", "Text.", kind) for kind in kinds()}
    every = [(kind, each) for kind in parsers for each in options(kind)]
    on = [(kind, each) for kind, each in every if each.hint is bool and each.default is True]
    undecided = [(kind, each) for kind, each in every if each.hint == bool | None]
    assert [each.name for _, each in undecided] == ["bf16"]
    assert on
    for kind, each in [*on, *undecided]:
        ways = ([], [f"--{each.name}"], [f"--no_{each.name}"])
        found = [vars(parsers[kind].parse_args([*required(kind), *words])) for words in ways]
        assert [given.get(each.name, each.default) for given in found] == [each.default, True, False]
    assert "Switches --bf16 off." in parsers[Arguments].format_help()
    with pytest.raises(UsageError, match="--no_use_peft"):  # control: it is off
        parsers[Arguments].parse_args([*required(Arguments), "--no_use_peft"])


def required(kind: Any) -> list[str]:
    """Flags, with values, of the settings without a default."""
    return [word for each in options(kind) if each.default is MISSING for word in (f"--{each.name}", "x")]


def test_lists_and_names_take_several_words() -> None:
    parser = parser_of("evaluate", "Evaluates.", Plan)
    given = parser.parse_args(["--seeds", "1", "2", "--models", "a=x", "b=y", "--trust_remote_code"])
    assert given == argparse.Namespace(seeds=[1, 2], models=["a=x", "b=y"], trust_remote_code=True)


def test_a_setting_whose_name_begins_with_no_is_not_taken_for_a_switch_off(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "Switches --disable_dropout off." in page
    assert "Switches --no_chat_template off." not in page  # control: it is a setting
    assert "--optim NAME" in page
