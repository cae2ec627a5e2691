"""System prompts, tools and template options of a row: contexts of revising equal those of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from srpo import Reviser
from srpo.data.read import read_prompts
from srpo.errors import DataError
from srpo.evaluate.controls import best_of
from srpo.generate.engine import Completion, Decoding
from srpo.generate.plain import HFEngine
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail_files import revise_file
from srpo.sequences.templates import REVISION_PRESETS
from srpo.train.dataset import TreeDataset
from tests.conftest import PAD, make_byte_tokenizer, make_tiny_llama

CHAT = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if loud is defined %}LOUD {{ loud }}{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": "2+3?", "chosen": "5", "rejected": "6", "system": "Add.", "tools": [{"name": "add"}]},
    {"prompt": "2+4?", "chosen": "6", "rejected": "7", "chat_template_kwargs": {"loud": "<eos>"}},
    {"prompt": "2+5?", "chosen": "7", "rejected": "8", "tools": '[{"name": "sub"}]', "chat_template_kwargs": "{}"},
]
TWO = RevisionSettings(revisions=1, temperature=0, max_new_tokens=2)


class Answering(HFEngine):
    """Answers each prompt with what its row has chosen, and keeps the contexts."""

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        self.contexts = [*getattr(self, "contexts", []), *map(list, contexts)]
        return [Completion((*self.answers[at % len(self.answers)],), True, 0.0) for at in range(len(contexts))]

    answers: list[list[int]]


def reviser(template: str = "quote", chat: str = CHAT, rows: Sequence[dict[str, Any]] = ROWS) -> Reviser:
    model = make_tiny_llama(max_position_embeddings=1024)
    made = Reviser(
        model, make_byte_tokenizer(chat_template=chat), REVISION_PRESETS[template], reference=model, beta=0.1
    )
    engine = Answering(model, pad_id=PAD, batch_size=32)
    engine.answers = [made.renderer.answer(row["chosen"]) for row in rows]
    made.engine = engine
    return made


@pytest.mark.parametrize("template", ["quote", "turn"])
def test_contexts_with_tools_equal_those_of_training(template: str) -> None:
    subject = reviser(template)
    trained = [tree.unpack() for tree in TreeDataset.build(ROWS, subject.renderer, max_length=None).trees]
    list(subject.trails(read_prompts(ROWS), TWO))
    drafted, revised = subject.engine.contexts[: len(ROWS)], subject.engine.contexts[len(ROWS) :]  # type: ignore[attr-defined]
    assert drafted == [six[0].context for six in trained]
    assert revised == [six[2].context for six in trained]
    # Control: without what stands beside the prompt they would be others.
    bare = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]
    list(subject.trails(read_prompts(bare), TWO))
    others = subject.engine.contexts[2 * len(ROWS) :][: len(ROWS)]  # type: ignore[attr-defined]
    assert [one == other for one, other in zip(drafted, others, strict=True)] == [True, False, False, False]


def test_best_of_drafts_sees_tools_too() -> None:
    subject = reviser()
    best_of(subject, ROWS, TWO)
    expected = [tree.unpack()[0].context for tree in TreeDataset.build(ROWS, subject.renderer, max_length=None).trees]
    assert subject.engine.contexts == expected * 2  # type: ignore[attr-defined]


def test_other_tools_count_as_other_prompts(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts.jsonl", str(tmp_path / "trails.jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    assert revise_file(reviser, str(source), out, TWO) == (len(ROWS), 0)
    assert revise_file(reviser, str(source), out, TWO) == (len(ROWS), len(ROWS))
    changed = [ROWS[0], {**ROWS[1], "tools": [{"name": "multiply"}]}, *ROWS[2:]]
    source.write_text("".join(json.dumps(row) + "\n" for row in changed), "utf-8")
    with pytest.raises(DataError, match=r"trails.jsonl:2: a trail of another prompt"):
        revise_file(reviser, str(source), out, TWO)


def test_hidden_tools_are_rejected_before_any_draw() -> None:
    deaf = reviser(chat=CHAT[CHAT.index("{% for") :])
    with pytest.raises(DataError, match="row 2: the chat template shows no tools"):
        deaf.revise(ROWS, revisions=1)
    assert not hasattr(deaf.engine, "contexts")
    plain = Reviser(make_tiny_llama(), make_byte_tokenizer(), REVISION_PRESETS["plain"])
    with pytest.raises(DataError, match=r"row 3: .*need a chat template"):
        plain.revise([ROWS[0], ROWS[0], ROWS[2]])
