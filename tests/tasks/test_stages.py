"""A stage is done once, again when its settings change, and again when it was interrupted."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srpo.tasks.stages import STAGE_FILE, Counts, is_done, report, run_stage, share, side_by_side


class Work:
    """Leaves a file behind and counts how often it was done."""

    def __init__(self, *, fails: bool = False) -> None:
        self.done, self.fails, self.found = 0, fails, [""]

    def __call__(self, folder: Path) -> None:
        self.done += 1
        self.found = sorted(path.name for path in folder.iterdir())
        (folder / "part").write_text("half", "utf-8")
        if self.fails:
            raise KeyboardInterrupt
        (folder / "result").write_text(str(self.done), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "stage"


def test_a_stage_is_done_once(folder: Path) -> None:
    work = Work()
    assert not is_done(folder, {"seed": 1})
    assert run_stage(folder, {"seed": 1}, work) > 0.0
    assert is_done(folder, {"seed": 1})
    assert run_stage(folder, {"seed": 1}, work) == 0.0
    assert (work.done, (folder / "result").read_text("utf-8")) == (1, "1")


@pytest.mark.parametrize("changed", [{"seed": 2}, {"seed": 1, "steps": 3}, {}, {"seed": "1"}], ids=str)
def test_done_again_in_an_empty_folder_when_settings_change(folder: Path, changed: dict[str, Any]) -> None:
    work = Work()
    run_stage(folder, {"seed": 1}, work)
    (folder / "left over").touch()
    assert run_stage(folder, changed, work) > 0.0
    assert (work.done, work.found) == (2, [])
    assert not (folder / "left over").exists()
    assert json.loads((folder / STAGE_FILE).read_text("utf-8")) == changed


def test_settings_are_compared_as_json(folder: Path) -> None:
    work = Work()
    run_stage(folder, {"heats": (1.0, 0.0), "nested": {"b": 1, "a": None}}, work)
    assert run_stage(folder, {"nested": {"a": None, "b": 1}, "heats": [1.0, 0.0]}, work) == 0.0


def test_an_interrupted_stage_is_done_again_from_nothing(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(folder, {"seed": 1}, Work(fails=True))
    assert (folder / "part").exists()
    assert not is_done(folder, {"seed": 1})
    work = Work()
    assert run_stage(folder, {"seed": 1}, work) > 0.0
    assert work.found == []


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_torn_stage_file_counts_as_unfinished(folder: Path, text: str) -> None:
    work = Work()
    run_stage(folder, {"seed": 1}, work)
    (folder / STAGE_FILE).write_text(text, "utf-8")
    assert run_stage(folder, {"seed": 1}, work) > 0.0
    assert work.done == 2


def test_parallel_jobs_keep_their_order_and_raise_their_errors() -> None:
    assert list(side_by_side(math.factorial, [5, 3, 4])) == [120, 6, 24]
    with pytest.raises(ValueError, match="factorial"):
        list(side_by_side(math.factorial, [3, -1, 4]))


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_of_other_processes_arrive(workers: int) -> None:
    counts = Counts(["pairs", "train"])
    try:
        assert list(side_by_side(partial(report, "train", 3), [7, 7], counts, workers)) == [None, None]
    finally:
        share(None)
    assert (counts["pairs"], counts["train"]) == ((0, 0), (3, 7))


def test_stages_that_nobody_shows_are_ignored() -> None:
    counts = Counts(["pairs"])
    report("pairs", 1, 2)  # no counts are shared
    share(counts)
    try:
        report("other", 1, 2)
    finally:
        share(None)
    assert counts["pairs"] == (0, 0)
