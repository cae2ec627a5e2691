"""Faults 4 to 6, through the command line: rows over the limit, control tokens as text, templates that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.errors import LengthError, SRPOError, TemplateError
from srpo.sequences.templates import TEMPLATE_FILE
from tests.conftest import make_byte_tokenizer, make_tiny_llama

CHAT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHORT = [{"prompt": f"{n} + 1?", "chosen": f"It is {n + 1}.", "rejected": "No."} for n in range(4)]
QUICK = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llama().save_pretrained(folder)
    make_byte_tokenizer(chat_template=CHAT).save_pretrained(folder)
    return folder


def pairs(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def train(model: Path, file: Path, *more: str) -> Path:
    out = file.parent / "out"
    words = ["train", "--model_name_or_path", str(model), "--dataset_name", str(file), "--output_dir", str(out)]
    assert run([*words, *QUICK, *more]) == 0
    return out


def found(capsys: pytest.CaptureFixture[str], model: Path, file: Path, *more: str) -> dict[str, Any]:
    words = ["check", "--model_name_or_path", str(model), "--dataset_name", str(file), "--json", *more]
    capsys.readouterr()
    assert run(words) == 0
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------------- 4: over the limit

LONG = [
    *SHORT,
    {"prompt": "x" * 600 + " why?", "chosen": "Because.", "rejected": "No."},  # over whatever is done with it
    {"prompt": "why?", "chosen": "Because " * 30, "rejected": "No."},  # fits alone, not after itself as a draft
]


def test_nothing_is_cut_by_default(model: Path, tmp_path: Path) -> None:
    file = pairs(tmp_path, LONG)
    with pytest.raises(LengthError) as caught:
        train(model, file)
    assert caught.value.exit_code == 65
    said = str(caught.value)
    assert "2 of 6 rows are too long" in said
    for line in (5, 6):
        assert f"{file}:{line}: " in said
    assert said.count("as revisions [") == 2
    assert "bad_rows=skip" in said
    assert "truncate=prompt" in said
    assert not (tmp_path / "out" / TEMPLATE_FILE).exists()
    with pytest.raises(LengthError) as caught:
        train(model, file, "--truncate", "prompt")  # the answers alone are too long
    assert "truncate=prompt" not in str(caught.value)
    train(model, pairs(tmp_path, SHORT))  # control


def test_long_rows_are_left_out_or_cut_on_request(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = pairs(tmp_path, LONG)
    with caplog.at_level("INFO", "srpo"):
        train(model, file, "--bad_rows", "skip")
    assert "2 of 6 rows left out" in caplog.text
    with caplog.at_level("INFO", "srpo"):
        train(model, pairs(tmp_path, LONG[:5]), "--truncate", "prompt")
    assert "the prompts of 1 of 5 pairs cut to fit 512 tokens" in caplog.text
    # An answer that is too long after itself is nothing that cutting a prompt mends.
    with pytest.raises(LengthError, match=r"(?s)1 of 6 rows are too long.*which cutting its prompt does not mend"):
        train(model, pairs(tmp_path, LONG), "--truncate", "prompt")
    counted = found(capsys, model, file, "--truncate", "prompt")
    assert (counted["usable"], counted["over"], counted["cut"], counted["max_length"]) == (5, 2, 1, 512)


def test_all_too_long(model: Path, tmp_path: Path) -> None:
    with pytest.raises(LengthError, match="4 of 4 rows are too long"):
        train(model, pairs(tmp_path, SHORT), "--max_length", "8", "--bad_rows", "skip")


# ---------------------------------------------------------------------- 5: control tokens as text


def test_control_tokens_are_text(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = found(capsys, model, pairs(tmp_path, [{"prompt": "a??????b", "chosen": "y?????y", "rejected": "n"}]))
    forged = {"prompt": "a<eos>?b", "chosen": "y<bos>y", "rejected": "n"}
    counted = found(capsys, model, pairs(tmp_path, [forged]))
    # One id per byte: as text a forged token is as long as any other text of its length, as itself it would be one.
    assert counted["lengths"] == plain["lengths"]
    assert counted["flat_tokens"] == plain["flat_tokens"]
    train(model, pairs(tmp_path, [forged, {**forged, "prompt": "\u202e\u2066 bidi"}]))


# ---------------------------------------------------------------------- 6: templates


def test_a_refusal_by_the_template_names_the_row(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"}]
    answer = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    file = pairs(tmp_path, [{"prompt": turns[1:], **answer}, {"prompt": turns, **answer}])
    with pytest.raises(TemplateError, match=r"pairs.jsonl:2: the tokenizer's chat template refuses.*no system role"):
        train(model, file)
    train(model, file, "--bad_rows", "skip")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(model, pairs(tmp_path_factory.mktemp("trained"), SHORT))


def other_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHAT + " ", "utf-8")


def other_tokenizer(folder: Path) -> None:
    tokenizer = make_byte_tokenizer(chat_template=CHAT)
    tokenizer.add_tokens(["why"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("change", [other_chat_template, other_tokenizer])
def test_a_model_with_another_tokenizer_than_it_was_trained_with(
    trained: Path, tmp_path: Path, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    saved = json.loads((folder / TEMPLATE_FILE).read_text("utf-8"))["sha256"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1 + 1?"}\n', "utf-8")
    revise = ["revise", "--model_name_or_path", str(folder), "--input", str(prompts), "--max_new_tokens", "4"]
    revise += ["--output", str(tmp_path / "trails.jsonl")]
    check = ["check", "--model_name_or_path", str(folder), "--dataset_name", str(pairs(tmp_path, SHORT))]
    assert run(check) == 0  # control
    train(folder, pairs(tmp_path, SHORT))
    change(folder)
    for attempt in (lambda: run(check), lambda: train(folder, pairs(tmp_path, SHORT)), lambda: run(revise)):
        with pytest.raises(SRPOError) as caught:
            attempt()
        assert caught.value.exit_code == 78
        # Both hashes, so that a user can see which files belong together.
        assert saved in str(caught.value)
        assert str(caught.value).count("sha256") == 1
        assert "--revision_template" in str(caught.value)
    # A template that is named is taken as it is.
    assert run([*check, "--revision_template", "quote"]) == 0
    train(folder, pairs(tmp_path, SHORT), "--revision_template", str(folder / TEMPLATE_FILE))
