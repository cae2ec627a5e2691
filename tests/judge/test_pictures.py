"""Judges that would not be shown a prompt's pictures refuse it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from srpo.errors import DataError
from srpo.judge.alpaca_arena import alpaca_outputs, arena_answers
from srpo.judge.prompt import load_prompt
from srpo.revise.trail import Answer, Trail

PICTURED = [{"role": "user", "content": "\ufffc?", "pictures": [{"sha256": "0" * 64, "path": "a.png"}]}]
TEXT = [{"role": "user", "content": "?"}]


def trail(prompt: Any) -> Trail:
    return Trail(prompt, (Answer("red", 1),), "revisions", {"uid": "1"})


READERS: dict[str, Callable[[Any], object]] = {
    "the judge": lambda prompt: load_prompt("general").messages(prompt, "red", "blue", "0f0f"),
    "AlpacaEval": lambda prompt: alpaca_outputs([trail(prompt)], generator="g", revisions=0),
    "Arena-Hard": lambda prompt: arena_answers([trail(prompt)], model="m", revisions=0),
}


@pytest.mark.parametrize("who", READERS)
def test_pictures_are_refused_by_name(who: str) -> None:
    assert READERS[who](TEXT)
    with pytest.raises(DataError, match=f"the prompt has pictures, and {who} is not shown pictures"):
        READERS[who](PICTURED)
