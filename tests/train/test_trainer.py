"""One step of the trainer is the method: its loss, its update, its metrics and what it leaves behind."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import SixLogps, SRPOConfig, SRPOTrainer
from srpo.errors import ConfigError, LengthError, NonFiniteError
from srpo.maths.objective import OBJECTIVES, length_averaged, srpo_loss
from srpo.model.weights.quantised import TRAINING_FILE
from srpo.train.metrics import METRICS_FILE
from tests.conftest import EOS, make_byte_tokenizer
from tests.train.plain import ASK, ROWS, flat_six, ids_of, logged, settings, sharp_llama, trainer, weights_of

FOUR = ROWS[:4]
SIX_NAMES = (
    "chosen",
    "rejected",
    "chosen_given_chosen",
    "rejected_given_chosen",
    "chosen_given_rejected",
    "rejected_given_rejected",
)


@pytest.fixture(scope="module")
def plain() -> tuple[SixLogps, SixLogps]:
    """The first four rows under two models, the slow way."""
    with torch.no_grad():
        return flat_six(sharp_llama(seed=0), FOUR), flat_six(sharp_llama(seed=1), FOUR)


def one_step(folder: Path, rows: Any = FOUR, **keywords: Any) -> SRPOTrainer:
    """Trains one step against a reference that is another model, so that no log-ratio is zero."""
    run = trainer(folder, rows, ref_model=sharp_llama(seed=1), **keywords)
    run.train()
    return run


# ---------------------------------------------------------------------- the loss


@pytest.mark.parametrize("backend", ["path", "flat"])
@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_loss_of_a_step_is_the_plain_one(
    backend: str, alpha: float, plain: tuple[SixLogps, SixLogps], tmp_path: Path
) -> None:
    run = one_step(tmp_path, args={"backend": backend, "alpha": alpha})
    assert run.reference.kind == "given"
    expected = float(srpo_loss(*plain, beta=0.1, alpha=alpha).loss)
    assert logged(run, "loss") == [pytest.approx(expected, rel=1e-4)]
    # Control: the two models are far enough apart for a wrong reference or α to show.
    assert float(srpo_loss(plain[0], plain[0], beta=0.1, alpha=alpha).loss) != pytest.approx(expected, rel=1e-2)
    assert float(srpo_loss(*plain, beta=0.1, alpha=1 - alpha).loss) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "sft"])
def test_other_objectives_run_on_drafts_alone(objective: str, plain: tuple[SixLogps, SixLogps], tmp_path: Path) -> None:
    run = one_step(tmp_path, args={"objective": objective})
    expected = float(OBJECTIVES[objective].loss(*plain, beta=0.1, alpha=0.3).loss)
    assert logged(run, "loss") == [pytest.approx(expected, rel=1e-4)]
    assert not [key for entry in run.state.log_history for key in entry if "revision/" in key]
    assert logged(run, "rewards/margins") == [
        pytest.approx(0.1 * float((plain[0].minus(plain[1]).w - plain[0].minus(plain[1]).l).mean()), rel=1e-4)
    ]
    assert all(len(tree.unpack()) == 2 for tree in run.train_dataset.trees)


def test_the_supervised_reviser_trains_chosen_revisions(plain: tuple[SixLogps, SixLogps], tmp_path: Path) -> None:
    run = one_step(tmp_path, args={"objective": "sft_reviser"})
    policy, _ = plain
    expected = -float((policy.w_given_l + policy.w_given_w).mean()) / 2
    assert logged(run, "loss") == [pytest.approx(expected, rel=1e-4)]
    assert expected != pytest.approx(-float((policy.w_given_l + policy.w).mean()) / 2, rel=1e-3)  # control


@pytest.mark.parametrize("objective", ["srpo", "dpo"])
def test_the_anchor_joins_the_loss(objective: str, plain: tuple[SixLogps, SixLogps], tmp_path: Path) -> None:
    run = one_step(tmp_path, args={"objective": objective, "chosen_nll_weight": 0.5})
    policy = plain[0]
    nll = {"dpo": policy.w, "srpo": (policy.w + policy.w_given_w + policy.w_given_l) / 3}[objective]
    per_token = [float(-value) / (len(ids_of(row["chosen"])) + 1) for value, row in zip(nll, FOUR, strict=True)]
    without = float(OBJECTIVES[objective].loss(*plain, beta=0.1, alpha=0.3).loss)
    assert logged(run, "loss") == [pytest.approx(without + 0.5 * sum(per_token) / 4, rel=1e-4)]


def test_mean_log_probs(plain: tuple[SixLogps, SixLogps], tmp_path: Path) -> None:
    run = one_step(tmp_path, args={"logps_reduction": "mean"})
    tokens = [torch.tensor([len(ids_of(row[key])) + 1 for row in FOUR]) for key in ("chosen", "rejected")]
    averaged = [length_averaged(six, *tokens) for six in plain]
    assert logged(run, "loss") == [pytest.approx(float(srpo_loss(*averaged, beta=0.1, alpha=0.3).loss), rel=1e-4)]
    assert logged(run, "logps/rejected") == [pytest.approx(float(averaged[0].l.mean()), rel=1e-4)]


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_at_step_0_every_log_ratio_is_exactly_0(alpha: float, tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, args={"alpha": alpha})
    run.train()
    first = run.state.log_history[0]
    assert first["loss"] == pytest.approx((1 - alpha) * 1 + alpha * 0.5, rel=1e-6)
    assert {first[f"revision/margins/{name}"] for name in SIX_NAMES} == {0.0}
    assert (first["rewards/chosen"], first["rewards/accuracies"]) == (0.0, 0.0)
    assert (first["revision/generation_loss"], first["revision/improvement_loss"]) == (1.0, 0.5)


@pytest.mark.parametrize("objective", ["srpo", "dpo", "ipo"])
def test_training_lowers_the_loss(objective: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, args={"objective": objective, "max_steps": 12, "lr_scheduler_type": "constant"})
    run.train()
    losses = logged(run, "loss")
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    assert logged(run, "rewards/accuracies")[-1] == 1.0


def test_the_reference_is_the_model_before_training(tmp_path: Path) -> None:
    model = sharp_llama()
    before = copy.deepcopy(model)
    run = trainer(tmp_path, FOUR, model=model, args={"max_steps": 3})
    run.train()
    assert run.reference.kind == "frozen copy"
    for weight, was, now in zip(run.reference.model.parameters(), before.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, was)
        assert not torch.equal(now, was)


# ---------------------------------------------------------------------- the update


@pytest.mark.parametrize("batch", [1, 2])
def test_accumulation_gives_the_update_of_one_large_batch(batch: int, tmp_path: Path) -> None:
    def trained(per_device: int, accumulate: int) -> dict[str, torch.Tensor]:
        args = {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulate,
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_steps": 2,
            "lr_scheduler_type": "constant",
        }
        run = one_step(tmp_path, args=args)
        return weights_of(run.model)

    whole, pieces = trained(4, 1), trained(batch, 4 // batch)
    before = weights_of(sharp_llama())
    for name, weight in whole.items():
        torch.testing.assert_close(pieces[name], weight, rtol=1e-4, atol=2e-6, msg=name)
    assert max(float((weight - before[name]).abs().max()) for name, weight in whole.items()) > 1e-3


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_activation_checkpointing_does_not_change_numbers(name: str, tmp_path: Path) -> None:
    if name not in (field.name for field in dataclasses.fields(SRPOConfig)):
        pytest.skip(f"this transformers has no {name}")
    runs = [one_step(tmp_path, args={"optim": "sgd", "learning_rate": 0.1, **on}) for on in ({}, {name: True})]
    on = [any(getattr(module, "gradient_checkpointing", False) for module in run.model.modules()) for run in runs]
    assert on == [False, True]
    assert {run._backends[False] for run in runs} == {"path"}
    assert logged(runs[0], "loss") == logged(runs[1], "loss")
    assert logged(runs[1], "grad_norm") == [pytest.approx(logged(runs[0], "grad_norm")[0], rel=1e-5)]
    for (key, plain_one), recomputed in zip(weights_of(runs[0].model).items(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(recomputed.detach(), plain_one, rtol=1e-5, atol=1e-7, msg=key)


def test_dropout_is_off_by_default(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2() -> Any:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=128))

    def dropouts(model: torch.nn.Module) -> set[float]:
        found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        attention = (getattr(module, "attention_dropout", None) for module in model.modules())
        return found | {rate for rate in attention if isinstance(rate, float)}

    for make in (gpt2, lambda: sharp_llama(attention_dropout=0.3)):
        given = make()
        rates = dropouts(given)
        assert max(rates) > 0
        assert dropouts(trainer(tmp_path, FOUR, model=given).model) == {0.0}
        kept = trainer(tmp_path, FOUR, model=make(), args={"disable_dropout": False})
        assert dropouts(kept.model) == rates
    # With it, the policy differs from its reference at once; without, it cannot.
    kept.train()
    assert logged(kept, "revision/margins/chosen") != [0.0]


# ---------------------------------------------------------------------- metrics


def test_metrics_by_hand(plain: tuple[SixLogps, SixLogps], tmp_path: Path) -> None:
    first = one_step(tmp_path).state.log_history[0]
    ours, theirs = ([[float(x) for x in column] for column in six] for six in plain)
    h = {
        field: [a - b for a, b in zip(p, r, strict=True)]
        for field, p, r in zip(SixLogps._fields, ours, theirs, strict=True)
    }

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    better = [
        ((wl > ll) + (ww > lw)) / 2
        for wl, ll, ww, lw in zip(h["w_given_l"], h["l_given_l"], h["w_given_w"], h["l_given_w"], strict=True)
    ]
    reached = [
        ((0.1 * (wl - ll) >= 0.5) + (0.1 * (ww - lw) >= 0.5)) / 2
        for _, _, ww, lw, wl, ll in zip(*h.values(), strict=True)
    ]
    tokens = lambda text: len(ids_of(text)) + 1  # noqa: E731
    expected = {
        "rewards/chosen": 0.1 * mean(h["w"]),
        "rewards/rejected": 0.1 * mean(h["l"]),
        "rewards/accuracies": mean([float(w > l) for w, l in zip(h["w"], h["l"], strict=True)]),
        "rewards/margins": 0.1 * (mean(h["w"]) - mean(h["l"])),
        "logps/chosen": mean(ours[0]),
        "logps/rejected": mean(ours[1]),
        "rewards/reached": mean([float(0.1 * (w - l) >= 0.5) for w, l in zip(h["w"], h["l"], strict=True)]),
        "drift/chosen": mean([g / tokens(row["chosen"]) for g, row in zip(h["w"], FOUR, strict=True)]),
        "drift/rejected": mean([g / tokens(row["rejected"]) for g, row in zip(h["l"], FOUR, strict=True)]),
        "drift/chosen_revised": mean(
            [
                (ww + wl) / 2 / tokens(row["chosen"])
                for ww, wl, row in zip(h["w_given_w"], h["w_given_l"], FOUR, strict=True)
            ]
        ),
        "revision/improvement_accuracy": mean(better),
        "revision/reached": mean(reached),
        "revision/residual": mean(
            [0.1 * (wl + w - lw - l) - 1 for w, l, _, lw, wl, _ in zip(*h.values(), strict=True)]
        ),
        **{f"revision/margins/{name}": 0.1 * mean(h[field]) for name, field in zip(SIX_NAMES, h, strict=True)},
    }
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)
    loss = srpo_loss(*plain, beta=0.1, alpha=0.3)
    assert first["revision/generation_loss"] == pytest.approx(float(loss.generation.mean()), rel=1e-4)
    assert first["revision/improvement_loss"] == pytest.approx(float(loss.improvement.mean()), rel=1e-4)
    assert first["answer_tokens"] == sum(tokens(row[key]) for row in FOUR for key in ("chosen", "rejected")) / 8
    named = {name for name in first if "/" in name}
    assert 0 < first["revision/reached"] < 1
    spread = {"entropy/drafts", "entropy/revisions", "entropy/reference", "kl/drafts", "kl/revisions"}
    assert named == {*expected, *spread, "revision/generation_loss", "revision/improvement_loss"}
    assert len({round(first[f"revision/margins/{name}"], 6) for name in SIX_NAMES}) == 6  # no two can be confused


def test_entropy_and_kl_are_those_of_every_answer_token(tmp_path: Path) -> None:
    first = one_step(tmp_path).state.log_history[0]
    model, other = sharp_llama(seed=0), sharp_llama(seed=1)
    found: dict[str, list[float]] = {"entropy/drafts": [], "kl/drafts": [], "entropy/revisions": [], "kl/revisions": []}
    with torch.no_grad():
        for row in FOUR:
            sums = {"drafts": torch.zeros(3), "revisions": torch.zeros(3)}
            for draft in ("", row["chosen"], row["rejected"]):
                context = row["prompt"] + (draft + ASK if draft else "")
                for answer in (row["chosen"], row["rejected"]):
                    ids, start = [*ids_of(context), *ids_of(answer), EOS], len(ids_of(context)) - 1
                    ours, theirs = (m(torch.tensor([ids])).logits[0, start:-1].log_softmax(-1) for m in (model, other))
                    kl = (ours.exp() * (ours - theirs)).sum()
                    numbers = torch.stack([-(ours.exp() * ours).sum(), kl, torch.tensor(len(ours))])
                    sums["revisions" if draft else "drafts"] += numbers
            for role, (entropy, kl, count) in sums.items():
                found[f"entropy/{role}"].append(float(entropy / count))
                found[f"kl/{role}"].append(float(kl / count))
    expected = {name: sum(values) / len(values) for name, values in found.items()}
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert first["kl/drafts"] != pytest.approx(first["kl/revisions"], rel=1e-3)  # no two can be confused


def test_a_cached_reference_has_no_distributions(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", FOUR, args={"reference_cache": str(tmp_path / "kept")})
    run.train()
    first = run.state.log_history[0]
    assert {name for name in first if name.startswith(("kl/", "entropy/"))} == {"entropy/drafts", "entropy/revisions"}


def test_training_metrics_are_means_over_rows_also_where_micro_batches_are_fetched_together(tmp_path: Path) -> None:
    # 7 rows in micro-batches of 3, 3 and 1, all of one optimiser step.
    args = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}
    run = one_step(tmp_path, ROWS, args=args)
    with torch.no_grad():
        policy = flat_six(sharp_llama(), ROWS)
    assert logged(run, "logps/chosen") == [pytest.approx(float(policy.w.mean()), rel=1e-5)]


def test_metrics_are_means_over_all_steps_since_the_last_log(tmp_path: Path) -> None:
    args = {"per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 2, "learning_rate": 0.0}
    run = one_step(tmp_path, args=args)
    with torch.no_grad():
        policy = flat_six(sharp_llama(), FOUR)
    assert logged(run, "logps/chosen") == [pytest.approx(float(policy.w.mean()), rel=1e-5)]


def test_evaluation_metrics_are_means_over_rows_with_a_ragged_last_batch(tmp_path: Path) -> None:
    five = ROWS[:5]  # batches of 4 and 1
    run = trainer(tmp_path, FOUR, ref_model=sharp_llama(seed=1), eval_dataset=five)
    found = run.evaluate()
    with torch.no_grad():
        policy, reference = (flat_six(sharp_llama(seed=seed), five) for seed in (0, 1))
    loss = srpo_loss(policy, reference, beta=0.1, alpha=0.3)
    assert found["eval_loss"] == pytest.approx(float(loss.loss), rel=1e-4)
    assert found["eval_logps/chosen"] == pytest.approx(float(policy.w.mean()), rel=1e-5)
    assert found["eval_revision/generation_loss"] == pytest.approx(float(loss.generation.mean()), rel=1e-4)
    # Control: the mean of the two batches' means is another number.
    of_batches = (policy.w[:4].mean() + policy.w[4]) / 2
    assert found["eval_logps/chosen"] != pytest.approx(float(of_batches), rel=1e-2)


def test_evaluation_sets_have_separate_metrics(tmp_path: Path) -> None:
    run = trainer(tmp_path, FOUR, eval_dataset={"short": ROWS[3:4], "rest": ROWS[:3]})
    run.predict(run.eval_dataset["rest"])  # leaves nothing behind for the next evaluation
    found = run.evaluate()
    with torch.no_grad():
        policy = flat_six(sharp_llama(), FOUR)
    assert found["eval_short_logps/chosen"] == pytest.approx(float(policy.w[3]), rel=1e-5)
    assert found["eval_rest_logps/chosen"] == pytest.approx(float(policy.w[:3].mean()), rel=1e-5)


def test_evaluation_in_the_middle_of_training_leaves_the_training_metrics_alone(tmp_path: Path) -> None:
    args = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    with_eval = trainer(tmp_path, FOUR, eval_dataset=ROWS[4:], args=args)
    without = trainer(tmp_path, FOUR, args={"max_steps": 2})
    for run in (with_eval, without):
        run.train()
    for key in ("loss", "logps/chosen", "rewards/margins"):
        assert logged(with_eval, key) == logged(without, key)
    assert len(logged(with_eval, "eval_logps/chosen")) == 2


def test_metrics_file_has_every_log_once(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 9, "loss": 1.0}\n', "utf-8")  # of an earlier run
    args = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    run = trainer(tmp_path, FOUR, eval_dataset=ROWS[4:], args=args)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text("utf-8").splitlines()]
    assert lines == [{"step": entry["step"], **entry} for entry in run.state.log_history]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 3, 3]


# ---------------------------------------------------------------------- what cannot go on


class Watched(torch.optim.SGD):
    """Counts its steps."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


