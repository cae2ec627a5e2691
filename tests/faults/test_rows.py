"""Faults 1 to 3, through the command line: lines that are no rows, rows that are no pairs, pairs that prefer nothing.

Each case is a file that a run accepts, which the control shows, with one thing broken in it. A broken row ends the
command with 65 and is named by place, column, what was got and what was wanted; a row without a preference is left
out and counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.data.read import Reject, read_pairs
from srpo.errors import SRPOError
from srpo.sequences.render import Renderer
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.data.test_formats import FILES, WRITE
from tests.warm_command import srpo_in_a_fork

SUMS = [(f"What is {a} plus {a}?", f"Sum {2 * a}.", f"Sum {2 * a + 1}.") for a in range(1, 6)]
QUICK = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--save_strategy", "no"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llama().save_pretrained(folder)
    make_byte_tokenizer(chat_template=CHAT).save_pretrained(folder)
    return folder


def rows(name: str) -> list[dict[str, Any]]:
    return [WRITE[name](*each) for each in SUMS]


def train(model: Path, pairs: Path, *more: str) -> list[str]:
    words = ["train", "--model_name_or_path", str(model), "--dataset_name", str(pairs)]
    return [*words, "--output_dir", str(pairs.parent / "out"), *QUICK, *more]


def failure(words: list[str]) -> SRPOError:
    with pytest.raises(SRPOError) as caught:
        run(words)
    return caught.value


# layout → a change to a row of it, and what is said of the row: the column, what was got and what was wanted
BROKEN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "strings": [
        ({"chosen": None}, "'chosen' is null; want a string"),
        ({"rejected": [1, 2]}, "'rejected' is a list of numbers; want a string"),
        ({"prompt": 5}, "'prompt' is a number; want a string"),
        ({"chosen": {"role": "assistant", "content": "a"}}, "'chosen' is an object; want a string"),
        ({"chosen": "What is 1 plus 1?1", "rejected": "What is 1 plus 1?2"}, "repeat the prompt; want the answers"),
    ],
    "transcripts": [
        ({"chosen": "Hello."}, "want transcripts"),
        ({"rejected": "\n\nHuman: Eh?\n\nAssistant: Oh."}, "differ before their last turn"),
    ],
    "messages": [
        ({"prompt": ["a", {"role": "user", "content": "b"}]}, "is a list of strings and objects; want a list of"),
        ({"chosen": [{"role": "assistant", "content": None}]}, "has no text 'content': got null"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "must be one assistant message after the prompt, got user"),
        ({"images": ["a.png"]}, "'images': no file: "),
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human"}]}, "has no text 'value': got null"),
        ({"chosen": 4}, "'chosen' is a number; want a message"),
    ],
    "rankings": [
        ({"ranks": [1]}, "'ranks' is a list of numbers of 1; want a list of 2 numbers"),
        ({"ranks": ["best", "worst"]}, "'ranks of completion 1' is a string; want a number"),
        ({"completions": "a"}, "'completions' is a string; want a list of"),
    ],
    "alpaca_eval": [({"preference": 3}, "'preference' is 3; want 1 to 2"), ({"output_1": 1}, "want a string")],
}
CASES = [(name, changed, said) for name, cases in BROKEN.items() for changed, said in cases]


@pytest.mark.parametrize(("name", "changed", "said"), CASES, ids=lambda each: str(each)[:30])
def test_a_broken_row_is_named(name: str, changed: dict[str, Any], said: str, model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    good = rows(name)
    for wrong in ({**good[0], **changed}, {"text": "a"}):
        FILES[".jsonl"](pairs, [*good, wrong])
        error = failure(train(model, pairs))
        assert error.exit_code == 65
        assert f"1 of {len(good) + 1} rows cannot be used as pairs" in str(error)
        assert f"{pairs}:{len(good) + 1}: " in str(error)
        assert (said if wrong != {"text": "a"} else "; this row has 'text'") in str(error)
        assert "--bad_rows skip" in str(error)
        assert not [file for file in (tmp_path / "out").glob("*") if file.stat().st_size]


@pytest.mark.parametrize("name", WRITE)
def test_every_layout_works_by_file_name_alone(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: the files above pass whole, and train without the broken row where that is asked for."""
    pairs, trails = tmp_path / "pairs.jsonl", tmp_path / "trails.jsonl"
    FILES[".jsonl"](pairs, rows(name))
    assert run(["check", "--model_name_or_path", str(model), "--dataset_name", str(pairs)]) == 0
    assert f" {name}: " in " ".join(capsys.readouterr().out.split())
    FILES[".jsonl"](pairs, [*rows(name), {"text": "a"}])
    assert run(train(model, pairs, "--bad_rows", "skip")) == 0
    FILES[".jsonl"](pairs, rows(name))
    words = ["revise", "--model_name_or_path", str(tmp_path / "out"), "--input", str(pairs), "--output", str(trails)]
    assert run([*words, "--revisions", "1", "--max_new_tokens", "4"]) == 0
    assert len(trails.read_text("utf-8").splitlines()) == len(SUMS)


