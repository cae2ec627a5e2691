"""Evaluation during training: its scores are those of the current model, and the training is unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from srpo import Reviser, SRPOTrainer
from srpo.cli.main import run
from srpo.errors import ConfigError, LengthError
from srpo.evaluate.callback import PREFIX, RevisionEvaluation, Watch, numbers
from srpo.judge.single import per_character
from srpo.revise.trail import IMPOSSIBLE
from srpo.train.metrics import METRICS_FILE
from tests.conftest import make_byte_tokenizer
from tests.judge.pair_judges import Scripted, honest
from tests.train.plain import ROWS, settings, sharp_llama, weights_of

WATCH = Watch(revisions=1, prompts=3, max_new_tokens=3)
EVERY_OTHER = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "disable_dropout": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sharp_llama().save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def make(base: Path, folder: Path, watch: Watch | None = WATCH, judge: Any = per_character, **args: Any) -> SRPOTrainer:
    arguments = settings(folder, **{**EVERY_OTHER, **args})
    # An adapter with dropout: its training draws numbers at every step.
    adapter = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    rows = {"train_dataset": ROWS, "eval_dataset": ROWS[:4]}
    trainer = SRPOTrainer(str(base), args=arguments, peft_config=adapter, **rows)
    if watch:
        trainer.add_callback(RevisionEvaluation(trainer, ROWS[:4], judge, watch))
    return trainer


@pytest.fixture(scope="module")
def bare(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = make(base, tmp_path_factory.mktemp("bare"), None)
    trainer.train()
    return weights_of(trainer.model)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_evaluation_does_not_change_the_trained_weights(base: Path, bare: Any, tmp_path: Path) -> None:
    trainer = make(base, tmp_path)
    trainer.train()
    assert same(weights_of(trainer.model), bare)

    class Nosy(TrainerCallback):
        """Control: what draws a number from the global generator is noticed."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(1)

    nosy = make(base, tmp_path / "nosy", None)
    nosy.add_callback(Nosy())
    nosy.train()
    assert not same(weights_of(nosy.model), bare)


