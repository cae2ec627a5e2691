"""How fast a chain of revisions is decoded: transformers' `generate` for each, its prompt lookup, and ours.

    python -m benchmarks.revision [--case converging ...] [--batch 1 8 32] [--seeds 3]

A model of 25.5M random weights (hidden 512, 6 layers, 8 heads, 4 key-value heads, vocabulary 8,192), prompts of 256
tokens, answers of 128, an instruction of 16. What it answers is scripted: at each position one token gets 10,000 nats
more, so that each revision differs from its draft by exactly the edits asked for, a third of them deletions,
replacements and insertions each, while every forward costs what it costs. Each answer is compared with the script.
Process time, one thread; the ways take turns within one process, so that noise falls on all alike.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as hf_logging

from srpo.generate.engine import Engine
from srpo.generate.hf import HFEngine
from srpo.generate.live import LiveEngine

PROMPT, ANSWER, INSTRUCTION, VOCABULARY, EOS = 256, 128, 16, 8192, 2
ROOM = PROMPT + 3 * ANSWER + INSTRUCTION

# Edit rates of the five revisions of a row; with several rows, row n takes schedule n, over and over.
CASES: dict[str, Sequence[Sequence[float]]] = {
    "converging": [(0.10, 0.05, 0.02, 0, 0)],
    "mixed": [
        (0.10, 0.05, 0.02, 0, 0),
        (0.05,) * 5,
        (0.20, 0.10, 0.05, 0.02, 0),
        (0.02, 0, 0, 0, 0),
        (0.30, 0.10, 0.05, 0.02, 0.02),
        (0.02,) * 5,
        (0.05, 0.02, 0, 0, 0),
        (0.10,) * 5,
    ],
    **{f"steady {rate:.0%}": [(rate,) * 5] for rate in (0.0, 0.02, 0.05, 0.10, 0.20, 0.30, 0.50)},
}


class ScriptedLlama(LlamaForCausalLM):
    """A Llama that is made to say what a script says: after token t at position p comes `script[p, t]`."""

    script: Tensor

    def forward(self, input_ids: Any = None, position_ids: Any = None, logits_to_keep: Any = 0, **rest: Any) -> Any:
        out = super().forward(input_ids, position_ids=position_ids, logits_to_keep=logits_to_keep, **rest)
        kept = out.logits.shape[1]
        if position_ids is None:
            past = rest["past_key_values"].get_seq_length() if rest.get("past_key_values") is not None else None
            start = 0 if past is None else past - input_ids.shape[1]
            position_ids = start + torch.arange(input_ids.shape[1])[None]
        said_NK1 = self.script[position_ids[:, -kept:], input_ids[:, -kept:]][..., None]
        out.logits.scatter_add_(-1, said_NK1, torch.full(said_NK1.shape, 1e4))
        return out


def model() -> ScriptedLlama:
    """Random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1344,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return ScriptedLlama(config).eval()


# ---------------------------------------------------------------------- chains


@dataclass
class Chain:
    """A row: what precedes its answers, the answers in turn, and what follows them in the context of a revision."""

    prompt: list[int]
    answers: list[list[int]]
    instruction: list[int]

    def context(self, revision: int) -> list[int]:
        return self.prompt + self.answers[revision - 1] + self.instruction


def chains(schedules: Sequence[Sequence[float]], rows: int, seed: int) -> list[Chain]:
    """Rows whose tokens come from vocabularies of their own, so that one script serves a whole batch."""
    rng, share = random.Random(seed), (VOCABULARY - 3) // rows
    made = []
    for row in range(rows):
        own = range(3 + row * share, 3 + (row + 1) * share)
        texts = [[rng.choice(own) for _ in range(n)] for n in (PROMPT, ANSWER, INSTRUCTION)]
        answers = [texts[1]]
        for rate in schedules[row % len(schedules)]:
            answers.append(edited(answers[-1], rate, own, rng))
        made.append(Chain(texts[0], answers, texts[2]))
    return made