def test_a_nan_stops_before_the_optimiser_and_names_the_rows(tmp_path: Path) -> None:
    model = sharp_llama()
    optimiser = Watched(model.parameters(), 0.1)
    run = trainer(tmp_path, FOUR, model=model, optimizers=(optimiser, None), args={"max_steps": 3})
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    before = weights_of(model)
    with pytest.raises(NonFiniteError) as caught:
        run.train()
    assert caught.value.exit_code == 70
    assert caught.value.where == "step 1"
    for i in range(1, 5):
        assert f"row {i}" in str(caught.value)
    assert "the loss is nan" in str(caught.value)
    assert optimiser.steps == 0
    assert all(
        torch.equal(weight.nan_to_num(7), before[name].nan_to_num(7)) for name, weight in model.named_parameters()
    )


def test_a_nan_from_one_row_names_that_row(tmp_path: Path) -> None:
    # Only row 3 holds "ñ"; its second byte's embedding is poisoned after the reference was taken.
    model = sharp_llama()
    run = trainer(tmp_path, FOUR, model=model, eval_dataset=[ROWS[4], ROWS[2]], args={"backend": "flat"})
    poisoned = ids_of("ñ")[1]
    assert [i for i, row in enumerate(FOUR) if poisoned in ids_of("".join(row.values()))] == [2]
    with torch.no_grad():
        model.model.embed_tokens.weight[poisoned] = torch.nan
    with pytest.raises(NonFiniteError, match="row 3") as caught:
        run.train()
    assert not any(f"row {i}" in str(caught.value) for i in (1, 2, 4))
    # In evaluation a row is named by its place in the evaluation set.
    with pytest.raises(NonFiniteError, match="row 2") as caught:
        run.evaluate()
    assert "row 3" not in str(caught.value)


