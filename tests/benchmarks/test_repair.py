"""The repair task: sentences that agree, mistakes as they are meant, shifts that are shifts, a base that learns."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from benchmarks.tasks.repair import (
    DETERMINERS,
    LONGEST,
    NOUNS,
    PREPOSITIONS,
    SHAPES,
    TEMPLATE,
    VERBS,
    RepairConfig,
    _both_roles,
    per_word,
    repair_tokenizer,
    sentence,
    sentences,
    train_base,
    with_mistakes,
)
from srpo import Pair, Renderer
from srpo.errors import ConfigError
from srpo.tasks.carry import label

TINY = RepairConfig(hidden=24, layers=1, heads=2, steps=30, batch=16, seed=3)
NUMBER = {word: number for number, words in enumerate(DETERMINERS) for word in words}


def put_right(prompt: str) -> str:
    """The answer, worked out from the prompt from left to right as a reader would, without the generator's help."""
    words = prompt.removesuffix(" =").split()
    subject, last, said = NUMBER[words[0]], 0, []
    for word in words:
        last = NUMBER.get(word, last)
        stem = word if word in (*NUMBER, *NOUNS, *VERBS, *PREPOSITIONS) else word.removesuffix("s")
        if stem in NOUNS:
            said.append(stem + "s" * last)
        elif stem in VERBS:
            said.append(stem + "s" * (1 - subject))
        else:
            said.append(stem)
    return " ".join(said)


def shape(gold: str) -> tuple[int, int]:
    """Phrases before and after the verb."""
    words = gold.split()
    verb = next(at for at, word in enumerate(words) if word.removesuffix("s") in VERBS)
    return (verb - 2) // 3, (len(words) - verb - 3) // 3


# ---------------------------------------------------------------------- sentences


@pytest.mark.parametrize("split", ["in", "out"])
def test_the_prompt_alone_decides_the_answer(split: str) -> None:
    for row in sentences(500, split, seed=1):
        assert put_right(row["prompt"]) == row["gold"]
        assert len(row["gold"].split()) <= LONGEST
    assert put_right("these dog near a cats chases every bird =") == "these dogs near a cat chase every bird"


@pytest.mark.parametrize("split", ["in", "out"])
def test_shapes_are_equally_likely_and_of_their_split_alone(split: str) -> None:
    found = Counter(shape(row["gold"]) for row in sentences(3000, split, seed=2))
    assert set(found) == set(SHAPES[split])
    assert all(abs(n / 3000 - 1 / len(SHAPES[split])) < 0.03 for n in found.values())
    assert not set(SHAPES["in"]) & set(SHAPES["out"])


def test_out_of_distribution_the_noun_before_the_verb_misleads() -> None:
    for split, expected in (("out", 1.0), ("in", 0.5)):
        misleads = [
            NUMBER[words[3]] != NUMBER[words[0]]
            for row in sentences(3000, split, seed=3)
            if shape(row["gold"])[0] and (words := row["gold"].split())
        ]
        assert sum(misleads) / len(misleads) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_mistakes_change_a_number_and_nothing_else(rate: float) -> None:
    source = random.Random(4)
    wrong, numbered = 0, 0
    for _ in range(500):
        words = sentence("in", source)
        for word, drawn in zip(words, with_mistakes(words, rate, source), strict=True):
            assert drawn in word
            assert word.right.removesuffix("s") == word.wrong.removesuffix("s") or word.right == word.wrong
            numbered += word.right != word.wrong
            wrong += drawn != word.right
    assert wrong / numbered == pytest.approx(rate, abs=0.03)


def test_a_prompt_does_not_reveal_the_numbers() -> None:
    kept = [
        ours == gold
        for row in sentences(1000, "in", seed=5)
        for ours, gold in zip(row["prompt"].split(), row["gold"].split(), strict=False)
        if gold.removesuffix("s") in (*NOUNS, *VERBS)
    ]
    assert sum(kept) / len(kept) == pytest.approx(0.5, abs=0.03)


def test_rows_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert sentences(50, "out", seed=4) == sentences(50, "out", seed=4)
    assert sentences(50, "out", seed=4) != sentences(50, "out", seed=5)
    with pytest.raises(ConfigError, match="no split 'inn'; expected in or out"):
        sentences(1, "inn")


@pytest.mark.parametrize(
    ("answer", "score"),
    [("a dog sees a cat", 1), ("a dogs see a cat", 0.6), ("a dog", 0.4), ("a dog sees a cat a", 5 / 6), ("", 0)],
)
def test_the_judge_counts_right_words(answer: str, score: float) -> None:
    assert per_word("…", answer, "a dog sees a cat") == pytest.approx(score)


def test_pairs_are_ordered_by_right_words() -> None:
    row = {"prompt": "a dogs sees a cat =", "gold": "a dog sees a cat"}
    # The second has one word wrong; character by character nothing after it would be right.
    pairs = label([row, row], ["a dogs see a cat", "a dog"], ["a dogs sees a cat", "a dog"], per_word)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("a dogs sees a cat", "a dogs see a cat")]


# ---------------------------------------------------------------------- tokenizer, template, base


def test_a_token_per_word_and_back() -> None:
    tokenizer = repair_tokenizer()
    for row in sentences(100, "out", seed=6):
        for text in row.values():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
            assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]


def test_the_base_is_trained_on_what_it_is_asked_for_later() -> None:
    tokenizer = repair_tokenizer()
    renderer = Renderer(tokenizer, TEMPLATE)
    batch = _both_roles(TINY, tokenizer, random.Random(0))
    for ids, right, mistaken in zip(*batch[:3], strict=True):
        row = ids[ids != tokenizer.pad_token_id].tolist()
        text = tokenizer.decode(row[1:])
        prompt, draft = text[: text.index("=") + 1], text[text.index("=") + 2 : text.index(" ?")]
        answer = put_right(prompt)
        pair = Pair(prompt, chosen=answer, rejected=draft)
        first, second = renderer.draft(pair.prompt), renderer.revision(pair.prompt, draft)
        assert row[: len(second)] == second
        scored = right[len(first) - 1 :].tolist()
        length = len(answer.split())
        assert [*scored[:length], scored[length]] == renderer.answers([answer])[0]  # ends where the draft does
        last = right[right != -100][length + 1 :].tolist()
        assert last in renderer.answers([answer, draft])  # afresh, or a copy
        differ = (right != mistaken)[: len(second) - 1]
        numbered = sum(word.removesuffix("s") in (*NOUNS, *VERBS) for word in answer.split())
        assert int(differ.sum()) == numbered


def test_training_lowers_the_loss_and_depends_on_its_seed_alone() -> None:
    losses = [loss for _, loss, _ in train_base(TINY)]
    torch.manual_seed(12345)  # whatever was drawn before
    assert [loss for _, loss, _ in train_base(TINY)] == losses
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    other = RepairConfig(**{**vars(TINY), "seed": 4, "steps": 2})
    assert [loss for _, loss, _ in train_base(other)] != losses[:2]
