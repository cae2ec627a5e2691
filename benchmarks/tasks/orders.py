"""The orders task: amounts to add up, in a fixed format that asks for the total before the lines that work it out.

    m31b44r42=  →  117:m31031b44075r42117

The prompt is items, each a letter with two digits. The answer is the total in three digits, then each item with the
running total behind it. One pass has to write the total before it has added anything; its lines then work the total
out. A revision that reads the last running total of its draft knows the total, and no number of drafts replaces that.

    in                     in distribution: 3 items
    out                    out of distribution: 3 items, each amount ends in 6 to 9, so that every addition carries
    longer                 4 items, which only the base has seen, as drafts

The base model is trained from scratch on orders of 3 and 4 items. Three of four totals of its training answers are
wrong, the lines are right, so its own drafts work out a total that their head lacks. Half of the rows ask for the lines
first, the format that needs no revision: the total is read from the last line. The base never sees a revision: that
role is trained on its own drafts of 3 items (benchmarks/orders.py). `WORDS` is the same task in words, for a pretrained
model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError
from srpo.model.packed.pictures import flat_inputs
from srpo.sequences.render import Renderer, RevisionTemplate
from srpo.tasks.pretraining import Outcomes, character_tokenizer, fit, small_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {"in": (3,), "out": (3,), "longer": (4,)}  # items of an order
SPLITS = tuple(SIZES)
CARRYING = range(6, 10)  # last digits of amounts out of distribution
BASE_SIZES = (3, 4)  # items of the orders that the base is trained on
SLIPS = (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)  # errors of a wrong total
WRONG = 0.75  # share of training answers with a wrong total
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz=>:?"
WINDOW = 128
Order = Sequence[tuple[str, int]]  # items: name and amount


class Wording(NamedTuple):
    """The text of orders and answers; `tokens` is the largest length of an answer, `head_tokens` that of its total.

    `item` and `line` make an item of a prompt and of an answer, `between` joins them. The first `prompt` and `answer`
    ask for the total first, the second ones for the lines first.
    """

    names: Sequence[str]
    item: str
    line: str
    between: str
    prompts: tuple[str, str]
    answers: tuple[str, str]
    template: RevisionTemplate
    tokens: int
    head_tokens: int


LETTERS = Wording(
    "abcdefghijklmnopqrstuvwxyz",
    "{name}{amount}",
    "{name}{amount}{total:03}",
    "",
    ("{items}=", "{items}>"),
    ("{total:03}:{lines}", "{lines}:{total:03}"),
    RevisionTemplate("orders", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}?"),
    30,
    4,
)
WORDS = Wording(
    [
        "map",
        "boots",
        "rice",
        "lamp",
        "paper",
        "chalk",
        "ladder",
        "paint",
        "nails",
        "soap",
        "towels",
        "coffee",
        "apples",
        "kettle",
        "rope",
        "glue",
        "tape",
        "sugar",
    ],
    "{name} for {amount} dollars",
    "{name} {amount} so {total:03}",
    ", ",
    ("Order: {items}.\nBooked:", "Order: {items}.\nLines:"),
    (" total {total:03}: {lines}", " {lines}: total {total:03}"),
    RevisionTemplate("orders-in-words", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}\nCorrected:"),
    80,
    8,
)


# ---------------------------------------------------------------------- orders


def order(
    size: int, source: random.Random, wording: Wording = LETTERS, last_digits: Sequence[int] = ()
) -> list[tuple[str, int]]:
    """Draws one order of `size` items, amounts from 10 to 99; if there are `last_digits`, each ends in one of them."""
    items = [(name, source.randrange(10, 100)) for name in source.sample(wording.names, size)]
    if last_digits:
        items = [(name, amount - amount % 10 + source.choice(last_digits)) for name, amount in items]
    return items


def prompt_of(items: Order, wording: Wording = LETTERS, *, lines_first: bool = False) -> str:
    """The prompt of an order."""
    listed = wording.between.join(wording.item.format(name=name, amount=amount) for name, amount in items)
    return wording.prompts[lines_first].format(items=listed)


def answer_of(items: Order, wording: Wording = LETTERS, *, slip: int = 0, lines_first: bool = False) -> str:
    """The answer to an order with a total that is wrong by `slip`; the lines are right.

    Example:
        >>> answer_of([("m", 31), ("b", 44)], slip=10)
        '085:m31031b44075'
    """
    total, lines = 0, []
    for name, amount in items:
        total += amount
        lines.append(wording.line.format(name=name, amount=amount, total=total))
    return wording.answers[lines_first].format(total=total + slip, lines=wording.between.join(lines))


def orders(
    n: int,
    split: str,
    *,
    seed: int = 0,
    wording: Wording = LETTERS,
    lines_first: bool = False,
    wrong: float = 0.0,
    sizes: Sequence[int] = (),
) -> list[dict[str, str]]:
    """Rows of `prompt` and `gold`, the same for the same seed; a share `wrong` of the golds has a wrong total.

    Args:
        sizes: numbers of items, instead of those of the split.

    Raises:
        ConfigError: `split` is not one of `SPLITS`.

    Example:
        >>> orders(1, "in", seed=2)
        [{'prompt': 'c95l49f42=', 'gold': '186:c95095l49144f42186'}]
    """
    if split not in SIZES:
        raise ConfigError(f"no split {split!r}", expected=" or ".join(SPLITS))
    source, rows = random.Random(seed), []
    for _ in range(n):
        items = order(source.choice(sizes or SIZES[split]), source, wording, CARRYING if split == "out" else ())
        slip = source.choice(SLIPS) * (
            source.random() < wrong
        )  # both drawn always: the orders are the same for any rate
        answer = answer_of(items, wording, slip=slip, lines_first=lines_first)
        rows.append({"prompt": prompt_of(items, wording, lines_first=lines_first), "gold": answer})
    return rows


# ---------------------------------------------------------------------- answers


def total(prompt: Any, answer: str, gold: object) -> float:
    """1 if the total that opens the answer is the gold answer's, else 0. A judge (srpo/judge/single.py).

    Raises:
        DataError: the gold answer does not begin with a total.

    Example:
        >>> total("m31b44=", "075:m31030b44074", "075:m31031b44075"), total("m31b44=", "m31031b44075:075", "075:")
        (1.0, 0.0)
    """
    wanted = first_total(str(gold))
    if wanted is None:
        raise DataError(f"no total in the gold answer {gold!r}", expected="three digits and a colon at its start")
    return float(first_total(answer) == wanted)


def first_total(answer: str) -> int | None:
    """The three digits that open an answer and end with a colon, as a number; None without."""
    found = re.match(r"\s*(?:total )?([0-9]{3}):", answer)
    return int(found[1]) if found else None


def last_total(answer: str) -> int | None:
    """The last running total of an answer that begins with its total, as a number; None without."""
    found = re.search(r":.*?([0-9]{3})\s*$", answer)
    return int(found[1]) if found and first_total(answer) is not None else None


def with_total(answer: str, value: int) -> str:
    """An answer that begins with a total, with another total in its place.

    Example:
        >>> with_total("085:m31031b44075", 75)
        '075:m31031b44075'
    """
    return re.sub("[0-9]{3}", f"{value:03}", answer, count=1)


def total_moved_first(answer: str) -> str:
    """An answer with its lines first, as one with the total first: its last running total is moved to the start.

    Example:
        >>> total_moved_first("m31031b44075:075")
        '075:m31031b44075'
    """
    lines = answer.partition(":")[0]
    found = re.search(r"[0-9]{3}\s*$", lines)
    if found is None:
        return answer
    return f" total {found[0]}:{lines}" if lines.startswith(" ") else f"{found[0]}:{lines}"


def right(answers: Sequence[str], rows: Sequence[Mapping[str, str]]) -> float:
    """Share of answers that open with the right total."""
    return sum(total("", each, row["gold"]) for each, row in zip(answers, rows, strict=True)) / len(rows)


def worked_out(answers: Sequence[str], rows: Sequence[Mapping[str, str]]) -> float:
    """Share of answers whose last running total is the right total."""
    golds = [first_total(row["gold"]) for row in rows]
    return sum(last_total(each) == gold for each, gold in zip(answers, golds, strict=True)) / len(rows)


# ---------------------------------------------------------------------- the base model


@dataclass(frozen=True)
class OrdersConfig:
    """Settings of the base model and of its training.

    Attributes:
        hidden, layers, heads: shape of the Llama.
        steps, batch, learning_rate: optimiser steps, orders per step and learning rate.
        seed: seed of weights and data.
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    steps: int = 2000
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


