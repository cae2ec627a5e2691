"""The planner: fake tensors hold as many bytes as real ones, and the formulas give hand-computed numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from srpo.cli.main import run
from srpo.errors import ConfigError
from srpo.model.packed.forest import Forest
from srpo.model.packed.tiles import Card
from srpo.train.fake_step import Step, fake_model, peak_of_step
from srpo.train.plan import Planned, Setup, made_pairs
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.train.plain import ROWS

CARD = Card("cpu", 2**30, bfloat16=False)
STEPS = {
    "path": Step(CARD),
    "flat": Step(CARD, backend="flat"),
    "checkpointing": Step(CARD, checkpointing=True),
    "gradients leave": Step(CARD, keeps_gradients=False),
    "autocast": Step(CARD, autocast=True),
}


def config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaConfig(**{"vocab_size": 96, **sizes, "num_key_value_heads": 2, **changes})


def lora() -> LoraConfig:
    return LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])


def trees(count: int = 2) -> Any:
    return made_pairs(20, 6, 4, "turn", count=count, vocabulary=96)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("path", False), ("flat", False), ("checkpointing", False), ("gradients leave", False), ("autocast", True)],
)
def test_a_fake_step_holds_the_bytes_of_a_real_one(name: str, adapter: bool) -> None:
    from peft import get_peft_model

    real = AutoModelForCausalLM.from_config(config()).train()
    real = get_peft_model(real, lora()).train() if adapter else real
    fake = fake_model(config(), torch.float32, lora() if adapter else None)
    # A forest keeps its attention masks, so each model gets its own.
    fakes, reals = (peak_of_step(model, Forest.plant(trees()), STEPS[name]) for model in (fake, real))
    assert fakes == reals > 0


def test_larger_batches_and_kept_activations_take_more() -> None:
    fake = fake_model(config(), torch.float32)
    few, many = (peak_of_step(fake, Forest.plant(trees(count)), STEPS["path"]) for count in (2, 4))
    assert many > 1.5 * few
    assert peak_of_step(fake, Forest.plant(trees(2)), STEPS["path"]) == few  # nothing is left behind


def test_a_large_head_is_planned_in_tiles() -> None:
    """Logits above 2²⁵ are tiled: a card of 1 MiB cannot keep them, one of 16 GiB can."""
    large = fake_model(config(vocab_size=2**20, tie_word_embeddings=True), torch.float32)
    pairs = Forest.plant(made_pairs(8, 8, 4, "turn", count=2, vocabulary=2**20))
    logits = 4 * len(pairs.parents_P) * 2**20
    small, big = (peak_of_step(large, pairs, Step(Card("cuda", 2**size))) for size in (20, 34))
    assert len(pairs.parents_P) * 2**20 > 2**25
    assert big - small == pytest.approx(logits, rel=0.6)


def test_kept_bytes_by_hand() -> None:
    count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config()).parameters())
    alone = Planned(config(), Setup(bf16=False, backend="path", device="cpu")).kept
    assert alone == (4 * count, 4 * count, 8 * count, 0, 0)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32  # attention, mlp, norms
    root = count - layer
    split = Planned(config(), Setup(launch="fsdp2", cards=4, bf16=False, backend="path", device="cpu")).kept
    assert split == (count, count, 2 * count, 4 * (root + 2 * layer), 0)
    cached = Planned(config(), Setup(bf16=False, precomputed=True, backend="path", device="cpu")).kept
    assert cached.reference == 0


@pytest.mark.parametrize(
    ("launch", "accumulated", "bytes_each"),
    [("one", 1, 0), ("one", 2, 4), ("ddp", 1, 4), ("ddp", 2, 8), ("fsdp2", 1, 0), ("fsdp2", 2, 4)],
)
def test_gradients_kept_by_hand(launch: str, accumulated: int, bytes_each: int) -> None:
    cards = 1 if launch == "one" else 4
    setup = Setup(launch=launch, cards=cards, accumulated=accumulated)
    plan = Planned(config(), setup, lora())
    assert 0 < plan.trained < plan.weights
    assert plan.kept.gradients == bytes_each * plan.trained


def test_fsdp_scores_the_reference_with_a_whole_policy() -> None:
    whole = Planned(config(), Setup(bf16=False))
    split = Planned(config(), Setup(launch="fsdp2", cards=4, bf16=False, precomputed=True))
    assert split.scoring == whole.kept.weights > split.kept.weights
    assert Planned(config(), Setup(launch="fsdp2", cards=4)).scoring == 0
    rows = [{"pairs": 1, "step": 0.0}, {"pairs": 2, "step": 1e-9}]
    assert split.fitting(rows, split.scoring, "step") == 0
    assert split.fitting(rows, 10 * split.scoring, "step") > 0


@pytest.mark.parametrize(
    ("room", "pairs"), [(0.5, 0), (1.0, 1), (2.9, 2), (3.0, 3), (4.5, 4), (7.0, 7), (8.0, 8), (9.5, 9)]
)
def test_sizes_between_the_planned_ones(room: float, pairs: int) -> None:
    plan = Planned(config(), Setup(bf16=False))
    rows = [{"pairs": each, "step": float(each)} for each in (1, 2, 4, 8)]
    assert plan.fitting(rows, (room * 2**30 + plan.kept.all + 1) / 0.9, "step") == pairs


def test_longer_pairs_first_give_no_batch_that_does_not_fit() -> None:
    """Steps of 10, 18, 30, 44 GiB: a line from 18 to 30 would promise three pairs in 24 GiB, which may take 26."""
    plan = Planned(config(), Setup(bf16=False))
    rows = [{"pairs": each, "step": gib} for each, gib in ((1, 10.0), (2, 18.0), (4, 30.0), (8, 44.0))]
    assert [plan.fitting(rows, (room * 2**30 + plan.kept.all + 1) / 0.9, "step") for room in (24, 26, 37)] == [2, 3, 5]


def test_a_quantised_base_by_hand() -> None:
    linear = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    kept = {bits: Planned(config(), Setup(bits=bits), lora()).kept.weights for bits in (0, 4, 8)}
    assert kept[0] - kept[4] == pytest.approx(linear * (2 - 0.5 - 4 / 64), abs=1)
    assert kept[0] - kept[8] == linear
    with pytest.raises(ConfigError, match="load_in_4bit: quantised weights cannot be trained"):
        Planned(config(), Setup(bits=4))


def test_cost_by_hand() -> None:
    """Operations of a model without attention to speak of: two per weight and token, three passes and one more."""
    plan = Planned(config(), Setup(bf16=False, backend="path", device="cpu"))
    pairs = trees(1)
    forest = Forest.plant(pairs)
    matrices = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    visible = sum(len(pairs[0].path(node)) for node in range(len(pairs[0])))
    tokens = len(pairs[0])
    expected = 4 * (2 * matrices * tokens + 4 * 32 * visible + 2 * 96 * 32 * len(forest.parents_P))
    assert plan.cost(pairs) == (tokens, expected, 0.0)
    split = Planned(config(), Setup(launch="fsdp2", cards=4, backend="path", device="cpu"))
    assert split.cost(pairs).wire == pytest.approx(3 / 4 * 4 * 2 * split.weights)  # 3 gathers and 1 sum, in bfloat16
    copied = Planned(config(), Setup(launch="ddp", cards=4, backend="path", device="cpu"))
    assert copied.cost(pairs).wire == pytest.approx(3 / 4 * 2 * 4 * copied.weights)


@pytest.mark.parametrize(("shape", "tokens"), [("turn", 20 + 3 * 2 * 6 + 2 * 4), ("quote", 20 + 3 * 2 * 6 + 4)])
def test_made_pairs_share_what_their_template_shares(shape: str, tokens: int) -> None:
    (tree,) = made_pairs(20, 6, 4, shape, count=1, vocabulary=96)
    # quote: the draft and its request are not shared with the first answers, so each draft counts twice.
    assert len(tree) == (tokens if shape == "turn" else 20 + 2 * 6 + 4 + 2 * 6 + 4 * 6)


def test_launch_and_cards_must_agree() -> None:
    with pytest.raises(ConfigError, match="launch: 'one' with 8 cards"):
        Planned(config(), Setup(cards=8))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batch sizes instead of four."""
    monkeypatch.setattr("srpo.cli.plan.BATCHES", (1, 2))


