"""Chat tokenizers for tests, and a second renderer that puts ids together from bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.conftest import make_byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = bytes_to_unicode()
IDS = {letter: number for number, letter in enumerate(sorted(LETTERS.values()))}


def chat_tokenizer(template: str = CHATML, **settings: Any) -> Any:
    """The byte tokenizer with a chat template and with every control token the template writes."""
    tokenizer = make_byte_tokenizer(chat_template=template, **settings)
    written = set(re.findall(r"<\|?[a-z_]+\|?>", template)) - set(tokenizer.all_special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(written)})
    return tokenizer


def bundled(name: str) -> str:
    """A chat template as TRL ships it."""
    trl = pytest.importorskip("trl")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")


def ids_of(text: str) -> list[int]:
    """The second tokenizer: one id per byte, nothing special."""
    return [IDS[LETTERS[byte]] for byte in text.encode()]


def chatml_ids(tokenizer: Any, *turns: tuple[str, str]) -> list[int]:
    """The second renderer: `CHATML` put together from ids, so that content cannot be anything but bytes."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = []
    for role, content in turns:
        ids += [start, *ids_of(f"{role}\n{content}"), end, *ids_of("\n")]
    return [*ids, start, *ids_of("assistant\n")]


def special_in(tokenizer: Any, ids: list[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.all_special_ids]