def orders_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character."""
    return character_tokenizer(ALPHABET)


def train_base(
    config: OrdersConfig, model: LlamaForCausalLM | None = None
) -> Iterator[tuple[int, float, LlamaForCausalLM]]:
    """Trains the base; yields (step, loss, model) after each step, so that the caller can show it.

    Args:
        model: the model to train on; None starts from random weights.
    """
    tokenizer, source = orders_tokenizer(), random.Random(config.seed)
    shape = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads}
    model = model or small_llama(tokenizer, window=WINDOW, seed=config.seed, **shape)
    batches = (base_batch(config, tokenizer, source) for _ in range(config.steps))
    yield from fit(model, batches, steps=config.steps, learning_rate=config.learning_rate, mistakes=0.0)


def base_row(size: int, source: random.Random, wording: Wording) -> tuple[str, str]:
    """Prompt and answer of one order of the base's training; three of four totals that come first are wrong."""
    items, lines_first = order(size, source, wording), source.random() < 0.5
    slip = source.choice(SLIPS) if not lines_first and source.random() < WRONG else 0
    return prompt_of(items, wording, lines_first=lines_first), answer_of(
        items, wording, slip=slip, lines_first=lines_first
    )


def pretrained_batches(config: OrdersConfig, renderer: Renderer, wording: Wording) -> Iterator[Outcomes]:
    """Endless batches of `base_row` in the tokens of a pretrained model, orders of 3 items alone."""
    source = random.Random(config.seed)
    while True:
        prompts, answers = zip(*(base_row(3, source, wording) for _ in range(config.batch)), strict=True)
        yield outcomes(renderer.drafts(prompts), renderer.answers(answers), renderer)


