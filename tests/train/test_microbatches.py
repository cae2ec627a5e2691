"""However an optimiser step is cut, every pair of it weighs the same: the gradient is that of one large batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SRPOTrainer
from srpo.sequences.tree import PrefixTree
from srpo.train.microbatches import _cut_again, pieces, share_out
from tests.train.plain import ROWS, logged, sharp_llama, trainer, weights_of


def tree(tokens: int) -> PrefixTree:
    """Six sequences, some tokens of them all together."""
    context = list(range(5, 5 + tokens - 2))
    return PrefixTree.pack([(context, [1]), (context, [2])] * 3)


def batch(*tokens: int, **more: Any) -> dict[str, Any]:
    trees = [tree(n) for n in tokens]
    assert [len(each) for each in trees] == list(tokens)
    return {"row": torch.arange(len(trees)), "where": [f"row {i}" for i in range(len(trees))], "trees": trees, **more}


def cut(most: int | None, *tokens: int, backend: str = "path") -> list[list[int]]:
    parts = pieces(batch(*tokens), most, backend)
    assert [row for part in parts for row in part["row"].tolist()] == list(range(len(tokens)))  # each once, in order
    for part in parts:
        assert part["where"] == [f"row {i}" for i in part["row"]]
        assert len(part["trees"]) == len(part["row"])
    assert sum(part["share"] for part in parts) == pytest.approx(1.0)
    return [[len(each) for each in part["trees"]] for part in parts]


def test_pieces_by_hand() -> None:
    assert cut(None, 10, 20, 30) == [[10, 20, 30]]
    assert cut(60, 10, 20, 30) == [[10, 20, 30]]
    assert cut(59, 10, 20, 30) == [[10, 20], [30]]
    assert cut(20, 10, 20, 30, 5, 5) == [[10], [20], [30], [5, 5]]  # a pair over the budget goes alone
    assert cut(1, 10, 20) == [[10], [20]]
    flat = tree(10).flat_tokens
    assert cut(2 * flat, 10, 10, 10, backend="flat") == [[10, 10], [10]]
    assert cut(2 * flat, 10, 10, 10) == [[10, 10, 10]]


def test_all_processes_cut_into_equally_many_pieces() -> None:
    assert _cut_again([0, 8], 3) == [0, 2, 4, 8]
    assert _cut_again([0, 1, 4], 2) == [0, 1, 4]
    assert _cut_again([0, 2], 2) == [0, 1, 2]


class Two:
    """As much of an accelerator as shares need: two processes with equal batches."""

    device = "cpu"
    num_processes = 2

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack([tensor, tensor])


def test_shares_by_hand() -> None:
    batches = [batch(10, 10, 10), batch(10, 10, 10), batch(10)]
    share_out(batches, Two())
    # Of 14 pairs in two processes, one in a batch of three weighs 1/14 when 3 batches and 2 processes are averaged.
    assert [each["share"] for each in batches] == pytest.approx([3 * 3 * 2 / 14, 3 * 3 * 2 / 14, 1 * 3 * 2 / 14])
    equal = [batch(10, 10), batch(10, 10)]
    share_out(equal, Two())
    assert [each["share"] for each in equal] == [1.0, 1.0]


# ---------------------------------------------------------------------- gradients


def stepped(folder: Path, **args: Any) -> SRPOTrainer:
    """One step of plain gradient descent on all seven rows: the change of the weights is the gradient."""
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", **args}
    run = trainer(folder, ROWS, ref_model=sharp_llama(seed=1), args=settings)
    run.train()
    return run


def gradient(run: SRPOTrainer) -> torch.Tensor:
    before = weights_of(sharp_llama())
    return torch.cat([(before[name] - p.detach()).flatten() for name, p in run.model.named_parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SRPOTrainer:
    return stepped(tmp_path_factory.mktemp("whole"), per_device_train_batch_size=7)


CUTS: dict[str, dict[str, Any]] = {
    "pieces": {"per_device_train_batch_size": 7, "max_tokens_per_batch": 120},
    "a pair at a time": {"per_device_train_batch_size": 7, "max_tokens_per_batch": 1},
    "batches of 3, 3 and 1": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    "batches of 4 and 3": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "both": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_tokens_per_batch": 150,
        "backend": "flat",
    },
}


@pytest.mark.parametrize("how", CUTS)
def test_the_gradient_is_that_of_one_large_batch(how: str, whole: SRPOTrainer, tmp_path: Path) -> None:
    run = stepped(tmp_path, **CUTS[how])
    torch.testing.assert_close(gradient(run), gradient(whole), rtol=1e-3, atol=1e-5)
    assert gradient(whole).abs().max() > 0.01
    assert logged(run, "loss") == [pytest.approx(logged(whole, "loss")[0], rel=1e-5)]
    assert logged(run, "logps/chosen") == [pytest.approx(logged(whole, "logps/chosen")[0], rel=1e-6)]


def test_a_mean_of_unequal_batches_is_another_gradient(whole: SRPOTrainer, tmp_path: Path) -> None:
    # What transformers does by itself, and what the test above must be able to tell apart.
    class Unshared(SRPOTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, items = super().get_batch_samples(*args, **kwargs)
            return [{**each, "share": 1.0} for each in batches], items

    made = trainer(tmp_path, ROWS, ref_model=sharp_llama(seed=1))
    made.__class__ = Unshared
    made.args.per_device_train_batch_size, made.args.gradient_accumulation_steps = 3, 3
    made.args.optim, made.args.max_grad_norm = "sgd", 0.0
    made.args.learning_rate, made.args.lr_scheduler_type = 1.0, "constant"
    made._train_batch_size = 3
    made.accelerator.gradient_accumulation_steps = 3
    made.train()
    assert (gradient(made) - gradient(whole)).abs().max() > 1e-3


def test_evaluation_in_pieces_gives_the_same_numbers(tmp_path: Path) -> None:
    found = []
    for most in (None, 130, 1):
        args = {"max_tokens_per_batch": most, "per_device_eval_batch_size": 5}
        run = trainer(tmp_path, ROWS[:4], ref_model=sharp_llama(seed=1), eval_dataset=ROWS, args=args)
        found.append({k: v for k, v in run.evaluate().items() if "/" in k or k == "eval_loss"})
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


@pytest.mark.sweep
def test_processes_with_different_pieces_train_as_one(tmp_path: Path) -> None:
    found = []
    for processes, pairs in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
        words = [sys.executable, *launcher, "-m", "tests.train.two_processes", str(folder), str(pairs)]
        subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        said = json.loads((folder / "logged.json").read_text())
        found.append((torch.load(folder / "weights.pt"), said, len(list(folder.glob("kept/*/*.logps")))))
    (one, one_said, _), (two, two_said, segments) = found
    assert segments == 2  # each scored its part of the reference
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-6)
    assert two_said["loss"] == pytest.approx(one_said["loss"], rel=1e-5)
    assert two_said["logps/chosen"] == pytest.approx(one_said["logps/chosen"], rel=1e-6)
