"""A resumed run is the uninterrupted one: the same weights, the first reference, every log once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOTrainer
from srpo.train.metrics import METRICS_FILE
from tests.conftest import make_byte_tokenizer
from tests.train.plain import ROWS, logged, settings, sharp_llama, weights_of

SAVING = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
}
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


class Stop(Exception):
    """The end of a run that was killed."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sharp_llama().save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def make(base: Path, folder: Path, **keywords: Any) -> SRPOTrainer:
    args = settings(folder, **{**SAVING, **keywords.pop("args", {})})
    return SRPOTrainer(str(base), args=args, train_dataset=ROWS, **keywords)


def killed_after(steps: int, base: Path, folder: Path, **keywords: Any) -> None:
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == steps:
                raise Stop

    with pytest.raises(Stop):
        make(base, folder, callbacks=[Killer()], **keywords).train()


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def fresh_adapter() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)  # peft draws an adapter's first factor from the global generator
    return peft.LoraConfig(r=4, task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("full", 2), ("full", 3), ("full", 5), ("by prompt", 5), ("fresh adapter", 3), ("trained adapter", 3)],
)
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, steps: int, base: Path, tmp_path: Path) -> None:
    def keywords() -> dict[str, Any]:
        if kind == "by prompt":  # the fifth step is in the second epoch, whose order differs from the first's
            return {"args": {"group_by_prompt": True}}
        return {"peft_config": fresh_adapter()} if kind == "fresh adapter" else {}

    if kind == "trained adapter":
        first_run = make(base, tmp_path / "first", peft_config=fresh_adapter())
        first_run.train()
        first_run.save_model()
        base = tmp_path / "first"
    whole = make(base, tmp_path / "whole", **keywords())
    whole.train()
    killed_after(steps, base, tmp_path / "cut", **keywords())
    again = make(base, tmp_path / "cut", **keywords())
    reference = weights_of(again.reference.model) if kind == "full" else {}
    again.train(resume_from_checkpoint=True)

    ours, theirs = weights_of(again.model), weights_of(whole.model)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    # The reference is the base that the run began with, not the checkpoint.
    first = dict(sharp_llama().named_parameters())
    for name, weight in reference.items():
        assert torch.equal(weight, first[name]), name
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6, 6]


def test_control_starting_from_a_checkpoint_changes_the_reference(base: Path, tmp_path: Path) -> None:
    whole = make(base, tmp_path / "whole")
    whole.train()
    wrong = make(tmp_path / "whole" / "checkpoint-2", tmp_path / "wrong", args={"max_steps": 4})
    wrong.train()
    assert logged(wrong, "loss")[0] != pytest.approx(logged(whole, "loss")[2], rel=1e-2)


def test_a_torn_last_line_of_the_metrics_is_dropped(base: Path, tmp_path: Path) -> None:
    killed_after(3, base, tmp_path)
    file = tmp_path / METRICS_FILE
    file.write_text(file.read_text("utf-8") + '{"step": 3, "lo', "utf-8")
    make(base, tmp_path).train(resume_from_checkpoint=True)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 6]


# ---------------------------------------------------------------------- the scaler of float16

# accelerate makes one on accelerators only; on a CPU it is put where accelerate would have put it. It grows until the
# gradients' norm overflows, so that which steps it skips, and with them the weights, depend on its state.
SCALER: dict[str, Any] = {
    "init_scale": 2.0**40,
    "growth_factor": 2.0**40,
    "backoff_factor": 2.0**-50,
    "growth_interval": 3,  # and so in the fourth step, which the resumed run takes
}
SCALED = {"save_steps": 3, "max_grad_norm": 0.0}


def make_scaled(base: Path, folder: Path, **keywords: Any) -> SRPOTrainer:
    run = make(base, folder, **keywords)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", **SCALER)
    return run