def base_batch(
    config: OrdersConfig, tokenizer: PreTrainedTokenizerFast, source: random.Random, wording: Wording = LETTERS
) -> Outcomes:
    """Rows `<bos> order answer <eos>` of one size: half total first, with wrong totals among them, half lines first."""
    ids_of = tokenizer.get_vocab()
    bos, eos = ids_of["<bos>"], ids_of["<eos>"]
    rows, labels = [], []
    size = source.choice(BASE_SIZES)  # of all rows, so that all are equally long
    for _ in range(config.batch):
        prompt, answer = base_row(size, source, wording)
        context, scored = [bos, *(ids_of[each] for each in prompt)], [*(ids_of[each] for each in answer), eos]
        rows.append([*context, *scored[:-1]])
        labels.append([*[-100] * (len(context) - 1), *scored])
    labels_NL = torch.tensor(labels)
    return Outcomes(torch.tensor(rows), labels_NL, labels_NL)


def roles_in_turn(
    rows: Sequence[Mapping[str, str]], renderer: Renderer, batch: int, seed: int, model: Any = None
) -> Iterator[Outcomes]:
    """Endless batches for `fit`: drafts, revisions of these drafts, drafts, …, drawn with replacement from `rows`.

    Args:
        rows: each with a `prompt`, a `draft` and its `revision`, and an `image` if its amounts are in a picture.
        model: the model that will be shown the pictures, if there are any.
    """
    source = random.Random(seed)
    while True:
        drawn = source.choices(rows, k=batch)
        prompts = [row.prompt for row in read_prompts(drawn)]
        drafts, revisions = ([row[key] for row in drawn] for key in ("draft", "revision"))
        for contexts, texts in ((renderer.drafts(prompts), drafts), (renderer.revisions(prompts, drafts), revisions)):
            yield outcomes(contexts, renderer.answers(texts), renderer, model)


def outcomes(
    contexts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], renderer: Renderer, model: Any = None
) -> Outcomes:
    """A batch for `fit` of answers to contexts, padded at the end; the model is needed for contexts with pictures."""
    pad = int(renderer.tokenizer.pad_token_id or 0)
    both = [[*context, *answer[:-1]] for context, answer in zip(contexts, answers, strict=True)]
    scored = [[*[-100] * (len(c) - 1), *answer] for c, answer in zip(contexts, answers, strict=True)]
    longest = max(map(len, both))
    labels_NL = torch.tensor([row + [-100] * (longest - len(row)) for row in scored])
    ids_NL = torch.tensor([row + [pad] * (longest - len(row)) for row in both])
    return Outcomes(ids_NL, labels_NL, labels_NL, flat_inputs(model, contexts, ids_NL))
