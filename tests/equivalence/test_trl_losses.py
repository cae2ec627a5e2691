"""Our DPO and IPO against TRL's DPOTrainer, on the same texts and the same two models.

TRL computes its loss its own way: a padded batch, its tokenisation, its log-prob head. Ours comes from log-probs summed
here row by row from ids looked up here, so nothing but the two models is shared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
trl = pytest.importorskip("trl", reason="TRL is a test dependency only")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from srpo.maths.objective import LossOutput, SixLogps, dpo_loss, ipo_loss, length_averaged  # noqa: E402

WORDS = [
    "<pad>",
    "<eos>",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "off",
    "mat",
    "hill",
    "fast",
    "slowly",
    "why",
    "where",
]
ROWS = [
    {"prompt": "where the cat sat", "chosen": " on the mat", "rejected": " off"},
    {"prompt": "why", "chosen": " the dog ran fast on a hill", "rejected": " a cat sat slowly on the mat off the hill"},
    {"prompt": "the dog ran where", "chosen": " off", "rejected": " on a mat"},
]


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # Weights large enough that the two models disagree by several nats.
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def answer_logp(model: LlamaForCausalLM, prompt: str, answer: str) -> torch.Tensor:
    """log π(answer, end of text | prompt): one row, no padding, a loop over tokens."""
    context, ids = ids_of(prompt), [*ids_of(answer), WORDS.index("<eos>")]
    logits = model(torch.tensor([context + ids])).logits[0].double().log_softmax(-1)
    return torch.stack([logits[len(context) + i - 1, token] for i, token in enumerate(ids)]).sum()


def six(model: LlamaForCausalLM) -> SixLogps:
    """Drafts only, as both objectives need; the rest is nan, so reading it would show."""
    columns = {
        field: torch.stack([answer_logp(model, row["prompt"], row[column]) for row in ROWS])
        for field, column in (("w", "chosen"), ("l", "rejected"))
    }
    unscored = torch.full((len(ROWS),), torch.nan)
    return SixLogps(**columns, **{field: unscored for field in SixLogps._fields if field not in columns})


def trl_loss(loss_type: str, beta: float, folder: Path) -> tuple[torch.Tensor, LlamaForCausalLM]:
    args: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "bf16": False, "use_cpu": True}
    policy = tiny(0)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=tiny(1),
        args=trl.DPOConfig(**args, loss_type=[loss_type], beta=beta, per_device_train_batch_size=len(ROWS)),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 2 * len(ROWS)
    return trainer.compute_loss(trainer.model, batch), policy


def our_loss(loss_type: str, beta: float, policy: SixLogps, reference: SixLogps) -> LossOutput:
    if loss_type == "sigmoid":
        return dpo_loss(policy, reference, beta=beta)
    # TRL divides each log-ratio by its answer's tokens for IPO, and for nothing else; its end of text counts as one.
    tokens = [torch.tensor([len(row[column].split()) + 1.0 for row in ROWS]) for column in ("chosen", "rejected")]
    return ipo_loss(length_averaged(policy, *tokens), length_averaged(reference, *tokens), beta=beta)


@pytest.mark.parametrize("beta", [0.1, 1.3])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_same_loss_and_same_gradient_as_trl(loss_type: str, beta: float, tmp_path: Path) -> None:
    theirs, their_policy = trl_loss(loss_type, beta, tmp_path)
    theirs.backward()
    our_policy = tiny(0)
    with torch.no_grad():
        reference = six(tiny(1))
    policy = six(our_policy)
    assert (policy.w - reference.w).abs().min() > 0.1  # else both sides would be the constant of log-ratio zero
    ours = our_loss(loss_type, beta, policy, reference).loss
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for (name, our), their in zip(our_policy.named_parameters(), their_policy.parameters(), strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_control_trl_s_ipo_is_the_length_averaged_one(tmp_path: Path) -> None:
    theirs, _ = trl_loss("ipo", 0.1, tmp_path)
    with torch.no_grad():
        summed = ipo_loss(six(tiny(0)), six(tiny(1)), beta=0.1).loss
        swapped = our_loss("ipo", 0.1, six(tiny(1)), six(tiny(0))).loss
    assert summed.item() != pytest.approx(theirs.item(), rel=1e-2)
    assert swapped.item() != pytest.approx(theirs.item(), rel=1e-2)
