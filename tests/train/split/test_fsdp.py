"""Runs of two processes whose weights FSDP 2 splits: the numbers of one process, and a whole model at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from srpo import Reviser, six_logps
from srpo.errors import BackendError, ConfigError
from srpo.model.packed import head
from srpo.model.packed.tiles import After
from srpo.model.unwrap import core
from tests.conftest import make_tiny_llama
from tests.faults.dying import forked, make_base, make_trainer, together
from tests.train.plain import ROWS, trainer
from tests.train.split.processes import FSDP2, split_on_cpu, unsplit

QUICK: dict[str, Any] = {
    **{"disable_dropout": True, "gradient_accumulation_steps": 1, "max_steps": 3},
    **{"per_device_eval_batch_size": 2, "learning_rate": 0.01, "max_grad_norm": 1.0},
}
ALONE = {**QUICK, "save_strategy": "no", "per_device_train_batch_size": 4}
SPLIT = {**QUICK, "save_strategy": "no", "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
RUNS: dict[str, dict[str, Any]] = {
    "in parts": {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},  # the default of FSDP 2
    "lora": {},
    "bfloat16": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "cached": {},
    "lora cached": {},
}
TILED = ("in parts", "lora", "bfloat16", "lora cached")  # runs whose logits are all computed in tiles
TILED_IN_ONE = "lora cached"  # as if all batches of process 0 were above the threshold, and those of process 1 below


def trained(base: Path, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Trains, saves and evaluates on seven rows in batches of two; the trainer, and what was logged."""
    kind = "lora" if folder.name.startswith("lora") else "full"
    run = make_trainer(base, folder, kind, rows=[*ROWS, ROWS[0]], eval_rows=ROWS, **settings)
    if kind == "lora":
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    output_head: Any = core(run.model).get_output_embeddings()
    compared = output_head in head._agreed  # a reference was scored in tiles, on whole weights
    rows: list[int] = []
    output_head.register_forward_hook(lambda _module, _args, out: rows.append(out.shape[:-1].numel()))
    run.train()
    run.save_model()
    eval_loss = run.evaluate()["eval_loss"]
    losses = [each["loss"] for each in run.state.log_history if "loss" in each]
    return run, {"losses": losses, "eval_loss": eval_loss, "rows": [*rows], "compared": compared}


def error_of_evaluation(run: Any, *, wrong: bool) -> str:
    """Evaluates in tiles; `wrong` claims that the model has scaled its logits before. The error, or ""."""
    head.TILED_ABOVE = 0
    if wrong:
        head._agreed[core(run.model).get_output_embeddings()] = After(2.0)
    try:
        run.evaluate()
    except BackendError as error:
        return str(error)
    return ""


def error_of_scoring(run: Any) -> str:
    """Scores a batch outside of the trainer; one process has a wrong scale from `error_of_evaluation`. The error."""
    try:
        with torch.no_grad():
            six_logps(run.model, [run.train_dataset.tree(0)], "path")
    except BackendError as error:
        return str(error)
    return ""


def error_of_revising(run: Any, base: Path) -> str:
    try:
        Reviser(run.model, template="plain", tokenizer=AutoTokenizer.from_pretrained(base))
    except ConfigError as error:
        return str(error)
    return ""


def split(base: Path, folder: Path, rank: int) -> Any:
    """The runs of `RUNS` one after the other in this process, which is one of two."""
    found, few = {"copied": trained(base, folder / "copied", **SPLIT)[1]}, head.TILED_ABOVE  # DDP
    unsplit()
    for name, variables in RUNS.items():
        split_on_cpu(**variables)
        head.TILED_ABOVE = 0 if name in TILED and (name != TILED_IN_ONE or rank == 0) else few
        more: dict[str, Any] = {"bf16": True} if name == "bfloat16" else {}
        if name.endswith("cached"):
            more = {"precompute_ref_log_probs": True, "reference_cache": str(folder / f"kept {name}")}
        run, found[name] = trained(base, folder / name, **SPLIT, **more)
        if name == TILED_IN_ONE:
            found["stopped"] = error_of_evaluation(run, wrong=rank == 1)
            found["scored"] = error_of_scoring(run)
            found["revised"] = error_of_revising(run, base)
        unsplit()
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    make_base(folder / "base")
    names = ("full alone", "lora alone")
    one = forked(lambda: {name: trained(folder / "base", folder / name, **ALONE)[1] for name in names})
    ends = together(lambda rank: split(folder / "base", folder, rank))
    assert [end.error for end in (one, *ends)] == ["", "", ""]
    (folder / "found.json").write_text(json.dumps({**one.value, **ends[0].value, "other process": ends[1].value}))
    return folder


