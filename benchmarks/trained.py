"""Chains of revisions by trained models: answers and edits are the models' own.

    carry   the carry task's SRPO model (0.4M weights, a token per digit), asked for sums with long carry chains; a run
            folder of `srpo demo`, or else a smaller run of its own: base 800 steps, SRPO 100, under two minutes
    text    a character-level model of sentences (0.6M weights), trained by this file in some minutes: a sentence whose
            nouns and verb lost their number is to be corrected (benchmarks/tasks/repair.py), about 45 characters; a
            revision corrects every other mistake of its draft

Both stay in `--output_dir` and are used again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.chains import REVISIONS, Chain
from benchmarks.tasks import repair
from srpo.generate.engine import Decoding
from srpo.generate.plain import HFEngine
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.sequences.render import Renderer, RevisionTemplate
from srpo.tasks.carry import BaseConfig, sums
from srpo.tasks.carry_run import CarryConfig, Job, StageLog, start_run, work
from srpo.tasks.pretraining import Outcomes, character_tokenizer, fit, small_llama
from srpo.tasks.stages import run_stage

PROMPT_SEED = 7_000_000  # apart from the sums of training and of every evaluation


class Trained:
    """The subject with a trained model, loaded from a folder, and prompts for it.

    Args:
        folder: folder of model, tokenizer and template.
        prompts: function from a number of prompts and a seed to the prompts.
        max_new_tokens: largest number of tokens of an answer.
    """

    def __init__(self, folder: Path, prompts: Callable[[int, int], list[str]], max_new_tokens: int) -> None:
        self.folder, self.prompts, self.max_new_tokens = str(folder), prompts, max_new_tokens
        self.model = load_model(self.folder).eval()
        self.renderer = Renderer(load_tokenizer(self.folder), RevisionTemplate.load(self.folder))
        self.pad_id = int(self.renderer.tokenizer.pad_token_id)
        self.stop_ids = self.renderer.stop_ids

    def chains(self, case: str, rows: int, seed: int, temperature: float) -> list[Chain]:
        """Returns the chains of `rows` prompts as plain decoding writes them; `case` has no effect."""
        engine, prompts = HFEngine(self.model, pad_id=self.pad_id, batch_size=rows), self.prompts(rows, seed)
        contexts = self.renderer.drafts(prompts)
        asked: list[list[list[int]]] = []
        answers: list[list[Sequence[int]]] = []
        for revision in range(REVISIONS + 1):
            keys = [f"{row}/{revision}" for row in range(rows)]
            done = engine.complete(contexts, keys, Decoding(self.max_new_tokens, self.stop_ids, temperature, seed))
            asked.append(contexts)
            answers.append([each.ids for each in done])
            contexts = self.renderer.revisions(prompts, [self.renderer.decode(each.ids) for each in done])
        return [Chain(*row) for row in zip(zip(*asked, strict=True), zip(*answers, strict=True), strict=True)]

    def turn_to(self, rows: Sequence[Chain], revision: int) -> None:
        """Does nothing: a trained model needs no preparation for a revision."""


# ---------------------------------------------------------------------- the carry task


def carry(folder: str, output_dir: Path) -> Trained:
    """Returns the subject with the SRPO model of `srpo demo` in `folder`; for "" trains a smaller one first."""
    run = Path(folder) if folder else output_dir / "carry"
    if not folder:
        config = CarryConfig(base=BaseConfig(steps=800, threads=1), sampled=4000, steps=100, prompts=8)
        config = start_run(run, config, 0, StageLog())
        work(Job(str(run), "srpo", (), config, 0))
    asked = lambda rows, seed: [row["prompt"] for row in sums(rows, "out", seed=PROMPT_SEED + seed)]  # noqa: E731
    return Trained(run / "srpo", asked, 7)


# ---------------------------------------------------------------------- characters


ALPHABET = "abcdefghijklmnopqrstuvwxyz =?"
TEMPLATE = RevisionTemplate("text", "text", "{{ prompt }}", "{{ prompt }}{{ draft }}?")


@dataclass(frozen=True)
class TextConfig:
    """Settings of the character-level model and of its training.

    Attributes:
        hidden, layers, heads: shape of the Llama.
        steps, batch, learning_rate: its training, in optimiser steps and rows per step.
        mistakes: share of words in a draft with the wrong number, among words that have a number.
    """

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    steps: int = 900
    batch: int = 16
    learning_rate: float = 3e-3
    mistakes: float = 0.25


def text(output_dir: Path) -> Trained:
    """Returns the subject with the character-level model; trains it unless an earlier run did."""
    config = TextConfig()
    run_stage(output_dir / "text", asdict(config), lambda into: train_text(into, config))
    return Trained(output_dir / "text", lambda rows, seed: asked(rows, PROMPT_SEED + seed), 100)


def train_text(folder: Path, config: TextConfig) -> None:
    """Trains the character-level model, and saves it with tokenizer and template in `folder`."""
    tokenizer = character_tokenizer(ALPHABET)
    shape = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads}
    model = small_llama(tokenizer, window=512, seed=0, **shape)
    batches, said = _rows(config, tokenizer), 0.0
    settings = {"steps": config.steps, "learning_rate": config.learning_rate, "mistakes": 0.0}
    for step, said, _ in fit(model, batches, **settings):
        if step % 100 == 0:
            print(f"character-level model: step {step} of {config.steps}, loss {said:.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TEMPLATE.save(folder)


def asked(rows: int, seed: int) -> list[str]:
    """Draws prompts, each a sentence whose words have the wrong number as often as the right one."""
    source = random.Random(seed)
    return [_text(repair.with_mistakes(repair.sentence("in", source), 0.5, source)) + "=" for _ in range(rows)]


def _rows(config: TextConfig, tokenizer: Any) -> Iterator[Outcomes]:
    """Batches of `<bos> noisy = draft ? revision`; every character is predicted, the end of a draft as such."""
    source = random.Random(0)
    vocabulary, bos, eos = tokenizer.get_vocab(), tokenizer.bos_token_id, tokenizer.eos_token_id
    while True:
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        for _ in range(config.batch):
            words = repair.sentence("in", source)
            draft = repair.with_mistakes(words, config.mistakes, source)
            revision = [
                word.right if source.random() < (0.5 if said != word.right else 0.97) else said
                for word, said in zip(words, draft, strict=True)
            ]
            before = _text(repair.with_mistakes(words, 0.5, source)) + "=" + _text(draft)
            row = [bos, *(vocabulary[letter] for letter in f"{before}?{_text(revision)}")]
            following = [*row[1:], eos]
            following[len(before)] = eos  # a draft ends there, although a revision's mark follows it in this row
            ids.append(row)
            labels.append(following)
        longest = max(map(len, ids))
        ids_NL = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        labels_NL = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
        yield Outcomes(ids_NL, labels_NL, labels_NL)


def _text(words: Sequence[str]) -> str:
    return " ".join(words)
