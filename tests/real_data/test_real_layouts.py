"""Real pairs in every layout and kind of file: the pairs stay the same, and their file's name is all a run needs.

`SRPO_REAL_DATA` names a folder with pandalm_train.jsonl (strings, some with an empty answer) and oasst_en100.jsonl
(messages, up to several turns).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.data.formats import LAYOUTS
from srpo.data.read import Pair, Reading, Undecided, read
from srpo.data.rejected import REJECTED_FILE
from tests.conftest import make_tiny_llama
from tests.data.test_formats import FILES, says, user

SOURCE = os.environ.get("SRPO_REAL_DATA")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SOURCE, reason="SRPO_REAL_DATA names no folder"),
]
SETS = {"pandalm_train.jsonl": ("strings", 601, 52), "oasst_en100.jsonl": ("messages", 754, 0)}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def data(name: str) -> Path:
    return Path(str(SOURCE)) / name


@pytest.fixture(scope="module", params=SETS)
def real(request: pytest.FixtureRequest) -> tuple[str, Reading]:
    return request.param, read(data(request.param), rejects=[])


def test_the_layout_and_what_is_left_out(real: tuple[str, Reading]) -> None:
    name, found = real
    layout, pairs, undecided = SETS[name]
    assert found.layout is not None
    assert (found.layout.name, len(found.pairs), len(found.rejects)) == (layout, pairs, undecided)
    assert {type(each) for each in found.rejects} <= {Undecided}
    assert all("is empty" in reason for _, reason in found.rejects)


def messages(pair: Pair) -> list[dict[str, str]]:
    return [user(pair.prompt)] if isinstance(pair.prompt, str) else pair.prompt


def other_layouts(pair: Pair) -> dict[str, dict[str, Any] | None]:
    """Layout → the row that the pair is in it, or None where the layout cannot hold this pair."""
    listed, w, l = messages(pair), pair.chosen, pair.rejected
    single = listed[0]["content"] if len(listed) == 1 else None
    names = {"user": "human", "assistant": "gpt"}
    ranked = {"prompt": pair.prompt, "completions": [{"text": l, "score": 1}, {"text": w, "score": 2.5}]}
    annotated = {"instruction": single, "output_1": w, "output_2": l, "preference": 1}
    told = "".join(("\n\nHuman: " if m["role"] == "user" else "\n\nAssistant: ") + m["content"] for m in listed)
    plain = all(text == text.strip() and "\n\nHuman:" not in text for text in (w, l, *(m["content"] for m in listed)))
    answers = {side: f"{told}\n\nAssistant: {text}" for side, text in (("chosen", w), ("rejected", l))}
    return {
        "strings": {"prompt": single, "chosen": w, "rejected": l} if single else None,
        "transcripts": answers if plain else None,
        "messages": {"prompt": listed, "chosen": [says(w)], "rejected": [says(l)]},
        "implicit messages": {"chosen": [*listed, says(w)], "rejected": [*listed, says(l)]},
        "text to messages": {"prompt": single, "chosen": [*listed, says(w)], "rejected": [*listed, says(l)]}
        if single
        else None,
        "messages to text": {"prompt": listed, "chosen": w, "rejected": l},
        "sharegpt": {
            "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in listed],
            "chosen": {"from": "gpt", "value": w},
            "rejected": {"from": "gpt", "value": l},
        },
        "rankings": ranked,
        "alpaca_eval": annotated if single else None,
    }


@pytest.mark.parametrize("suffix", FILES)
def test_the_pairs_are_the_same_in_every_layout(real: tuple[str, Reading], suffix: str, tmp_path: Path) -> None:
    _, found = real
    every = [other_layouts(pair) for pair in found.pairs]
    assert {*every[0]} == {layout.name for layout in LAYOUTS} - {"implicit strings"}  # which is cut elsewhere
    for layout in every[0]:
        held = [(pair, each[layout]) for pair, each in zip(found.pairs, every, strict=True) if each[layout]]
        assert len(held) > 400
        file = tmp_path / f"{layout}{suffix}"
        FILES[suffix](file, [row for _, row in held if row])
        again = read(file)
        assert again.layout is not None
        assert again.layout.name == layout
        assert [(messages(pair), pair.chosen, pair.rejected) for pair in again.pairs] == [
            (messages(pair), pair.chosen, pair.rejected) for pair, _ in held
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model with room for every row."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    bpe = ByteLevelBPETokenizer()
    files = [str(data(name)) for name in SETS]
    bpe.train(files, vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    make_tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=32_768, bos_token_id=None).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("name", [*SETS, "pandalm_test.jsonl", "llmbar.jsonl"])
def test_check_train_and_revise_need_no_more_than_the_name(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not data(name).exists():
        pytest.skip(f"no {name}")
    given = ["--dataset_name", str(data(name)), "--model_name_or_path", str(model)]
    assert run(["check", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] + found["unusable"] == found["rows"] == len(data(name).read_bytes().splitlines())
    quick = "--max_steps 2 --per_device_train_batch_size 2 --report_to none --use_cpu true --save_strategy no"
    assert run(["train", *given, "--output_dir", str(tmp_path / "run"), *quick.split()]) == 0
    kept = tmp_path / "run" / REJECTED_FILE
    assert found["unusable"] == (len(kept.read_text("utf-8").splitlines()) if kept.exists() else 0)
    used = ["--model_name_or_path", str(tmp_path / "run"), "--input", str(data(name))]
    used += ["--output", str(tmp_path / "trails"), "--revisions", "1", "--max_new_tokens", "2"]
    assert run(["revise", *used]) == 0
    assert len((tmp_path / "trails").read_text("utf-8").splitlines()) == found["rows"]