def test_a_resumed_run_equals_an_uninterrupted_one(base: Path, bare: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise Stop

    killed = make(base, tmp_path)
    killed.add_callback(Killer())
    with pytest.raises(Stop):
        killed.train()
    again = make(base, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert same(weights_of(again.model), bare)


def test_modules_keep_their_mode_and_generators_their_state(base: Path, tmp_path: Path) -> None:
    trainer = make(base, tmp_path)
    model = trainer.model
    model.train()
    model.base_model.model.lm_head.eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    trainer.callback_handler.callbacks[-1].draw()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert False in modes


def test_a_fall_of_greedy_answers_under_a_better_loss_is_reported(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = make(base, tmp_path).callback_handler.callbacks[-1]
    score = {"now": 1.0}
    watch.judge = lambda prompt, answer, gold: score["now"]
    caplog.clear()
    with caplog.at_level("WARNING", "srpo"):
        assert watch._greedy({"eval_loss": 1.0})[f"{PREFIX}greedy"] == 1.0
        score["now"] = 0.0
        assert watch._greedy({"eval_loss": 1.5})[f"{PREFIX}greedy"] == 0.0  # control: the loss is worse too
        assert not caplog.records
        watch._greedy({"eval_loss": 0.5})
        watch._greedy({"eval_loss": 0.4})
    (record,) = caplog.records  # once a run
    assert "greedy answers fell from 100.0 to 0.0 % of 3 prompts while the evaluation loss improved from 1 to 0.5" in (
        record.getMessage()
    )


def test_greedy_revisions_that_copy_their_draft_are_counted(base: Path, tmp_path: Path) -> None:
    watch = make(base, tmp_path).callback_handler.callbacks[-1]
    drawn = watch.draw(greedy=True)
    copied = [trail.answers[1].text == trail.answers[0].text for trail in drawn]
    assert watch._greedy({})[f"{PREFIX}greedy_copied"] == sum(copied) / len(copied)
    short = [replace(trail, answers=(trail.answers[0], trail.answers[0])) for trail in drawn]
    watch.draw = lambda greedy: short
    assert watch._greedy({})[f"{PREFIX}greedy_copied"] == 1.0
    changed = [replace(trail.answers[0], text="another") for trail in drawn]
    watch.draw = lambda greedy: [replace(t, answers=(t.answers[0], c)) for t, c in zip(drawn, changed, strict=True)]
    assert watch._greedy({})[f"{PREFIX}greedy_copied"] == 0.0
    # A draft counts although its revision has no room; without any revision nothing is said of copies.
    watch.draw = lambda greedy: [replace(t, answers=t.answers[:1], stopped=f"{IMPOSSIBLE}long") for t in drawn]
    found = watch._greedy({})
    assert f"{PREFIX}greedy" in found
    assert f"{PREFIX}greedy_copied" not in found


def test_logged_scores_are_those_of_the_current_model(base: Path, tmp_path: Path) -> None:
    trainer = make(base, tmp_path, max_steps=2)
    trainer.train()
    logged = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text("utf-8").splitlines()]
    (line,) = [each for each in logged if f"{PREFIX}0" in each]
    assert line["step"] == 2
    prompts = list(dict.fromkeys(row["prompt"] for row in ROWS[:4]))[:3]
    reviser = Reviser(trainer.model, trainer.processing_class, trainer.renderer.template, beta=0.1)
    trails = reviser.revise(prompts, 1, max_new_tokens=3, policy="always")
    for trail in trails:
        trail.meta["gold"] = next(row["chosen"] for row in ROWS if row["prompt"] == trail.prompt)
    wanted = numbers(trails, per_character)
    assert {name: line[name] for name in wanted} == pytest.approx(wanted)
    assert {f"{PREFIX}1", f"{PREFIX}1_low", f"{PREFIX}1_high", f"{PREFIX}1_gain", f"{PREFIX}1_changed"} <= wanted.keys()
    assert f"[1] {trails[0].answers[1].text}" in line[f"{PREFIX}sample_1"]
    # A metric to choose the best model by, as any other of the evaluation.
    assert trainer.evaluate()[f"{PREFIX}1"] == line[f"{PREFIX}1"]


def test_a_pair_judge_compares_with_the_chosen_answer(base: Path, tmp_path: Path) -> None:
    trainer = make(base, tmp_path, judge=Scripted(honest))
    metrics = trainer.evaluate()
    assert 0 <= metrics[f"{PREFIX}0"] <= 1


def test_command_line(base: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = str(tmp_path / "pairs.jsonl")
    words = ["train", "--model_name_or_path", str(base), "--dataset_name", pairs, "--eval_dataset_name", pairs]
    words += ["--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--report_to", "none", "--use_cpu", "true"]
    words += ["--eval_revisions", "1", "--eval_prompts", "2", "--eval_max_new_tokens", "3", "--disable_tqdm", "true"]
    with pytest.raises(ConfigError, match="add `--eval_judge"):
        run(words)
    with pytest.raises(ConfigError, match="no evaluation"):
        run([*words, "--eval_judge", "exact_match"])
    assert run([*words, "--eval_judge", "exact_match", "--eval_strategy", "steps", "--eval_steps", "1"]) == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / METRICS_FILE).read_text("utf-8").splitlines()]
    assert [each["step"] for each in logged if f"{PREFIX}1_gain" in each] == [1, 2]


def test_a_prompt_without_room_never_ends_a_training(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = sharp_llama().config.max_position_embeddings
    long = {"prompt": "x" * context, "chosen": "a", "rejected": "b"}
    almost = {"prompt": "y" * (context - 8), "chosen": "a", "rejected": "b"}  # room for a draft, none for a revision
    trainer = make(base, tmp_path, None, max_steps=2)
    with caplog.at_level("WARNING", "srpo"):
        watch = RevisionEvaluation(trainer, [*ROWS[:2], long, almost], per_character, replace(WATCH, prompts=4))
    assert "1 of 4 evaluation prompts leave no room for 3 tokens and are left out" in caplog.text
    trainer.add_callback(watch)
    trainer.train()
    assert trainer.state.global_step == 2
    logged = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text("utf-8").splitlines()]
    (line,) = [each for each in logged if f"{PREFIX}0" in each]
    assert line[f"{PREFIX}failed"] == 1
    # Controls: without a long prompt nothing fails, and without any other prompt the mistake is found before a step.
    assert f"{PREFIX}failed" not in make(base, tmp_path / "short").evaluate()
    with pytest.raises(LengthError, match="1 of 1 evaluation prompts leave no room"):
        RevisionEvaluation(trainer, [long], per_character, WATCH)
