"""`srpo precompute`: what it keeps is what a run with the same settings finds."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.errors import ConfigError, OutputError, UsageError
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.train.plain import ROWS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved model, pairs to train it on, and others."""
    folder = tmp_path_factory.mktemp("place")
    make_tiny_llama().save_pretrained(folder / "model")
    make_byte_tokenizer().save_pretrained(folder / "model")
    for name, rows in (("pairs", ROWS[:5]), ("more", ROWS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture
def words(place: Path, tmp_path: Path) -> list[str]:
    """The command line of a run of one step, after the verb."""
    settings: dict[str, Any] = {
        "model_name_or_path": place / "model",
        "dataset_name": place / "pairs.jsonl",
        "output_dir": tmp_path / "run",
        "reference_cache": tmp_path / "kept",
        **{"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True},
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert run(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_finds_the_cached_rows(
    words: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    assert printed(capsys, "precompute", *words) == [
        f"5 pairs, 5 of them scored now; kept in {kept}",
        f"srpo train with --reference_cache {kept} scores none of them again",
    ]
    assert not (tmp_path / "run").exists()
    assert sorted(path.suffix for path in kept.rglob("*.*")) == [".json", ".logps"]
    assert printed(capsys, "precompute", *words)[0] == f"5 pairs, 0 of them scored now; kept in {kept}"
    more = ["--dataset_name", str(place / "more.jsonl")]
    assert printed(capsys, "precompute", *words, *more)[0] == f"7 pairs, 2 of them scored now; kept in {kept}"
    with caplog.at_level(logging.INFO, "srpo"):
        printed(capsys, "train", *words, "--beta", "0.3")
    assert f"cached reference log-probs: 5 of 5 pairs, in {kept}" in caplog.text
    assert "no reference model in memory" in caplog.text


def test_an_unusable_cache_is_found_before_the_model_is_loaded(words: list[str], place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    nowhere = ["--reference_cache", str(tmp_path / "file"), "--model_name_or_path", str(place / "nothing")]
    with pytest.raises(OutputError, match="name another --reference_cache"):
        run(["precompute", *words, *nowhere])
    with pytest.raises(ConfigError, match="sync_ref_model"):
        run(["precompute", *words, "--sync_ref_model"])
    with pytest.raises(UsageError, match="no dataset_name"):
        run(["precompute", "--model_name_or_path", str(place / "model")])
