"""The planner: fake tensors hold as many bytes as real ones, and the formulas give hand-computed numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from srpo.cli.flags import parse
from srpo.cli.main import run
from srpo.cli.plan import DESCRIPTION, Arguments, _setup
from srpo.errors import ConfigError
from srpo.model.packed.adapter_sum import _AddedProduct
from srpo.model.packed.forest import Forest
from srpo.model.packed.tiles import Card
from srpo.model.weights import precision
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
    [(name, name == "autocast") for name in STEPS] + [("path", True)],
)
def test_a_fake_step_holds_the_bytes_of_a_real_one(name: str, adapter: bool) -> None:
    from peft import get_peft_model

    real = AutoModelForCausalLM.from_config(config()).train()
    real = get_peft_model(real, lora()).train() if adapter else real
    fake = fake_model(config(), torch.float32, lora() if adapter else None)
    # A forest keeps its attention masks, so each model gets its own.
    fakes, reals = (peak_of_step(model, Forest.plant(trees()), STEPS[name]) for model in (fake, real))
    assert fakes == reals > 0


@pytest.mark.parametrize(("name", "added"), [("path", 1), ("autocast", 0)])
def test_a_fake_step_adds_lora_s_product_as_a_real_one(name: str, added: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call for the one adapted layer of the policy, and not under autocast."""
    calls: list[object] = []
    apply = _AddedProduct.apply
    monkeypatch.setattr(_AddedProduct, "apply", lambda *args: (calls.append(args), apply(*args))[1])
    peak_of_step(fake_model(config(), torch.float32, lora()), Forest.plant(trees()), STEPS[name])
    assert len(calls) == added


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
    assert split.fitting(lambda pairs: 0, split.scoring, 4) == 0
    assert split.fitting(lambda pairs: 0, 10 * split.scoring, 4) == 4


CONVEX = [1.162, 1.163, 1.165, 1.166, 1.213, 1.364, 1.515, 1.666]  # GiB of 1 to 8 pairs: head, then activations
CONCAVE = [10.0, 18.0, 26.0, 30.0, 34.0, 38.0, 41.0, 44.0]  # the longest pairs come first


@pytest.mark.parametrize("most", [5, 8])
@pytest.mark.parametrize("steps", [CONVEX, CONCAVE])
def test_the_largest_batch_is_one_that_was_measured(steps: list[float], most: int) -> None:
    """Lines through a few planned sizes promise too much: seven pairs of `CONVEX` in 1.212 GiB, where four fit."""
    plan = Planned(config(), Setup(bf16=False))
    for room in (0.5, 1.1625, 1.212, 1.3, 1.4, 2.0, 24.0, 26.0, 37.0, 50.0):
        memory = (room * 2**30 + plan.kept.all + 1) / 0.9
        found = plan.fitting(lambda pairs: steps[pairs - 1] * 2**30, memory, most)
        assert found == sum(each <= room for each in steps[:most])


def test_gradients_of_accumulated_batches_count_once() -> None:
    """All 4 T bytes are in `kept`; the batch under way holds the gradient of one weight at a time."""
    for launch, cards in (("one", 1), ("fsdp2", 4)):
        setup = Setup(launch=launch, cards=cards, bf16=False, accumulated=2, backend="path", device="cpu")
        plan = Planned(config(), setup)
        step = Step(Card("cpu", setup.memory), keeps_gradients=False)
        assert plan.step(trees(1)) == peak_of_step(plan.model, Forest.plant(trees(1)), step)


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


def test_launches_by_their_other_names() -> None:
    assert Planned(config(), Setup(launch="single")).kept == Planned(config(), Setup()).kept
    with pytest.raises(ConfigError, match="launch: 'single' with 2 cards"):
        Planned(config(), Setup(launch="single", cards=2))
    with pytest.raises(ConfigError, match="launch: 'zero3': DeepSpeed's ZeRO cannot be planned; plan with one of"):
        Planned(config(), Setup(launch="zero3", cards=2))
    with pytest.raises(ConfigError, match="launch: 'tpu': unknown launch"):
        Planned(config(), Setup(launch="tpu"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batch sizes instead of four, and at most four pairs."""
    monkeypatch.setattr("srpo.cli.plan.BATCHES", (1, 2))
    monkeypatch.setattr("srpo.cli.plan.MOST", 4)


@pytest.mark.usefixtures("few")
def test_the_command_plans_a_configuration_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(max_position_embeddings=256).save_pretrained(tmp_path)
    words = ["plan", "--model_name_or_path", str(tmp_path), "--prompt_tokens", "20", "--answer_tokens", "6"]
    assert run([*words, "--launch", "fsdp2", "--cards", "8", "--use_peft", "--load_in_4bit"]) == 0
    text = capsys.readouterr().out
    assert "longest pair: 88 packed tokens (" in text  # 20 + 2·6 + 2·16 + 4·6
    assert "FSDP 2 on 8 cards, in bfloat16" in text
    assert "largest batch in 90 % of a card" in text
    assert "80 GiB: 4 or more and 4 or more" in text


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
    assert found["largest_batch"]["80"] == [2, 2]  # no more pairs than the data has
    assert found["largest_batch_tried"] == 2
    assert found["longest_pair_tokens"] < found["longest_pair_flat_tokens"]


def test_lengths_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lengths of the pairs are not known"):
        run(["plan", "--model_name_or_path", str(tmp_path), "--prompt_tokens", "3"])


def test_lengths_are_given_once() -> None:
    with pytest.raises(ConfigError, match="lengths of the pairs are given twice; leave out"):
        run(["plan", "--model_name_or_path", "tiny", "--dataset_name", "pairs.jsonl", "--answer_tokens", "4"])


def test_the_precision_is_that_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model_name_or_path", "m"]
    half, full = torch.bfloat16, torch.float32
    ways = {"": half, "--bf16": half, "--no_bf16": full, "--use_cpu": full, "--use_cpu --bf16": half}
    for more, kind in ways.items():  # without a flag, as training does: off on a processor
        for fast in (False, True):
            monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: fast)  # noqa: B023
            made = _setup(parse("plan", DESCRIPTION, Arguments, [*words, *more.split()]))
            base, _ = precision.base_dtype("", adapter=True, device="cpu") if "cpu" in more else ("bfloat16", "")
            assert (made.bf16, made.base) == (kind == torch.bfloat16, getattr(torch, base))


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
