"""Faults 1 and 3, what is left behind: with `--bad_rows skip` every rejected row is kept verbatim, with its reason."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.data.read import Reject
from srpo.data.rejected import REJECTED_FILE, rejected_lines
from srpo.errors import DataError
from srpo.sequences.fit import SAME_TOKENS
from srpo.sequences.render import Renderer
from srpo.train.dataset import TreeDataset
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.data.test_formats import FILES

GOOD = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(4)]
QUICK = "--max_steps 1 --report_to none --use_cpu true --save_strategy no --disable_tqdm true"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llama(max_position_embeddings=64).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def train(model: Path, pairs: Path, *more: str) -> list[dict[str, Any]]:
    """What the run kept of rejected rows."""
    out = pairs.parent / "out"
    words = ["train", "--model_name_or_path", str(model), "--dataset_name", str(pairs), "--output_dir", str(out)]
    assert run([*words, *QUICK.split(), *more]) == 0
    file = out / REJECTED_FILE
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def test_lines_are_kept_byte_for_byte(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    bad = [
        b"garbage",
        b'{"prompt": "caf\xe9"}',
        b'  {"prompt": "\xc3\xa9", "chosen": null,  "rejected": "b"} ',
        b"\x00\x00",
        json.dumps({**GOOD[0], "prompt": "x" * 70}).encode(),  # known to be too long once it is tokenised
        json.dumps({**GOOD[0], "rejected": "yes"}).encode(),
        json.dumps(GOOD[1])[:-5].encode(),
    ]
    good = json.dumps(GOOD[0]).encode()
    pairs.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + b"".join(line + b"\n\r\n" + good + b"\n" for line in bad))
    kept = train(model, pairs, "--bad_rows", "skip")
    raw = [row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"]) for row in kept]
    assert raw == bad
    assert [row["line"] for row in kept] == [2 + 3 * i for i in range(len(bad))]
    assert {row["file"] for row in kept} == {str(pairs)}
    for row, said in zip(
        kept, ["not JSON", "not UTF-8", "is null", "not JSON", "over the limit", "identical", "not JSON"], strict=True
    ):
        assert said in row["reason"]
    # Whole rows alone leave no list, and take an earlier run's away.
    pairs.write_bytes(good + b"\n")
    assert train(model, pairs, "--bad_rows", "skip") == []


@pytest.mark.parametrize("suffix", FILES)
def test_rows_of_every_kind_of_file(suffix: str, model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / f"pairs{suffix}"
    long = {"prompt": "two\nlines " + "x" * 70, "chosen": "yes", "rejected": "no"}
    FILES[suffix](pairs, [*GOOD, long, {**GOOD[0], "chosen": ""}])
    kept = train(model, pairs, "--bad_rows", "skip")
    assert ["over the limit" in kept[0]["reason"], "is empty" in kept[1]["reason"]] == [True, True]
    if suffix == ".csv":
        assert kept[0]["raw"] == '"two\nlines ' + "x" * 70 + '",yes,no'
    else:
        assert json.loads(kept[0]["raw"]) == long


def test_rows_without_a_preference_are_written_to_the_rejects(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    FILES[".jsonl"](pairs, [*GOOD, {**GOOD[0], "rejected": ""}])
    [kept] = train(model, pairs)
    assert kept["reason"] == "'rejected' is empty"
    # Control: a broken row still ends the run.
    FILES[".jsonl"](pairs, [*GOOD, {**GOOD[0], "rejected": 4}])
    with pytest.raises(DataError, match="1 of 5 rows cannot be used"):
        train(model, pairs)


def test_answers_with_equal_tokens_have_no_preference() -> None:
    tokenizer = make_byte_tokenizer()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    rows = [*GOOD, {"prompt": "p", "chosen": "Yes", "rejected": "yES"}]
    found = TreeDataset.build(rows, Renderer(tokenizer), max_length=None)
    assert (len(found), found.rejects) == (len(GOOD), [Reject("row 5", SAME_TOKENS)])
    with pytest.raises(DataError, match="1 of 1 rows cannot be rendered:\n  row 1: " + SAME_TOKENS):
        TreeDataset.build(rows[-1:], Renderer(tokenizer), max_length=None)
    # Control: a tokenizer that tells them apart keeps them.
    assert len(TreeDataset.build(rows, Renderer(make_byte_tokenizer()), max_length=None)) == len(rows)


def test_unusable_prompts_are_written_beside_the_trails(model: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "trails.jsonl"
    prompts.write_bytes(b'{"prompt": "p"}\nnonsense\n')
    words = ["revise", "--model_name_or_path", str(model), "--input", str(prompts), "--output", str(out)]
    words += ["--revision_template", "plain", "--revisions", "1", "--max_new_tokens", "2", "--bad_rows", "skip"]
    assert run(words) == 0
    [kept] = (tmp_path / f"trails.jsonl.{REJECTED_FILE}").read_text("utf-8").splitlines()
    assert json.loads(kept) == {
        "file": str(prompts),
        "line": 2,
        "reason": "not JSON: Expecting value",
        "raw": "nonsense",
    }


def test_rows_in_memory() -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": 4}]
    rejects = [Reject("row 1", "why")]
    assert [json.loads(line)["raw"] for line in rejected_lines(rows, rejects)] == [json.dumps(rows[0])]
    assert [json.loads(line)["raw"] for line in rejected_lines(iter(rows), rejects)] == [None]
