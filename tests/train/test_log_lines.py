"""What a person reads while a training runs: cost ahead, one line a log, and every metric in metrics.jsonl."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from srpo import progress
from tests.train.plain import ROWS, trainer


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "srpo"]


def test_a_run_logs_its_cost_and_one_line_a_log(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.0)
    with caplog.at_level(logging.INFO, "srpo"):
        made = trainer(
            tmp_path, eval_dataset=ROWS[:2], args={"max_steps": 4, "logging_steps": 2, "eval_strategy": "epoch"}
        )
        made.train()
    found = lines_of(caplog)
    tokens = sum(made.pairs.size(i) for i in range(len(ROWS))) * 4 / len(ROWS)
    assert f"srpo: 4 steps of 4 pairs, 2.29 epochs of 7 pairs; about {tokens:.0f} packed tokens a step" in found
    weights = sum(p.numel() for p in made.model.parameters())
    assert f"srpo: {weights:,} of {weights:,} weights trained, in float32, on cpu" in found
    text = "\n".join(found)
    assert re.search(
        r"^srpo: the first of 4 steps took \S+ s; \S+ GB of memory so far\nsrpo: about .* more, until ", text, re.M
    )
    logs = [line for line in found if re.match(r"srpo: step \d+ of 4: loss", line)]
    assert len(logs) == 2
    shape = r"srpo: step 2 of 4: loss \d\.\d{4}, margin \S+, accuracy \d+%, \d+\.\d\d s/step, .* left"
    assert re.fullmatch(shape, logs[0])
    assert [line for line in found if re.match(r"srpo: step 2 of 4, eval: loss \d\.\d{4}, margin", line)]
    assert "{'loss'" not in capsys.readouterr().out
    first = json.loads((tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert len(first) > 15
    assert "revision/margins/chosen_given_rejected" in first


def test_a_quiet_run_prints_nothing_and_control_without_the_logger_transformers_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("srpo").setLevel(logging.WARNING)
    trainer(tmp_path / "quiet").train()
    assert capsys.readouterr() == ("", "")
    logging.getLogger("srpo").setLevel(logging.NOTSET)
    trainer(tmp_path / "control").train()
    assert "{'loss'" in capsys.readouterr().out


def test_the_progress_ends_with_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(RuntimeError):
        pass

    from transformers import TrainerCallback

    class Fails(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            raise Stop

    with caplog.at_level(logging.INFO, "srpo"):
        made = trainer(tmp_path, callbacks=[Fails()])
        with pytest.raises(Stop):
            made.train()
    assert made.lines._progress is None
