"""Speed of decoding a chain of revisions: transformers' `generate` for each, its prompt lookup, srpo and vLLM.

    python -m benchmarks.revision --case converging "steady 5%" "steady 30%" --seeds 7
    python -m benchmarks.revision --case mixed --batch 8 32
    python -m benchmarks.revision --subject carry text --batch 1 8 32 --temperature 0 1
    .venv-vllm/bin/python -m benchmarks.revision --subject carry text --ways generate live vllm "vllm, plain"

Subjects: a scripted model of 25.5M weights whose edits are chosen (chains.py), and two trained ones whose edits are
their own (trained.py). A chain is a draft and five revisions, and the revisions are timed. Each way decodes every
chain of a case, in an order that changes from chain to chain, within one process on one thread, so that noise affects
all alike; every chain has a seed of its own. The output is the median over chains and, in brackets, the smallest and
largest value; a gain is a ratio within one chain. The clock is processor time. It is wall time if vLLM is among the
ways, because it computes in another process, or if the model is on an accelerator.

Every way decodes each revision of plain decoding's chain. If its answer differs, the differing tokens are counted, and
the gap between the model's two likeliest tokens at the first difference is reported. A gap above 1e-3 nats under greedy
decoding is not rounding, and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as hf_logging

from benchmarks.chains import CASES, REVISIONS, Chain, Scripted, Subject
from benchmarks.parting import Count
from srpo.generate.engine import Completion, Decoding, Engine
from srpo.generate.plain import HFEngine
from srpo.generate.speculative import SpeculativeEngine
from srpo.statistics.edit_distance import edit_distance


class LookupEngine(HFEngine):
    """transformers' prompt lookup: the answer's last tokens are looked up in the context; one row at a time."""

    def complete(self, contexts: Any, keys: Any, decoding: Decoding, **more: Any) -> Any:
        ids = torch.tensor([list(contexts[0])], device=self.model.device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            prompt_lookup_num_tokens=10,
            eos_token_id=list(decoding.stop_ids),
            pad_token_id=0,
        )
        return [Completion(tuple(out[0, ids.shape[1] :].tolist()), True, 0.0)]


@dataclass(frozen=True)
class Way:
    """A way to decode a chain.

    Attributes:
        engine: function from a subject and a number of rows to the engine.
        stops: true if a row whose revision repeats its draft is revised no more, as `Reviser` does in greedy decoding.
        drafts: true if the engine writes the draft as well, as in use, so that the first revision finds the prompt in
            its cache; `generate` finds nothing there for any revision.
        rows: largest number of rows that the engine decodes together.
        samples: true if it draws the same tokens as plain decoding at a temperature above 0.
        served: true if it needs the model saved in a folder.
    """

    engine: Callable[[Subject, int], Engine]
    stops: bool = False
    drafts: bool = False
    rows: int = 10**6
    samples: bool = True
    served: bool = False


def _live(subject: Subject, rows: int) -> Engine:
    engine = SpeculativeEngine(subject.model, pad_id=subject.pad_id, batch_size=rows)
    engine._settle([1])  # the model is tried once a process, and not once a chain
    return engine


@cache
def _vllm(folder: str, speculation: str) -> Engine:
    from srpo.generate.vllm import VLLMEngine

    return VLLMEngine(folder, speculation=speculation, batch_size=32, enforce_eager=True)


WAYS = {
    "generate": Way(lambda subject, rows: HFEngine(subject.model, pad_id=subject.pad_id, batch_size=rows)),
    "lookup": Way(lambda subject, rows: LookupEngine(subject.model, pad_id=0), rows=1, samples=False),
    "generate, stopping": Way(
        lambda subject, rows: HFEngine(subject.model, pad_id=subject.pad_id, batch_size=rows), stops=True
    ),
    "live": Way(_live, stops=True),
    "live, drafted": Way(_live, stops=True, drafts=True),
    "vllm, plain": Way(lambda subject, rows: _vllm(subject.folder, "none"), stops=True, samples=False, served=True),
    "vllm": Way(lambda subject, rows: _vllm(subject.folder, "auto"), stops=True, samples=False, served=True),
}


@dataclass
class Run:
    """Measurements of one case: all its chains decoded by all ways.

    Attributes:
        seconds: way → seconds of each chain.
        counts: way → counts of tokens that differ from plain decoding.
        edits: for each row, the edit distance of each revision to its draft, as a share of the draft's tokens.
        temperature: sampling temperature; 0 decodes greedily.
    """

    seconds: dict[str, list[float]]
    counts: dict[str, Count]
    edits: list[list[float]]
    temperature: float


def decode(way: Way, subject: Subject, rows: list[Chain], temperature: float, seed: int, count: Count) -> Any:
    """Decodes all revisions of all rows by one way; returns their (processor, wall) seconds.

    Args:
        rows: chains as plain decoding writes them; each revision starts from the answer before it in its chain.
        count: counts tokens that differ from those chains.
    """
    subject.turn_to(rows, 0)
    engine, processor, wall = way.engine(subject, len(rows)), 0.0, 0.0
    under_way = list(enumerate(rows))
    for revision in range(0 if way.drafts else 1, REVISIONS + 1):
        some = [row for _, row in under_way]
        subject.turn_to(some, revision)
        contexts, answers = [row.contexts[revision] for row in some], [row.answers[revision] for row in some]
        before, clock = time.process_time(), time.perf_counter()
        done = engine.complete(
            contexts,
            [f"{place}/{revision}" for place, _ in under_way],
            Decoding(subject.max_new_tokens, subject.stop_ids, temperature, seed),
            guesses=[row.answers[revision - 1] for row in some] if revision else None,
        )
        if revision:
            processor, wall = processor + time.process_time() - before, wall + time.perf_counter() - clock
            count.see(subject.model, contexts, answers, [each.ids for each in done])
        if way.stops and revision and temperature == 0:
            under_way = [(n, row) for n, row in under_way if row.answers[revision] != row.answers[revision - 1]]
        if not under_way:
            break
    return processor, wall


def measure(subject: Subject, case: str, size: int, ways: Sequence[str], args: Any, temperature: float) -> Run:
    """Decodes every chain of a case by every way; for each chain the ways run in another random order."""
    run = Run({way: [] for way in ways}, {way: Count() for way in ways}, [], temperature)
    walled = any(WAYS[way].served for way in ways) or subject.model.device.type != "cpu"
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        rows = subject.chains(case, size, seed, temperature)
        for row in rows:
            pairs = zip(row.answers, row.answers[1:], strict=False)
            run.edits.append([edit_distance(old, new) / max(1, len(old) - 1) for old, new in pairs])
        for name in random.Random(seed).sample(list(ways), len(ways)):
            spent = decode(WAYS[name], subject, rows, temperature, seed, run.counts[name])
            run.seconds[name].append(spent[walled])
    return run


# ---------------------------------------------------------------------- the output


def in_words(run: Run) -> list[str]:
    """Returns a line of text on the edits and one for each way: times, ratios, differing tokens."""
    edits = ", ".join(f"{100 * statistics.mean(each):.1f}" for each in zip(*run.edits, strict=True))
    lines = [f"    edits per revision, mean, %: {edits}"]
    for way, seconds in run.seconds.items():
        line = f"    {way:<19}{spread(seconds, '.3f')} s"
        for other in ("generate", "lookup"):
            if other in run.seconds and other != way:
                line += f"; ×{spread(ratios(run.seconds[other], seconds), '.2f')} over {other}"
        if (count := run.counts[way]).gaps:
            drawn = f"{count.differing} of {count.tokens} tokens drawn differ"  # a draw has nothing to do with a gap
            line += f"; {count.sentence() if run.temperature == 0 else drawn}"
        lines.append(line)
    return lines


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Returns the ratio of two ways' times for each chain."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str) -> str:
    """Returns the median of values, with the smallest and largest in brackets, as text; `form` formats each number."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def subject_of(name: str, args: Any) -> Subject:
    """Returns the subject named scripted, carry or text; trains the model of the last two if no earlier run did."""
    if name == "scripted":
        return Scripted()
    from benchmarks import trained

    output_dir = Path(args.output_dir)
    return trained.carry(args.carry, output_dir) if name == "carry" else trained.text(output_dir)