def test_a_model_without_a_trainable_weight(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weight is trainable"):
        trainer(tmp_path, FOUR, model=sharp_llama().requires_grad_(False))


def test_rows_longer_than_the_models_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LengthError, match=r"4 of 4 rows are too long.*\n.*over the limit of 16"):
        trainer(tmp_path, FOUR, model=sharp_llama(max_position_embeddings=16))
    # max_length cannot ask for more than the context, but for less.
    with pytest.raises(LengthError, match="over the limit of 16"):
        trainer(tmp_path, FOUR, model=sharp_llama(max_position_embeddings=16), args={"max_length": 400})
    with pytest.raises(LengthError, match="over the limit of 20"):
        trainer(tmp_path, FOUR, args={"max_length": 20})


# ---------------------------------------------------------------------- models, rows and folders


def test_rows_of_every_kind_train_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import datasets

    file = tmp_path / "pairs.jsonl"
    bad = '{"prompt": "p"}\n'
    file.write_text(bad + "".join(json.dumps(row) + "\n" for row in FOUR), "utf-8")
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (FOUR, {}),
        (datasets.Dataset.from_list(FOUR), {}),
        (str(file), {"bad_rows": "skip"}),
    ]
    with caplog.at_level(logging.WARNING, "srpo"):
        runs = [one_step(tmp_path / "run", rows, args=args) for rows, args in kinds]
    assert "1 of 5 rows left out" in caplog.text
    assert len({logged(run, "loss")[0] for run in runs}) == 1


