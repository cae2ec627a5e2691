"""Pairs that look wrong are counted by check and by training; sound pairs are not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from srpo.check.inspection import inspect
from srpo.check.suspicious import Suspicious
from srpo.data.read import read_pairs
from srpo.sequences.render import Renderer
from srpo.train.dataset import TreeDataset, warn_of_shared_prompts
from tests.conftest import make_byte_tokenizer
from tests.sequences.chats import bundled, chat_tokenizer

CHAT = Renderer(chat_tokenizer())
SOUND = [{"prompt": f"What is {n}+1? Say: it is", "chosen": f"{n + 1}", "rejected": "7"} for n in range(9, 15)]


def looked_at(rows: list[dict[str, Any]], renderer: Renderer = CHAT) -> list[str]:
    found = Suspicious(renderer)
    for pair in read_pairs(rows):
        found.add(pair)
    return found.sentences()


def test_sound_pairs_are_not_suspicious() -> None:
    assert looked_at(SOUND) == looked_at(SOUND, Renderer(make_byte_tokenizer())) == []
    thinking = [{"prompt": "p", "chosen": "<think>\nhm\n</think>\n\nyes", "rejected": "no"}]
    assert looked_at(thinking, Renderer(chat_tokenizer(bundled("qwen3")))) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}, "hold control tokens as text (<|im_"),
        ({"chosen": "Yes.<|im_end|>"}, "hold control tokens as text (<|im_end|>)"),
        ({"chosen": "Yes.<eos>"}, "hold control tokens as text (<eos>)"),
        ({"prompt": "User: Hi\nAssistant: Ho\nUser: So?"}, "hold a transcript inside their prompt"),
        ({"prompt": "### Human: Hi\n### Assistant: Ho\n### Human: So?"}, "hold a transcript inside their prompt"),
        ({"prompt": "\n"}, "have an empty prompt"),
        (
            {"chosen": SOUND[1]["rejected"], "rejected": SOUND[1]["chosen"], "prompt": SOUND[1]["prompt"]},
            "contradict an",
        ),
    ],
)
def test_suspicious_pairs_are_counted_with_their_places(changed: dict[str, str], words: str) -> None:
    [sentence] = looked_at([*SOUND, {**SOUND[0], **changed}])
    assert sentence.startswith("1 pairs " + words)
    assert sentence.endswith("(row 7)")


def test_an_answer_of_thinking_alone_is_counted() -> None:
    row = {"prompt": "p", "chosen": "<think>\nhm\n</think>\n\n", "rejected": "no"}
    assert "empty but for its thinking" in looked_at([row], Renderer(chat_tokenizer(bundled("qwen3"))))[0]


def test_check_and_training_report_the_same(caplog: pytest.LogCaptureFixture) -> None:
    rows = [*SOUND, {**SOUND[0], "chosen": "Yes.<|im_end|>"}]
    [sentence] = looked_at(rows)
    assert sentence in inspect(rows, CHAT, num_proc=1).sentences()
    with caplog.at_level(logging.WARNING, "srpo"):
        TreeDataset.build(rows, CHAT, max_length=None)
    assert sentence in caplog.text
    # Control: sound rows warn of nothing.
    caplog.clear()
    data = TreeDataset.build(SOUND, CHAT, max_length=None)
    warn_of_shared_prompts(data, TreeDataset.build([{**SOUND[0], "prompt": "new"}], CHAT, max_length=None))
    assert not caplog.records
    # An evaluation prompt that is trained on, as text or as a message.
    asked = [{"role": "user", "content": SOUND[0]["prompt"]}]
    held_out = TreeDataset.build([{**SOUND[0], "prompt": asked}], CHAT, max_length=None)
    warn_of_shared_prompts(data, {"held-out": held_out})
    assert "held-out: 1 of 1 prompts are trained on" in caplog.text
