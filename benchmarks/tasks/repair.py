"""The repair task: a sentence whose nouns and verb have lost their number; the answer is the sentence put right.

    these dog near a cats chases every bird =  →  these dogs near a cat chase every bird

A noun agrees with the determiner before it, the verb with the first determiner of the sentence. The prompt contains
everything that decides a word, so a draft can be right in one pass. A draft adds no information for a revision, which
may break right words.

    in distribution        up to two phrases after the subject or after the object
    out of distribution    one after each, and the noun before the verb of the other number than the subject

As in the carry task (carry.py) the base is trained from scratch, in both roles, on answers that get a number wrong with
probability 0.25, its revisions copy the draft or answer afresh, half of the time each, and preference pairs are two of
its own samples, ordered by the number of right words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from srpo.errors import ConfigError
from srpo.sequences.render import RevisionTemplate
from srpo.tasks.pretraining import Outcomes, fit, small_llama

TEMPLATE = RevisionTemplate("repair", "text", "{{ prompt }}", "{{ prompt }} {{ draft }} ?")
DETERMINERS = (("a", "this", "every"), ("two", "these", "many"))  # of one, of several
NOUNS = ["dog", "cat", "bird", "horse", "farmer", "girl", "boy", "king", "doctor", "driver", "teacher", "sailor"]
VERBS = ["chase", "see", "help", "hear", "follow", "know", "like", "need"]
PREPOSITIONS = ["near", "behind", "above", "with"]
LONGEST = 11  # words of a sentence

# Phrases after the subject, phrases after the object; a sentence has one of these shapes, as likely as any other.
SHAPES = {"in": ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2)), "out": ((1, 1),)}


@dataclass(frozen=True)
class RepairConfig:
    """Settings of the base model and of its training.

    Attributes:
        hidden, layers, heads: shape of the Llama.
        steps, batch, learning_rate: its training, in optimiser steps and sentences per step.
        mistakes: probability that a word of a training answer has the wrong number, where it has one.
        seed: seeds weights and data.
    """

    hidden: int = 96
    layers: int = 2
    heads: int = 3
    steps: int = 800
    batch: int = 64
    learning_rate: float = 2e-3
    mistakes: float = 0.25
    seed: int = 0


# ---------------------------------------------------------------------- sentences


class Word(NamedTuple):
    """A word of a sentence.

    Attributes:
        right: the word in the right number.
        wrong: the word in the other number; equal to `right` for a word without a number.
    """

    right: str
    wrong: str


def sentence(split: str, source: random.Random) -> list[Word]:
    """A sentence of the grammar.

    Raises:
        ConfigError: `split` is neither "in" nor "out".
    """
    if split not in SHAPES:
        raise ConfigError(f"no split {split!r}", expected="in or out")
    after_subject, after_object = source.choice(SHAPES[split])
    subject = source.randrange(2)
    words = _noun_phrase(subject, source)
    for _ in range(after_subject):
        number = source.randrange(2) if split == "in" else 1 - subject
        words += [_fixed(source.choice(PREPOSITIONS)), *_noun_phrase(number, source)]
    verb = source.choice(VERBS)
    words += [_of_number((f"{verb}s", verb), subject), *_noun_phrase(source.randrange(2), source)]
    for _ in range(after_object):
        words += [_fixed(source.choice(PREPOSITIONS)), *_noun_phrase(source.randrange(2), source)]
    return words


def _noun_phrase(number: int, source: random.Random) -> list[Word]:
    noun = source.choice(NOUNS)
    return [_fixed(source.choice(DETERMINERS[number])), _of_number((noun, f"{noun}s"), number)]


def _fixed(word: str) -> Word:
    return Word(word, word)


def _of_number(forms: tuple[str, str], number: int) -> Word:
    return Word(forms[number], forms[1 - number])


def with_mistakes(words: list[Word], rate: float, source: random.Random) -> list[str]:
    """Returns the words of a sentence, each in the wrong number with probability `rate`."""
    return [word.wrong if source.random() < rate else word.right for word in words]


def sentences(n: int, split: str, *, seed: int = 0) -> list[dict[str, str]]:
    """Draws `n` rows of `prompt` and `gold` (the right answer); equal seeds give equal rows.

    Words of a prompt that have a number have the wrong one as often as the right one.

    Example:
        >>> sentences(1, "in", seed=1)[0]["gold"]
        'a farmer with many kings likes this cat'
    """
    source = random.Random(seed)
    rows = []
    for _ in range(n):
        words = sentence(split, source)
        noisy, gold = with_mistakes(words, 0.5, source), [word.right for word in words]
        rows.append({"prompt": " ".join([*noisy, "="]), "gold": " ".join(gold)})
    return rows


def per_word(prompt: Any, answer: str, gold: str) -> float:
    """A judge of single answers (srpo/judge/single.py): the share of places with the right word.

    Missing and surplus words count as wrong.

    Example:
        >>> per_word("a dogs sees a cat =", "a dog see a cat", "a dog sees a cat")
        0.8
    """
    ours, wanted = answer.split(), gold.split()
    return sum(a == b for a, b in zip(ours, wanted, strict=False)) / max(len(ours), len(wanted), 1)


# ---------------------------------------------------------------------- the base model


def repair_tokenizer() -> Any:
    """A tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*DETERMINERS[0], *DETERMINERS[1], *PREPOSITIONS, "=", "?"]
    words += [form for word in (*NOUNS, *VERBS) for form in (word, f"{word}s")]
    vocab = {word: i for i, word in enumerate([*words, "<pad>", "<bos>", "<eos>", "<unk>"])}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def train_base(config: RepairConfig) -> Iterator[tuple[int, float, Any]]:
    """Trains the base from scratch; yields (step, loss, model) after each step, so that the caller can show it."""
    tokenizer, source = repair_tokenizer(), random.Random(config.seed)
    model = small_llama(
        tokenizer, hidden=config.hidden, layers=config.layers, heads=config.heads, window=64, seed=config.seed
    )
    batches = (_both_roles(config, tokenizer, source) for _ in range(config.steps))
    yield from fit(model, batches, steps=config.steps, learning_rate=config.learning_rate, mistakes=config.mistakes)


def _both_roles(config: RepairConfig, tokenizer: Any, source: random.Random) -> Outcomes:
    """Draws rows `<bos> sentence = draft ? revision` with the next token of each position, right and mistaken.

    One row teaches both roles: the token to predict after the draft's last word is the end token, although "?" follows
    in the row. Half of the revisions copy their draft and have one outcome.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    rows: list[list[Any]] = []
    right: list[list[Any]] = []
    mistaken: list[list[Any]] = []
    for _ in range(config.batch):
        words = sentence("in", source)
        noisy, draft, fresh = (with_mistakes(words, rate, source) for rate in (0.5, config.mistakes, config.mistakes))
        copies = source.random() < 0.5
        rows.append([bos, *noisy, "=", *draft, "?", *(draft if copies else fresh)])
        for labels, rate in ((right, 0.0), (mistaken, 1.0)):
            scored = with_mistakes(words, rate, source)
            labels.append([None] * (len(noisy) + 1) + [*scored, eos, *(draft if copies else scored), eos])
    ids_of = {**tokenizer.get_vocab(), None: -100}
    longest = max(map(len, rows))

    def tensor(table: list[list[Any]], padding: Any) -> torch.Tensor:
        return torch.tensor([[ids_of[word] for word in row + [padding] * (longest - len(row))] for row in table])

    return Outcomes(tensor(rows, tokenizer.pad_token), tensor(right, None), tensor(mistaken, None))
