"""The command line's own part: help, version, wrong words, errors as one line with their code, and `srpo env`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import srpo
from srpo import errors
from srpo.cli import env as env_verb
from srpo.cli import main as command
from srpo.cli.flags import FlagParser
from srpo.versions import versions
from tests.warm_command import srpo_in_a_fork

SECRET = "hf_planted_0123456789"
TRAIL = '{"prompt": "p", "answers": [{"text": "a", "tokens": 1}, {"text": "b", "tokens": 1}], "stopped": "revisions"}\n'
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SRPOError)]


def srpo_command(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`srpo WORDS…` in a process of its own."""
    environment = {**os.environ, **settings}
    return subprocess.run([sys.executable, "-m", "srpo", *words], capture_output=True, text=True, env=environment)


def test_help_lists_every_verb() -> None:
    done = srpo_command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for verb, what in command.VERBS.items():
        assert f"  {verb} " in done.stdout
        assert what in done.stdout
    assert srpo_command("-h").stdout == done.stdout


def test_no_verb_shows_where_to_start() -> None:
    done = srpo_command()
    assert (done.returncode, done.stderr) == (0, "")
    named = re.findall(r"^  srpo (\w+)", done.stdout, re.MULTILINE)
    assert len(named) == 5
    assert {*named} <= {*command.VERBS}
    assert done.stdout.count("\n") < 20


def test_every_verb_has_a_file_and_every_file_a_verb() -> None:
    folder = Path(command.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if "def main(argv" in path.read_text("utf-8")}
    assert files == set(command.VERBS)


def test_version() -> None:
    done = srpo_command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{srpo.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["trian"],
            "srpo: error: unknown verb 'trian'; expected one of "
            + ", ".join(command.VERBS)
            + "; did you mean 'train'?",
        ),
        (
            ["qqq"],
            "srpo: error: unknown verb 'qqq'; expected one of "
            + ", ".join(command.VERBS)
            + "; `srpo --help` lists the verbs",
        ),
        (["env", "--jsn"], "srpo: error: srpo env: unrecognized arguments: --jsn; did you mean '--json'?"),
        (
            ["env", "--qqqq"],
            "srpo: error: srpo env: unrecognized arguments: --qqqq; `srpo env --help` lists the options",
        ),
        # A prefix of a flag is not the flag: the next release may add another that begins alike.
        (["env", "--js"], "srpo: error: srpo env: unrecognized arguments: --js; did you mean '--json'?"),
    ],
    ids=["near verb", "strange verb", "near flag", "strange flag", "prefix of a flag"],
)
def test_a_wrong_word_is_one_line_and_64(words: list[str], line: str) -> None:
    done = srpo_command("--quiet", *words)  # without lines of progress, which a busy machine would add
    assert (done.returncode, done.stdout, done.stderr) == (64, "", line + "\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "many"], "argument --steps: invalid int value: 'many'"),
        ([], "the following arguments are required: --steps"),
    ],
)
def test_a_parser_raises_usage_errors(argv: list[str], said: str) -> None:
    parser = FlagParser(prog="srpo fit")
    parser.add_argument("--steps", type=int, required=True)
    with pytest.raises(errors.UsageError) as caught:
        parser.parse_args(argv)
    assert str(caught.value) == f"srpo fit: {said}; `srpo fit --help` lists the options"