def edited(draft: Sequence[int], rate: float, vocabulary: Sequence[int], rng: random.Random) -> list[int]:
    """Each token left out, replaced or preceded by another, with a third of the rate each."""
    out: list[int] = []
    for token in draft:
        kind = rng.random()
        if kind < rate / 3:
            continue
        if kind < rate:
            out.append(rng.choice(vocabulary))
        if kind >= 2 * rate / 3:
            out.append(token)
    return out


def script(rows: Sequence[Chain], revision: int) -> Tensor:
    """[positions, V] what each row says after each of its own tokens in that revision."""
    table = torch.full((ROOM, VOCABULARY), EOS)
    for row in rows:
        start, answer = row.context(revision), [*row.answers[revision], EOS]
        ids = [*start[-1:], *answer]
        for at, (token, following) in enumerate(pairwise(ids), len(start) - 1):
            table[at, token] = following
    return table


# ---------------------------------------------------------------------- ways


class LookupEngine(HFEngine):
    """transformers' prompt lookup: the answer's last tokens are looked up in the context; one row at a time."""

    def complete(self, contexts: Any, keys: Any, *, max_new_tokens: int, stop_ids: Any, **rest: Any) -> Any:
        ids = torch.tensor([list(contexts[0])])
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            prompt_lookup_num_tokens=10,
            eos_token_id=list(stop_ids),
            pad_token_id=0,
        )
        from srpo.generate.engine import Completion

        return [Completion(tuple(out[0, ids.shape[1] :].tolist()), True, 0.0)]


@dataclass(frozen=True)
class Way:
    """A way to decode a chain.

    Attributes:
        engine: made anew for each chain.
        stops: whether a row that repeats its draft is left alone from then on, as `Reviser` does.
        rows: rows at most.
    """

    engine: Callable[[Any, int], Engine]
    stops: bool = False
    rows: int = 10**6


WAYS = {
    "generate": Way(lambda model, rows: HFEngine(model, pad_id=0, batch_size=rows)),
    "lookup": Way(lambda model, rows: LookupEngine(model, pad_id=0, batch_size=rows), rows=1),
    "generate, stopping": Way(lambda model, rows: HFEngine(model, pad_id=0, batch_size=rows), stops=True),
    "live": Way(lambda model, rows: LiveEngine(model, pad_id=0, batch_size=rows), stops=True),
}


def decode(way: Way, model: Any, rows: list[Chain], scripts: Sequence[Tensor]) -> float:
    """Seconds of process time for all revisions of all rows."""
    engine, seconds, under_way = way.engine(model, len(rows)), 0.0, list(rows)
    for revision in range(1, len(rows[0].answers)):
        model.script = scripts[revision - 1]
        contexts = [row.context(revision) for row in under_way]
        began = time.process_time()
        done = engine.complete(
            contexts,
            ["" for _ in under_way],
            max_new_tokens=2 * ANSWER,
            stop_ids=[EOS],
            temperature=0,
            guesses=[[*row.answers[revision - 1], EOS] for row in under_way],
        )
        seconds += time.process_time() - began
        for row, answer in zip(under_way, done, strict=True):
            assert list(answer.ids) == [*row.answers[revision], EOS], "not what the script says"
        if way.stops:
            under_way = [row for row in under_way if row.answers[revision] != row.answers[revision - 1]]
        if not under_way:
            break
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3, help="chains per case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    subject = model()
    for size in args.batch:
        for name in args.case:
            seconds: dict[str, list[float]] = {}
            for seed in range(args.seeds):
                rows = chains(CASES[name], size, seed)
                scripts = [script(rows, revision) for revision in range(1, 6)]
                for way in args.ways:
                    if size <= WAYS[way].rows:
                        seconds.setdefault(way, []).append(decode(WAYS[way], subject, rows, scripts))
            print(f"batch {size}, {name}: " + ", ".join(_against(seconds, way) for way in seconds), flush=True)


def _against(seconds: dict[str, list[float]], way: str) -> str:
    mean = statistics.mean(seconds[way])
    if "generate" not in seconds or way == "generate":
        return f"{way} {mean:.2f} s"
    gains = [plain / mine for plain, mine in zip(seconds["generate"], seconds[way], strict=True)]
    return f"{way} {mean:.2f} s ×{statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})"


if __name__ == "__main__":
    main()
