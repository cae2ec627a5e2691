"""A thinking model drafts and revises: trails keep the thinking, and drafts are shown without it."""

from __future__ import annotations

from typing import Any

from srpo import Reviser
from srpo.generate.engine import Completion, Decoding
from srpo.generate.plain import HFEngine
from srpo.revise.trail import Answer, Trail
from srpo.sequences.render import Renderer
from tests.conftest import PAD, make_tiny_llama
from tests.sequences.chats import bundled, chat_tokenizer

GENERATED = ("hm\n</think>\n\nFour.", "hm again\n</think>\n\nFour.", "never")


class Scripted(HFEngine):
    """Returns the ids of prepared texts, one per call, and keeps the contexts."""

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        self.contexts = [*getattr(self, "contexts", []), *map(list, contexts)]
        return [Completion(self.replies.pop(0), True, 0.0) for _ in contexts]

    replies: list[tuple[int, ...]]


def test_trails_keep_thinking_and_drafts_are_shown_without_it() -> None:
    model = make_tiny_llama(max_position_embeddings=1024, vocab_size=300)
    renderer = Renderer(chat_tokenizer(bundled("qwen3_5_think")))
    tokenizer = renderer.tokenizer
    subject = Reviser(model, renderer=renderer)
    engine = Scripted(model, pad_id=PAD, batch_size=1)
    encoded = tokenizer(list(GENERATED), add_special_tokens=False)["input_ids"]
    engine.replies = [(*ids, renderer.terminator) for ids in encoded]
    subject.engine = engine
    [trail] = subject.revise(["What is 2+2?"], revisions=3, temperature=0, max_new_tokens=64, policy="always")
    # The answers that judges read are the contents.
    assert [answer.text for answer in trail.answers] == ["Four.", "Four."]
    texts = [answer.whole for answer in trail.answers]
    assert texts == ["<think>\nhm\n</think>\n\nFour.", "<think>\nhm again\n</think>\n\nFour."]
    assert Trail.from_json(trail.to_json()) == trail
    # Without thinking the line is as it was.
    assert "thinking" not in Trail("p", (Answer("4", 2),)).to_json()
    assert engine.contexts == [renderer.draft("What is 2+2?"), renderer.revision("What is 2+2?", "Four.")]
    # The content did not change, so the next revision would see the same context: a fixed point.
    assert trail.stopped == "fixed point"
    # The ids that were generated are the ids that confidence scores.
    assert [tuple(renderer.answer(text)) for text in texts] == [(*ids, renderer.terminator) for ids in encoded[:2]]