def test_a_model_by_path_brings_its_tokenizer_and_a_saved_one_loads_anywhere(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, out = tmp_path / "base", tmp_path / "run"
    sharp_llama().save_pretrained(base)
    make_byte_tokenizer().save_pretrained(base)
    run = SRPOTrainer(str(base), args=settings(out, max_steps=2, learning_rate=0.01), train_dataset=FOUR)
    run.train()
    run.save_model()
    assert run.renderer.template.name == "plain"

    stock = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    for (name, theirs), ours in zip(stock.named_parameters(), run.model.parameters(), strict=True):
        assert torch.equal(theirs, ours), name
    assert AutoTokenizer.from_pretrained(out)("año")["input_ids"] == ids_of("año")
    assert json.loads((out / TRAINING_FILE).read_text("utf-8")) == {
        "format": 1,
        "objective": "srpo",
        "beta": 0.1,
        "alpha": 0.3,
        "logps_reduction": "sum",
        "reference": "frozen copy",
    }
    saved = json.loads((out / "revision_template.json").read_text("utf-8"))
    assert (saved["name"], saved["sha256"]) == ("plain", run.renderer.fingerprint)
    # Trained on, it keeps the template it was saved with and starts again at log-ratio zero.
    again = SRPOTrainer(str(out), args=settings(tmp_path / "again", alpha=0.5), train_dataset=FOUR)
    again.train()
    assert logged(again, "loss") == [0.75]


def test_options_for_loading_are_used(tmp_path: Path) -> None:
    sharp_llama().save_pretrained(tmp_path / "base")
    options: list[Any] = [{"dtype": "bfloat16"}, json.dumps({"dtype": "bfloat16"})]
    for given in options:
        args = settings(tmp_path, model_init_kwargs=given)
        run = SRPOTrainer(str(tmp_path / "base"), args=args, train_dataset=FOUR, processing_class=make_byte_tokenizer())
        weights = dict(run.model.named_parameters())
        assert {p.dtype for p in weights.values()} == {torch.float32}
        assert all(torch.equal(p, p.bfloat16().float()) for p in weights.values())  # loaded in bfloat16