@pytest.mark.parametrize("suffix", FILES)
def test_every_kind_of_file_trains_by_its_name_alone(suffix: str, model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / f"pairs{suffix}"
    FILES[suffix](pairs, rows("text to messages"))
    assert run(train(model, pairs)) == 0
    pairs.write_bytes(pairs.read_bytes()[: pairs.stat().st_size // 2])  # and torn in half it does not
    assert failure(train(model, pairs)).exit_code == 65


def test_columns_by_other_names(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    FILES[".jsonl"](pairs, [{"q": x, "good": w, "bad": l} for x, w, l in SUMS])
    assert run(train(model, pairs, "--map", "prompt=q,chosen=good,rejected=bad")) == 0
    error = failure(train(model, pairs))
    assert error.exit_code == 65
    assert "say which columns are meant with `--map prompt=…,chosen=…,rejected=…`" in str(error)
    error = failure(train(model, pairs, "--map", "promt=q"))
    assert error.exit_code == 78
    assert "did you mean 'prompt'?" in str(error)


def test_rankings_are_a_choice(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = tmp_path / "pairs.jsonl"
    completions = {"completions": ["a", "b", "c"], "scores": [1, 2, 3]}
    FILES[".jsonl"](pairs, [{"prompt": x, **completions} for x, _, _ in SUMS])
    for choice, made in ((["--rankings", "all"], 15), (["--rankings", "best-worst"], 5), ([], 15)):
        caplog.clear()
        with caplog.at_level("INFO", "srpo"):
            assert run(train(model, pairs, *choice)) == 0
        assert f"{made} pairs" in caplog.text
        assert "read as rankings: " in caplog.text
    assert failure(train(model, pairs, "--rankings", "best")).exit_code == 78


def test_rows_without_a_preference_are_counted(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = tmp_path / "pairs.jsonl"
    good = rows("strings")
    undecided = [{**good[0], "rejected": ""}, {**good[0], "chosen": good[0]["rejected"]}]
    FILES[".jsonl"](pairs, [*good, *undecided])
    with caplog.at_level("INFO", "srpo"):
        assert run(train(model, pairs)) == 0
    assert f"{len(undecided)} of {len(good) + len(undecided)} rows left out" in caplog.text
    FILES[".jsonl"](pairs, undecided)
    error = failure(train(model, pairs))
    assert error.exit_code == 65
    assert "2 of 2 rows cannot be used as pairs" in str(error)


TOOL_CHAT = "{% if tools %}{{ tools | tojson }}{% endif %}{% if loud is defined %}LOUD{% endif %}" + CHAT


def test_tools_and_options_reach_draft_and_revision_alike() -> None:
    renderer = Renderer(make_byte_tokenizer(chat_template=TOOL_CHAT))
    plain, more = ({**row, "system": "Be kind."} for row in (rows("strings")[0], rows("messages")[0]))
    more |= {"tools": [{"name": "add"}], "chat_template_kwargs": {"loud": True}}
    [before, after] = (renderer.six(read_pairs([row])[0]) for row in (plain, more))
    for one, other in zip(before, after, strict=True):
        assert '[{"name": "add"}]LOUD' + renderer.decode(one.context) == renderer.decode(other.context)
        assert one.answer == other.answer


def test_tools_that_would_not_be_shown_are_refused() -> None:
    [pair] = read_pairs([{**rows("messages")[0], "tools": [{"name": "add"}]}])
    for template, said in ((CHAT, "the chat template shows no tools"), (None, "need a chat template"), (TOOL_CHAT, "")):
        [(_, six)] = Renderer(make_byte_tokenizer(chat_template=template)).rendered([pair])
        assert isinstance(six, Reject) == bool(said)
        assert not said or said in six.reason  # type: ignore[union-attr]


def test_the_command_prints_the_reason(model: Path, tmp_path: Path) -> None:
    """The exit code, the lines, no traceback and no file left behind."""
    pairs = tmp_path / "pairs.jsonl"
    good = json.dumps(rows("strings")[0]).encode()
    lines = [good, b"garbage", b'{"prompt": "caf\xe9"}', good[:-1], b'{"prompt": 1, "prompt": 2}', b"\x00", good]
    pairs.write_bytes(b"\n".join(lines))
    done = srpo_in_a_fork(*train(model, pairs))
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    for said in (
        "5 of 7 rows cannot be used as pairs",
        f"{pairs}:2:1: not JSON",
        f"{pairs}:3:16: not UTF-8: byte 0xe9",
        f"{pairs}:4:{len(good)}: not JSON",
        f"{pairs}:5: key 'prompt' occurs twice",
        f"{pairs}:6:1: not JSON",
    ):
        assert said in done.stderr
    assert not list((tmp_path / "out").glob("*.safetensors"))