def end_of(monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> int:
    """The exit code of a command whose verb raises that."""
    verb = ModuleType("srpo.cli.stop")

    def main(argv: list[str]) -> int:
        raise stop

    vars(verb)["main"] = main
    monkeypatch.setitem(sys.modules, verb.__name__, verb)
    monkeypatch.setitem(command.VERBS, "stop", "stops")
    monkeypatch.setattr(sys, "argv", ["srpo", "stop"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_is_one_line_and_its_code(
    kind: type[errors.SRPOError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(monkeypatch, kind("found this", where="a.jsonl:3", fix="do that")) == kind.exit_code
    assert capsys.readouterr() == ("", "srpo: error: a.jsonl:3: found this; do that\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSecond line"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_out_of_memory_names_the_settings_to_reduce(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(monkeypatch, error) == 70
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("srpo: error: out of memory")
    assert "; take smaller batches (per_device_train_batch_size, max_tokens_per_batch, batch_size) or" in err


def test_ctrl_c_is_75_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(monkeypatch, KeyboardInterrupt()) == 75
    assert capsys.readouterr() == ("", "srpo: interrupted\n")


def test_an_unexpected_error_is_70_and_its_traceback_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(monkeypatch, ZeroDivisionError("division by zero\nsecond line")) == 70
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "srpo: internal error: ZeroDivisionError: division by zero")
    assert "Traceback" not in err
    monkeypatch.setenv("SRPO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        end_of(monkeypatch, ZeroDivisionError("division by zero"))


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_closed_pipe_is_74_without_a_traceback(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "srpo", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (74, "")


def test_env_prints_versions_and_no_secret() -> None:
    secrets = {"HF_TOKEN": SECRET, "HTTPS_PROXY": f"http://user:{SECRET}@localhost"}
    done = srpo_in_a_fork("env", "--json", env={**os.environ, **secrets})
    assert done.returncode == 0
    assert SECRET not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {"versions", "devices", "backends"}
    assert told["versions"]["srpo"] == srpo.__version__
    assert told["versions"]["torch"] == importlib.metadata.version("torch")
    assert told["devices"]["cpu"]["threads"] == 1


def test_env_as_a_table_shows_the_same() -> None:
    words = " ".join(srpo_in_a_fork("env", env={**os.environ, "COLUMNS": "120"}).stdout.split())
    for name, version in versions().items():
        assert f"{name} {version or 'not installed'}" in words


def test_env_names_the_back_ends_there_are() -> None:
    from srpo.model.packed.backends import BACKENDS

    assert {"auto", *env_verb.BACKENDS} == set(BACKENDS)


# ---------------------------------------------------------------------- what is written

# The command, and what is said of which of its flags.
OVERWRITES = {
    "revise --input in --output new --html new": "--html: new is the file of --output",
    "revise --input in --output new --html in": "--html: in is the file of --input",
    "revise --input in --output in": "--output: in is the file of --input",
    "revise --input in --output new --html new.settings.json": "beside --output",
    "sample --input in --output in": "--output: in is the file of --input",
    "label --trails in --output in --judge numeric": "--output: in is the file of --trails",
    "label --trails in --output in --to_vote": "--output: in is the file of --trails",
    "label --trails in --output ./in": "--output: ./in is the file of --trails",
    "label --trails in --output link": "--output: link is the file of --trails",
    "label --trails in --output hard": "--output: hard is the file of --trails",
    "label --trails in --output other --judge votes:other": "--output: other is the file of --judge",
    "label --trails in --output new --judge llm --verdicts new": "--output: new is the file of --verdicts",
    "check --dataset_name in --html in": "--html: in is the file of --dataset_name",
    "check --dataset_name in --eval_dataset_name other --html other": "other is the file of --eval_dataset_name",
    "calibrate --input srpo_calibration.json --output_dir .": "is the file of --input",
    "exchange --input in --output in --form alpaca": "--output: in is the file of --input",
    "judge check --pairs in --output in --judge numeric": "--output: in is the file of --pairs",
    "judge compare --first in --second other --output other --judge numeric": "--output: other is the file of --second",
}
CANNOT = {
    "revise --input in --output new --html folder": "folder: cannot be written: it is a folder; .*name another --html",
    "revise --input in --output new --html nodir/x": "nodir/x: cannot be written: nodir is no folder; .*--html",
    "revise --input in --output folder": "folder: cannot be written: it is a folder",
    "sample --input in --output nodir/x": "nodir/x: cannot be written: nodir is no folder",
    "label --trails in --output folder --judge numeric": "folder: cannot be written: .*name another --output",
    "check --dataset_name in --html folder": "folder: cannot be written: .*name another --html",
    "calibrate --input in --output_dir other": "other: cannot be written",
    "exchange --input in --output folder --form alpaca": "folder: cannot be written: .*name another --output",
    "judge check --pairs in --output in/x --judge numeric": "in/x: cannot be written: in is no folder",
    "judge compare --first in --second other --output nodir/x --judge numeric": "nodir/x: cannot be written: nodir is",
}


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [(words, errors.ConfigError, re.escape(said)) for words, said in OVERWRITES.items()]
    + [(words, errors.OutputError, said) for words, said in CANNOT.items()],
    ids=[*OVERWRITES, *CANNOT],
)
def test_a_file_that_must_not_or_cannot_be_written_is_found_out_before_any_work(
    words: str, kind: type[errors.SRPOError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in", "other", "srpo_calibration.json"):
        Path(name).write_text(TRAIL, "utf-8")
    Path("link").symlink_to("in")
    os.link("in", "hard")
    Path("folder").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    verb, *rest = words.split()
    models = ["--model_name_or_path", "no-model"] if verb in ("revise", "sample", "calibrate", "check") else []
    with pytest.raises(kind, match=said):
        command.run([verb, *rest, *models])
    assert {path.name for path in tmp_path.iterdir()} == before
    assert {Path(name).read_text("utf-8") for name in ("in", "other", "srpo_calibration.json")} == {TRAIL}
