"""Options of the chat template on the command line: in JSON or as key=value, and the same in training and in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srpo import Renderer, RevisionTemplate, SRPOConfig
from srpo.cli.flags import parse
from srpo.cli.main import run
from srpo.cli.revise import Arguments
from srpo.cli.training_flags import parse_training, training_groups
from srpo.errors import ConfigError
from srpo.settings import as_mapping

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if tone is defined %}[{{ tone }}]{% endif %}{% endif %}"
)
GIVEN = ["--model_name_or_path", "m", "--input", "p"]


@pytest.fixture
def place(tmp_path: Path, byte_tokenizer: Callable[..., Any]) -> Path:
    byte_tokenizer(chat_template=CHAT).save_pretrained(tmp_path / "model")
    row = {"prompt": "one", "chosen": "two", "rejected": "three"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "text", ['{"tone": "calm", "deep": false}', "tone=calm,deep=false", "tone = calm, deep = false"]
)
def test_options_are_json_or_key_and_value(text: str) -> None:
    wanted = {"tone": "calm", "deep": False}
    assert parse("revise", "", Arguments, [*GIVEN, "--chat_template_kwargs", text]).chat_template_kwargs == wanted
    assert SRPOConfig(output_dir="o", chat_template_kwargs=text, report_to="none").chat_template_kwargs == wanted  # type: ignore[arg-type]
    assert as_mapping(wanted, "x") == wanted


@pytest.mark.parametrize("text", ["tone", "[1]", "=calm", "3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"chat_template_kwargs: .*expected a mapping"):
        parse("revise", "", Arguments, [*GIVEN, "--chat_template_kwargs", text])
    with pytest.raises(ConfigError, match=r"chat_template_kwargs: .*expected a mapping"):
        SRPOConfig(output_dir="o", chat_template_kwargs=text, report_to="none")  # type: ignore[arg-type]


def test_train_takes_them_as_a_flag_and_in_a_settings_file(tmp_path: Path) -> None:
    named = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
    (tmp_path / "s.yaml").write_text("chat_template_kwargs: {tone: calm}\n")
    for more in (["--chat_template_kwargs", "tone=calm"], ["--config", str(tmp_path / "s.yaml")]):
        found, _ = parse_training("train", "", [*named, *more])
        assert training_groups(found)[0].chat_template_kwargs == {"tone": "calm"}


def test_a_renderer_shows_them_and_a_saved_template_keeps_them(
    tmp_path: Path, byte_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT)
    plain, calm = Renderer(tokenizer), Renderer(tokenizer, chat_template_kwargs={"tone": "calm"})
    assert "[calm]" in tokenizer.decode(calm.draft("one"))
    assert "[calm]" not in tokenizer.decode(plain.draft("one"))
    calm.template.save(tmp_path)
    again = Renderer(tokenizer, RevisionTemplate.load(tmp_path))
    assert again.revision("one", "two") == calm.revision("one", "two") != plain.revision("one", "two")
    # An option of the command wins over the template's own.
    assert "[loud]" in tokenizer.decode(
        Renderer(tokenizer, calm.template, chat_template_kwargs={"tone": "loud"}).draft("one")
    )


def test_check_renders_with_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--dataset_name", str(place / "pairs.jsonl"), "--model_name_or_path", str(place / "model")]
    pages = []
    for more in ([], ["--chat_template_kwargs", "tone=calm"], ["--no_chat_template"]):
        assert run([*words, *more]) == 0
        pages.append("".join(capsys.readouterr().out.split()))
    assert ["[calm]" in page for page in pages] == [False, True, False]
    assert ["<assistant>" in page for page in pages] == [True, True, False]


def test_trails_drawn_with_other_options_are_other_trails() -> None:
    made = [
        parse("revise", "", Arguments, [*GIVEN, *more]).made_with() for more in ([], ["--chat_template_kwargs", "a=1"])
    ]
    assert made[1] == {**made[0], "chat_template_kwargs": '{"a": 1}'}
