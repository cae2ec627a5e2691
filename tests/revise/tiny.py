"""A tiny model over sums with preferences of its own, and engines with known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from srpo import Reviser
from srpo.generate.engine import Completion, Decoding
from srpo.generate.speculative import SpeculativeEngine
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.conftest import make_tiny_llama

PROMPTS = ["12+34=", "5+5=", "99+1=", "7+8=", "123+456=", "0+0=", "31+13=", "12+34=", "4+44="]


def carry_llama(seed: int = 0, **changes: Any) -> Any:
    """A model over the characters of sums; random weights large enough that it prefers some answers by nats."""
    tokenizer = carry_tokenizer()
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return make_tiny_llama(seed=seed, initializer_range=0.2, **{**ids, "max_position_embeddings": 64, **changes})


def reviser(model: Any = None, **keywords: Any) -> Reviser:
    """A Reviser of the carry model with the carry task's template."""
    return Reviser(carry_llama() if model is None else model, carry_tokenizer(), TEMPLATE, **keywords)


def saved(folder: Path, model: Any = None) -> Path:
    """A folder with a model, its tokenizer and its template; without one, what a server's client needs of it."""
    if model is not None:
        model.save_pretrained(folder)
    carry_tokenizer().save_pretrained(folder)
    TEMPLATE.save(folder)
    return folder


VOCABULARY = carry_tokenizer().get_vocab()


def ids_of(text: str) -> list[int]:
    """Ids of characters, spelled out: the tokenizer's vocabulary, one lookup each."""
    return [VOCABULARY[character] for character in text]


class Recording(SpeculativeEngine):
    """The real engine, keeping the contexts it was given."""

    contexts: list[list[int]]

    @classmethod
    def put_into(cls, subject: Reviser) -> Recording:
        """Takes the place of a reviser's engine."""
        assert isinstance(subject.engine, SpeculativeEngine)
        engine = cls(subject.model, pad_id=subject.engine.pad_id, batch_size=subject.engine.batch_size)
        engine.contexts = []
        subject.engine = engine
        return engine

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        self.contexts += [list(context) for context in contexts]
        return super().complete(contexts, keys, decoding, **more)


class Scripted:
    """An engine that answers each context as a function of its text says; counts the contexts it was given."""

    same_batch_same_bits = True

    max_length = 64

    def __init__(self, subject: Reviser, answer: Callable[[str], str], *, batch_size: int = 32) -> None:
        self.tokenizer, self.answer, self.batch_size, self.asked = subject.renderer.tokenizer, answer, batch_size, 0
        subject.engine = self

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> list[Completion]:
        done = []
        for context in contexts:
            self.asked += 1
            text = self.answer(self.tokenizer.decode(context, skip_special_tokens=True))
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            done.append(Completion((*ids, self.tokenizer.eos_token_id), True, 0.001))
        return done