@pytest.mark.usefixtures("few")
def test_the_command_plans_a_configuration_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(max_position_embeddings=256).save_pretrained(tmp_path)
    words = ["plan", "--model_name_or_path", str(tmp_path), "--prompt_tokens", "20", "--answer_tokens", "6"]
    assert run([*words, "--launch", "fsdp2", "--cards", "8", "--use_peft", "--load_in_4bit"]) == 0
    text = capsys.readouterr().out
    assert "longest pair: 88 packed tokens (" in text  # 20 + 2·6 + 2·16 + 4·6
    assert "FSDP 2 on 8 cards" in text
    assert "largest batch in 90 % of a card" in text


@pytest.mark.usefixtures("few")
def test_the_command_plans_for_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_llama(num_hidden_layers=1).config.save_pretrained(tmp_path)
    make_byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    words = ["plan", "--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path / "pairs.jsonl")]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["pairs"] for row in found["batches"]] == [1, 2]
    assert found["batches"][1]["step"] > found["batches"][0]["step"]
    assert found["largest_batch"]["80"][0] > found["largest_batch"]["24"][0] > 2
    assert found["longest_pair_tokens"] < found["longest_pair_flat_tokens"]


def test_lengths_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lengths of the pairs are not known"):
        run(["plan", "--model_name_or_path", str(tmp_path), "--prompt_tokens", "3"])


def test_lengths_are_given_once() -> None:
    with pytest.raises(ConfigError, match="lengths of the pairs are given twice; leave out"):
        run(["plan", "--model_name_or_path", "tiny", "--dataset_name", "pairs.jsonl", "--answer_tokens", "4"])


def test_eight_bits_without_an_adapter_are_refused_by_their_name() -> None:
    with pytest.raises(ConfigError, match="load_in_8bit: quantised weights cannot be trained"):
        Planned(config(), Setup(bits=8))


def test_experts_in_float32_are_refused_by_name() -> None:
    config = Qwen3MoeConfig(
        **{"vocab_size": 300, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4},
        architectures=["Qwen3MoeForCausalLM"],
    )
    with pytest.raises(ConfigError, match=r"Qwen3MoeForCausalLM: its step has an operation .*; plan it with --bf16"):
        peak_of_step(fake_model(config, torch.float32), Forest.plant(trees()), Step(CARD))