def scaled_run(base: Path, folder: Path, *, forget: bool = False) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A run killed after its third step and resumed: the scaler's state and the weights that it ends with."""
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise Stop

    with pytest.raises(Stop):
        make_scaled(base, folder, args=SCALED, callbacks=[Killer()]).train()
    assert (folder / "checkpoint-3" / "scaler.pt").is_file()
    again = make_scaled(base, folder, args=SCALED)
    if forget:
        again._load_scaler = lambda checkpoint: None
    again.train(resume_from_checkpoint=True)
    return again.accelerator.scaler.state_dict(), weights_of(again.model)


def test_the_loss_scaler_is_resumed(base: Path, tmp_path: Path) -> None:
    whole = make_scaled(base, tmp_path / "whole", args=SCALED)
    whole.train()
    state, weights = scaled_run(base, tmp_path / "killed")
    assert state == whole.accelerator.scaler.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(whole.model).items())
    assert len({entry for entry in map(str, logged(whole, "grad_norm")) if entry in ("inf", "nan")}) > 0  # it skipped


def test_control_a_new_loss_scaler_changes_the_weights(base: Path, tmp_path: Path) -> None:
    whole = make_scaled(base, tmp_path / "whole", args=SCALED)
    whole.train()
    state, weights = scaled_run(base, tmp_path / "killed", forget=True)
    assert state != whole.accelerator.scaler.state_dict()
    assert not all(torch.equal(weight, weights[name]) for name, weight in weights_of(whole.model).items())


# ---------------------------------------------------------------------- β that changes


MOVING: dict[str, dict[str, Any]] = {
    "cosine": {"beta_schedule": "cosine", "beta_end": 0.01},
    "budget": {"beta_schedule": "budget", "drift_budget": 1e-3},
}


@pytest.mark.parametrize("schedule", MOVING)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_has_the_betas_of_the_uninterrupted_one(
    schedule: str, accumulation: int, base: Path, tmp_path: Path
) -> None:
    args = {
        **MOVING[schedule],
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 2 // accumulation,
    }
    whole = make(base, tmp_path / "whole", args=args)
    whole.train()
    killed_after(3, base, tmp_path / "cut", args=args)
    again = make(base, tmp_path / "cut", args=args)
    again.train(resume_from_checkpoint=True)
    ours, theirs = weights_of(again.model), weights_of(whole.model)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    betas = logged(whole, "beta")
    assert len(set(betas)) > 3  # β changed on both sides of the checkpoint
    assert betas[0] == pytest.approx(0.1)
    record = json.loads((tmp_path / "cut" / "checkpoint-6" / "srpo_training.json").read_text())
    assert record["beta"] == again.temperature.last == pytest.approx(logged(again, "beta")[-1], rel=1e-9)


def test_every_process_takes_beta_from_the_first_one(base: Path, tmp_path: Path) -> None:
    args = {**MOVING["budget"], "on_collapse": "stop"}
    run = make(base, tmp_path / "run", args={**args, "max_steps": 3, "save_steps": 3})
    run.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    again = make(base, tmp_path / "again", args=args)
    first = checkpoint / "position-0.json"
    sums = json.loads(first.read_text())
    assert sums["temperature"]["control"]["beta"] == run.temperature.beta
    sums["temperature"] = None
    first.rename(checkpoint / "kept.json")
    first.write_text(json.dumps(sums))
    again.temperature.resume(first)  # a checkpoint of a version without this state
    assert again.temperature.control is None
    (checkpoint / "kept.json").rename(first)
    again.temperature.resume(first)
    assert again.temperature.state() == run.temperature.state()
    other = make(base, tmp_path / "other", args={**args, "drift_budget": 0.5})
    other.temperature.resume(first)
    assert other.temperature.control is not None
    assert other.temperature.control.budget == 0.5


def test_control_a_controller_that_forgets_ends_elsewhere(base: Path, tmp_path: Path) -> None:
    args = MOVING["budget"]
    whole = make(base, tmp_path / "whole", args=args)
    whole.train()
    killed_after(3, base, tmp_path / "cut", args=args)
    again = make(base, tmp_path / "cut", args=args)
    again.temperature.restore = lambda state: None  # type: ignore[method-assign]
    again.train(resume_from_checkpoint=True)
    assert logged(again, "beta")[-1] != pytest.approx(logged(whole, "beta")[-1], rel=1e-3)
