"""Arguments that TRL and transformers take: used, or refused by name; and numbers that survive a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOConfig
from srpo.cli.main import run
from srpo.errors import ConfigError, DataError, InputError
from tests.conftest import make_byte_tokenizer
from tests.train.plain import ROWS, logged, settings, sharp_llama, trainer, weights_of

HELD_OUT = [{"prompt": "Held out: ", "chosen": "one", "rejected": "two"}, ROWS[0]]


def test_rows_and_data_sets_can_be_evaluated(tmp_path: Path) -> None:
    from datasets import Dataset, IterableDataset

    made = trainer(tmp_path, eval_dataset={"one": HELD_OUT[:1]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT), "utf-8")
    key = "logps/chosen"  # the loss before training is the same for all rows
    expected = made.evaluate(HELD_OUT)[f"eval_{key}"]
    stream = IterableDataset.from_generator(lambda: iter(HELD_OUT))
    for each in (Dataset.from_list(HELD_OUT), stream, str(tmp_path / "rows.jsonl")):
        assert made.evaluate(each)[f"eval_{key}"] == expected
    both = made.evaluate({"all": HELD_OUT, "first": HELD_OUT[:1]})
    assert both[f"eval_all_{key}"] == expected
    assert both[f"eval_first_{key}"] == made.evaluate("one")[f"eval_{key}"] != expected


def test_compute_metrics_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compute_metrics: no predictions.* on_evaluate"):
        trainer(tmp_path, compute_metrics=lambda found: {"mine": 1.0})


def test_a_reference_by_path(tmp_path: Path) -> None:
    other = sharp_llama(seed=1)
    other.save_pretrained(tmp_path / "reference")
    by_path, by_object = trainer(tmp_path, ref_model=str(tmp_path / "reference")), trainer(tmp_path, ref_model=other)
    for made in (by_path, by_object):
        made.train()
    assert by_path.reference.kind == "given"
    assert logged(by_path, "loss") == logged(by_object, "loss")
    with pytest.raises(InputError, match="no such folder"):
        trainer(tmp_path, ref_model=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("options", [{"torch_dtype": "bfloat16"}, '{"torch_dtype": "float16"}'])
def test_the_older_name_of_dtype_is_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_init_kwargs: contains torch_dtype; use its newer name, dtype"):
        settings(tmp_path, model_init_kwargs=options)


def endless() -> Iterator[dict[str, str]]:
    count = 0
    while True:
        yield {**ROWS[count % len(ROWS)], "prompt": f"{count} "}
        count += 1


def test_an_endless_stream_is_read_as_far_as_max_steps_needs(tmp_path: Path) -> None:
    from datasets import IterableDataset

    for stream in (endless(), IterableDataset.from_generator(endless)):
        made = trainer(tmp_path, stream, args={"max_steps": 2, "gradient_accumulation_steps": 2})
        assert len(made.pairs) == 2 * 4 * 2
        made.train()
    # Control: a stream with an end is read whole where steps do not limit it.
    assert len(trainer(tmp_path, iter(ROWS), args={"max_steps": -1, "num_train_epochs": 1}).pairs) == len(ROWS)


def test_tokens_seen_are_those_of_the_trees(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["chosen"] != "blue"]  # the only row whose prompt another row has
    made = trainer(tmp_path, rows, args={"include_num_input_tokens_seen": "all", "max_steps": 2})
    made.train()
    sizes = [made.pairs.size(i) for i in range(len(rows))]
    assert made.state.num_input_tokens_seen == sum(sizes)  # two batches, four and two pairs
    made = trainer(tmp_path, args={"max_steps": 2})
    made.train()
    assert made.state.num_input_tokens_seen == 0


@pytest.mark.parametrize("logging_steps", [1, 3, 100])
def test_the_train_loss_of_a_resumed_run_is_that_of_the_whole_run(logging_steps: int, tmp_path: Path) -> None:
    args = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "logging_steps": logging_steps}
    whole = trainer(tmp_path / "run", args=args)
    result = whole.train()
    assert result.training_loss == result.metrics["train_loss"] == logged(whole, "train_loss")[0]
    again = trainer(tmp_path / "again", args=args)
    shutil.copytree(tmp_path / "run" / "checkpoint-4", tmp_path / "again" / "checkpoint-4")
    resumed = again.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-4"))
    assert resumed.training_loss == pytest.approx(result.training_loss, rel=1e-6)
    assert logged(again, "train_loss") == [resumed.training_loss]
    lines = (tmp_path / "again" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(lines[-1])["train_loss"] == resumed.training_loss
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weights_of(again.model)[name], weight)


@pytest.mark.parametrize("name", ["warmup_stable_decay", "cosine_with_min_lr", "cosine_warmup_with_min_lr"])
def test_schedules_without_their_arguments_name_the_setting(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^lr_scheduler_kwargs: "):
        trainer(tmp_path, model="/no/such/model", args={"lr_scheduler_type": name})


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt", "polynomial"])
def test_control_other_schedules_need_no_arguments(name: str, tmp_path: Path) -> None:
    trainer(tmp_path, args={"lr_scheduler_type": name}).train()


def test_bf16_on_a_processor_needs_no_further_setting(tmp_path: Path) -> None:
    made = SRPOConfig(output_dir=str(tmp_path), report_to="none", bf16=True)
    assert (made.bf16, made.use_cpu) == (True, True)


def test_bf16_may_stand_without_a_value(tmp_path: Path) -> None:
    sharp_llama().save_pretrained(tmp_path / "model")
    make_byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    words = ["train", "--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "pairs.jsonl", "--bf16"]
    words += ["--output_dir", tmp_path / "run", "--max_steps", 1, "--save_strategy", "no", "--report_to", "none"]
    assert run([str(word) for word in words]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["settings"]["bf16"] is True


@pytest.mark.parametrize(
    ("rows", "error"),
    [("no-such-file.jsonl", InputError), ([{"question": "Q", "chosen": "a", "rejected": "b"}], DataError)],
)
def test_mistakes_in_the_data_are_found_before_the_weights(rows: Any, error: type[Exception], tmp_path: Path) -> None:
    sharp_llama().config.save_pretrained(tmp_path / "no-weights")
    with pytest.raises(error):
        trainer(tmp_path, rows, model=str(tmp_path / "no-weights"))
    with pytest.raises(InputError, match=r"no-weights"):  # control: with good rows, the weights are missing
        trainer(tmp_path, model=str(tmp_path / "no-weights"))
