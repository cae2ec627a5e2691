"""Loading judges of two answers by name: shipped judges, reward models, user judges, errors."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from srpo.errors import ConfigError, DataError, InputError, LengthError
from srpo.generate.settings import EndpointSettings
from srpo.judge.load import ScoreJudge, load_pair_judge
from srpo.judge.reward_model import RewardModel
from srpo.judge.settings import LLMSettings
from srpo.judge.single import JUDGES, load_judge, score_answer
from srpo.judge.verdict import TIE, AnswerPair
from tests.conftest import EOS, PAD, VOCAB, make_byte_tokenizer, make_tiny_llama


def test_the_higher_score_is_better_and_equal_scores_tie() -> None:
    judge = load_pair_judge("per_character")
    verdicts = list(
        judge.compare(
            [
                AnswerPair("p", "12", "13", gold="12"),
                AnswerPair("p", "31", "21", gold="20"),
                AnswerPair("p", "9", "8", gold="7"),
                AnswerPair("p", "same", "same", gold=None),  # not even looked at
            ]
        )
    )
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.5, 0.5]
    assert verdicts[3] == TIE
    assert all(verdict.flipped is None for verdict in verdicts)


@pytest.mark.parametrize("name", JUDGES)
def test_every_shipped_judge_compares_two_answers(name: str) -> None:
    better, worse, gold = {
        "unit_tests": ("def f():\n    return 12", "def f():\n    return 34", ["assert f() == 12"]),
        "json_schema": ("12", "34", {"const": 12}),
    }.get(name, ("12", "34", "12"))
    (verdict,) = load_pair_judge(name).compare([AnswerPair("p", better, worse, gold=gold)])
    assert verdict.score == 1.0
    with pytest.raises(DataError, match=f"{name}, row 1: the gold answer is"):
        list(load_pair_judge(name).compare([AnswerPair("p", "12", "34")]))


def test_user_judges_score_or_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pair_judge.py").write_text(
        "from srpo.judge.verdict import OrderVerdict, combine\n"
        "def shorter(prompt, answer, gold):\n    return 1 / (1 + len(answer))\n"
        "class First:\n    identity = 'first'\n"
        "    def compare(self, comparisons):\n        return (combine([OrderVerdict(1.0)]) for _ in comparisons)\n"
        "first = First()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    item = AnswerPair("p", "aaa", "a")
    assert [v.score for v in load_pair_judge("my_pair_judge:shorter").compare([item])] == [0.0]
    assert [v.score for v in load_pair_judge("my_pair_judge:first").compare([item])] == [1.0]


def test_the_error_for_an_unknown_judge_lists_all_kinds() -> None:
    with pytest.raises(ConfigError, match="votes:FILE, llm or module:function; did you mean 'llm'"):
        load_pair_judge("lm")
    with pytest.raises(ConfigError, match="reward:PATH or module:function"):  # one of single answers can be neither
        load_judge("lm")


def test_an_llm_judge_needs_a_server_and_a_model() -> None:
    url = "http://localhost:1/v1"
    for endpoint in (EndpointSettings(), EndpointSettings(url), EndpointSettings(model="m")):
        with pytest.raises(ConfigError, match="name judge_model and judge_base_url"):
            load_pair_judge("llm", LLMSettings(endpoint))
    with pytest.raises(ConfigError, match="asks no server"):
        load_pair_judge("numeric", LLMSettings())
    with pytest.raises(ConfigError, match="did you mean 'general'"):
        load_pair_judge("llm", LLMSettings(EndpointSettings(url, "m"), "genral"))


# ---------------------------------------------------------------------- reward models

CHAT = "{% for message in messages %}{{ message['role'][0] }}{{ message['content'] }}{% endfor %}"


def save_reward(folder: Path, *, labels: int = 1, template: str | None = None, pad: bool = True) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        **settings, vocab_size=VOCAB, num_labels=labels, pad_token_id=PAD, eos_token_id=EOS, max_position_embeddings=64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = make_byte_tokenizer(chat_template=template)
    if not pad:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


def alone(folder: Path, text: str) -> float:
    """The reward of one text, by the library's own call and without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = make_byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, 0])


@pytest.mark.parametrize("pad", [True, False])
def test_rewards_do_not_depend_on_the_batch(tmp_path: Path, pad: bool) -> None:
    folder = save_reward(tmp_path, template=CHAT, pad=pad)
    rows: list[Any] = [("ask", "a"), ("ask", "a much longer answer"), ([{"role": "user", "content": "ask"}], "bb")]
    model = RewardModel(str(folder))
    assert model.rewards(rows) == pytest.approx(
        [alone(folder, text) for text in ("uaskaa", "uaskaa much longer answer", "uaskabb")], abs=1e-6
    )
    assert model("ask", "a", None) == pytest.approx(1 / (1 + math.exp(-model.rewards(rows[:1])[0])))


def test_a_reward_model_compares_by_its_rewards(tmp_path: Path) -> None:
    folder = save_reward(tmp_path)
    judge = load_pair_judge(f"reward:{folder}")
    assert isinstance(judge, RewardModel)
    items = [AnswerPair("p", a, b) for a, b in (("one", "two"), ("two", "one"), ("x", "x"), ("one", "three"))]
    verdicts = list(judge.compare(items))
    rewards = dict(
        zip(["one", "two", "three"], judge.rewards([("p", t) for t in ("one", "two", "three")]), strict=True)
    )
    assert verdicts[0].score == float(rewards["one"] > rewards["two"])
    assert verdicts[1].score == 1 - float(verdicts[0].score or 0)
    assert verdicts[2] == TIE
    assert verdicts[3].score == float(rewards["one"] > rewards["three"])
    # As a judge of single answers it says the same.
    scores = [score_answer(load_judge(f"reward:{folder}"), "p", text, None) for text in ("one", "two")]
    assert (scores[0] > scores[1]) == (rewards["one"] > rewards["two"])


def test_models_that_are_not_reward_models_are_refused(tmp_path: Path) -> None:
    make_tiny_llama().save_pretrained(tmp_path / "lm")
    make_byte_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(InputError, match=r"score\.weight"):  # transformers alone would draw such weights at random
        RewardModel(str(tmp_path / "lm"))
    with pytest.raises(ConfigError, match="3 outputs"):
        RewardModel(str(save_reward(tmp_path / "three", labels=3)))
    with pytest.raises(InputError, match="no such folder"):
        load_pair_judge(f"reward:{tmp_path}/none")
    with pytest.raises(LengthError, match="expected 64"):
        RewardModel(str(save_reward(tmp_path / "short"))).rewards([("p", "a" * 99)])


def test_a_broken_judge_raises_a_typed_error() -> None:
    with pytest.raises(ConfigError, match="expected a number between 0 and 1"):
        list(ScoreJudge("five", lambda prompt, answer, gold: 5.0).compare([AnswerPair("p", "a", "b")]))