@pytest.fixture
def found(place: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((place / "found.json").read_text())
    return read


@pytest.mark.parametrize("name", ["in parts", "copied", "lora", "cached", "lora cached"])
def test_losses_are_those_of_one_process(name: str, found: dict[str, Any]) -> None:
    alone = found["lora alone" if name.startswith("lora") else "full alone"]
    assert found[name]["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    # Seven rows, two processes, batches of two: the eighth row is a copy, which counted until it was left out.
    assert found[name]["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)


def test_the_first_loss_in_bfloat16_is_exact(found: dict[str, Any]) -> None:
    """Policy and reference compute in the same precision, so the log-ratios are zero: the loss is 1 − α/2."""
    assert found["bfloat16"]["losses"][0] == pytest.approx(0.85, abs=1e-7)
    assert found["bfloat16"]["losses"][1:] == pytest.approx(found["in parts"]["losses"][1:], abs=0.05)


@pytest.mark.parametrize("name", RUNS)
def test_a_split_head_computes_tiles_where_logits_are_many(name: str, found: dict[str, Any]) -> None:
    """Otherwise the head computes the logits of all scored positions, which are several in every batch."""
    tiled = [rows == 1 for rows in found[name]["rows"]]
    assert all(tiled) if name in TILED else not any(tiled[-3:])


def test_processes_that_scored_different_batches_run_as_many_passes(found: dict[str, Any]) -> None:
    """Only one of them tiled logits on the whole model, but both compare one position of the split model."""
    here, other = (each[TILED_IN_ONE] for each in (found, found["other process"]))
    assert [each["compared"] for each in (here, other)] == [True, False]
    assert here["rows"][0] == other["rows"][0] == 1
    assert min(other["rows"][1:]) > 1
    assert len(here["rows"]) == len(other["rows"])


def test_an_evaluation_stops_in_all_processes(found: dict[str, Any]) -> None:
    """The logits of one process are no longer those of its head; the other one must not wait for it."""
    assert "the model's logits are no longer what its head and configuration give" in found["stopped"]
    assert found["other process"]["stopped"] == found["stopped"]


def test_a_split_model_does_not_revise(found: dict[str, Any]) -> None:
    """Each process draws answers of other lengths, and would wait for passes that the others never run."""
    assert found["revised"].startswith("model: its weights are split over processes; expected a whole model")


@pytest.mark.parametrize("name", RUNS)
def test_the_whole_model_is_saved(name: str, place: Path) -> None:
    (file,) = (place / name).glob("*model.safetensors")
    (alone,) = (place / ("lora alone" if name.startswith("lora") else "full alone")).glob("*model.safetensors")
    ours, theirs = load_file(file), load_file(alone)
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    if name != "bfloat16":
        for key, tensor in ours.items():
            assert torch.allclose(tensor, theirs[key], atol=2e-5), key


def test_a_finished_run_is_complete(place: Path) -> None:
    """Resuming loads the whole model before anything is split, and takes no step."""

    def again(rank: int) -> Any:
        split_on_cpu(**RUNS["in parts"])
        run = make_trainer(place / "base", place / "in parts", rows=[*ROWS, ROWS[0]], eval_rows=ROWS, **SPLIT)
        run.train(resume_from_checkpoint=True)
        return run.start.complete, {key: float(p.sum()) for key, p in run.model.named_parameters()}

    ends = together(again)
    assert [end.error for end in ends] == ["", ""]
    complete, sums = ends[0].value
    assert complete
    saved = load_file(place / "in parts" / "model.safetensors")
    assert sums == {key: pytest.approx(float(tensor.sum()), rel=1e-6) for key, tensor in saved.items()}


def test_another_kind_of_splitting_is_refused(place: Path) -> None:
    def copied(rank: int) -> None:
        make_trainer(place / "base", place / "in parts", rows=[*ROWS, ROWS[0]], **SPLIT).train(True)

    ends = together(copied)
    assert [end.code for end in ends] == [78, 78]
    assert "weights_split_by: FSDP 2 → null" in ends[0].error


def test_splitting_that_accelerate_would_not_do_is_refused(place: Path) -> None:
    """On a CPU accelerate ignores FSDP; without the error every process would train all weights in silence."""

    def ignored(rank: int) -> None:
        os.environ.update(FSDP2)
        make_trainer(place / "base", place / "ignored", **SPLIT)

    ends = together(ignored)
    assert [end.code for end in ends] == [78, 78]
    assert "GPUs only" in ends[0].error


def test_the_first_version_of_fsdp_is_refused(place: Path) -> None:
    def first(rank: int) -> None:
        split_on_cpu(FSDP_VERSION="1", FSDP_USE_ORIG_PARAMS="true")
        make_trainer(place / "base", place / "first", **SPLIT)

    ends = together(first)
    assert [end.code for end in ends] == [78, 78]
    assert "FSDP: FSDP 1 is not supported" in ends[0].error


def test_a_model_whose_weights_are_split_already_is_refused(place: Path) -> None:
    """Tensor and expert parallelism make such weights while the model is loaded; users do so by `fully_shard`."""

    def parallel(rank: int) -> list[str]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        model = make_tiny_llama(num_hidden_layers=1)
        torch.distributed.init_process_group("gloo")
        layer: Any = model.model.layers[0].self_attn.q_proj
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        found = []
        for models in ({"model": model}, {"ref_model": model}):
            with pytest.raises(ConfigError) as error:
                trainer(place / "parallel", **models)
            found.append(str(error.value))
        return found

    (end,) = together(parallel, processes=1)
    assert not end.error
    for where, message in zip(("model", "ref_model"), end.value, strict=True):
        assert message.startswith(f"{where}: its weights are split over processes already; pass it whole")


def test_processes_that_would_wait_for_ever_are_refused(place: Path) -> None:
    settings = {**SPLIT, "accelerator_config": {"even_batches": False}}
    ends = together(lambda rank: str(make_trainer(place / "base", place / "uneven", **settings)))
    assert [end.code for end in ends] == [78, 78]
    assert "even_batches" in ends[0].error


def test_a_cache_that_training_would_fill_is_refused(place: Path) -> None:
    """A process with a hit would skip the forward pass that the others wait in."""

    def filling(rank: int) -> None:
        split_on_cpu()
        make_trainer(place / "base", place / "filling", **SPLIT, reference_cache=str(place / "other"))

    ends = together(filling)
    assert [end.code for end in ends] == [78, 78]
    assert "add `--precompute_ref_log_probs`" in ends[0].error


def test_a_saved_model_without_weights_is_an_error(tmp_path: Path) -> None:
    from srpo.errors import OutputError
    from srpo.train.durable.checkpoint import expect_weights

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="no weights were saved"):
        expect_weights(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    expect_weights(tmp_path)