def ways_of(name: str, size: int, temperature: float, wanted: Sequence[str]) -> list[str]:
    """Returns those of the ways `wanted` that can decode `size` rows of the subject `name` at this temperature."""
    can = {way for way in wanted if size <= WAYS[way].rows and (temperature == 0 or WAYS[way].samples)}
    if name == "scripted" or importlib.util.find_spec("vllm") is None:
        can -= {way for way in can if WAYS[way].served}
    return [way for way in wanted if way in can]


def asked(args: Any) -> Iterator[tuple[str, int, float, str]]:
    """Yields (subject, rows, temperature, case) of each measurement that the flags ask for."""
    for name in args.subject:
        heats, cases = (args.temperature, [""]) if name != "scripted" else ([0.0], args.case)
        yield from ((name, *rest) for rest in product(args.batch, heats, cases))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", nargs="+", default=["scripted"], choices=["scripted", "carry", "text"])
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES), help="of the scripted subject")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.0], help="of the trained subjects")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=5, help="chains per case")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--carry", default="", help="a seed's folder of `srpo demo`: runs/demo/seed0")
    parser.add_argument("--output_dir", default="runs/revision", help="where trained subjects are kept")
    parser.add_argument("--out", help="a file that a line of JSON per case is appended to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0")  # one thread for vLLM as well
    hf_logging.set_verbosity_error()
    if importlib.util.find_spec("vllm") is None and any(WAYS[way].served for way in args.ways):
        print("vLLM is not installed here and left out; `make vllm` makes an environment that has it")
    mistakes, subject = 0, cache(lambda name: subject_of(name, args))
    for name, size, temperature, case in asked(args):
        run = measure(subject(name), case, size, ways_of(name, size, temperature, args.ways), args, temperature)
        what = f"{name} {case}".strip()
        print(f"{what}, batch {size}, temperature {temperature:g}, {args.seeds} chains")
        print("\n".join(in_words(run)), flush=True)
        mistakes += sum(count.mistakes for count in run.counts.values()) if temperature == 0 else 0
        if args.out:
            row = {"subject": name, "case": case, "batch": size, "temperature": temperature}
            with Path(args.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "seconds": run.seconds, "edits": run.edits}) + "\n")
    if mistakes:
        print(f"{mistakes} answers differ from plain decoding where the model was not undecided")
    return int(mistakes > 0)


if __name__ == "__main__":
    raise SystemExit(main())
