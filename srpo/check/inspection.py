"""Findings on preference data before training: counts, lengths in tokens, shared prefixes, rendered examples.

Rows stream through; only a few numbers and a hash of each stay in memory.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2

from srpo.check.suspicious import Suspicious
from srpo.data.picture import Picture
from srpo.data.pictures import pictures_of
from srpo.data.read import Pair, Reject, Stream
from srpo.data.reasons import Reason, Reasons
from srpo.data.source import AnySource
from srpo.errors import DataError
from srpo.progress import counted
from srpo.sequences.fit import StoredPairs
from srpo.sequences.render import Renderer

MEASURES = ("prompt", "chosen", "rejected", "w", "l", "w_given_w", "l_given_w", "w_given_l", "l_given_l", "longest")
NAMES = {
    "w": "draft: chosen",
    "l": "draft: rejected",
    "w_given_w": "chosen after chosen",
    "l_given_w": "rejected after chosen",
    "w_given_l": "chosen after rejected",
    "l_given_l": "rejected after rejected",
    "longest": "longest of the six",
}  # measure → its name in tables; other measures keep their names
PLACES = 5  # number of evaluation rows named
BATCH = 8  # default of per_device_train_batch_size


class Lengths(NamedTuple):
    """Lengths in tokens over all pairs (median, 95th percentile, longest), and the number of pairs over the limit."""

    median: int
    p95: int
    longest: int
    over: int


class Example(NamedTuple):
    """One pair as the model sees it: `context` is given, `answer` is scored, both as text.

    `where` is the pair's place in the data, `role` is "draft" or "revision of the rejected answer". A draft has the
    pictures of its prompt in `pictures`; they are not in `to_json` and `to_html`.
    """

    where: str
    role: str
    context: str
    answer: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Findings on one source of preference pairs.

    Attributes:
        source: name of the data.
        layout: layout of its rows, such as columns prompt, chosen and rejected.
        rows: number of rows read. A row of rankings makes several pairs, and the numbers below count pairs.
        usable: pairs that training would use.
        reasons: reasons for all other rows and pairs, most frequent first.
        suspicious: findings on usable pairs that look wrong, a sentence each.
        duplicates: pairs equal to an earlier one, word for word.
        evaluation_rows: pairs of the evaluation set; None without one.
        leaked_prompts: evaluation pairs whose prompt is in the data.
        leaked_pairs: evaluation pairs that are in the data with both answers.
        leaks: places of the first few leaked evaluation pairs.
        max_length: the length limit in tokens; None without one.
        truncate: "prompt" if the prompts of longer pairs are cut.
        over: pairs longer than the limit.
        cut: pairs whose prompts were cut.
        lengths: tokens by measure: prompt, chosen, rejected, the six sequences, the longest of the six.
        flat_tokens: tokens of all six sequences of usable pairs, unshared.
        packed_tokens: tokens of the same sequences, equal prefixes merged.
        tokenised: pairs rendered now; all others were read from the cache.
        template: name of the revision template.
        assumes: a sentence of the revision template on the prompts and models that it is meant for.
        notes: sentences on unusual behaviour of the chat template.
        examples: a few pairs spread over the data, each as a draft and as a revision.
    """

    source: str
    layout: str
    rows: int
    usable: int
    reasons: list[Reason]
    suspicious: list[str]
    duplicates: int
    evaluation_rows: int | None
    leaked_prompts: int
    leaked_pairs: int
    leaks: list[str]
    max_length: int | None
    truncate: str
    over: int
    cut: int
    lengths: dict[str, Lengths]
    flat_tokens: int
    packed_tokens: int
    tokenised: int
    template: str
    assumes: str
    notes: list[str]
    examples: list[Example]

    @property
    def sharing(self) -> float:
        """Ratio, 1 or more, of the tokens of the six sequences to the tokens left when equal prefixes are merged."""
        return self.flat_tokens / self.packed_tokens

    @property
    def unusable(self) -> int:
        """Number of rows and pairs that training would leave out."""
        return sum(each.count for each in self.reasons)

    def sentences(self) -> list[str]:
        """Returns the findings that are not in tables as lines of text."""
        limit = self.max_length
        found = [
            f"{self.source}: {self.layout}",
            f"{self.usable} pairs usable of {self.rows} rows; {self.unusable} unusable",
        ]
        if self.duplicates:
            found.append(f"{self.duplicates} duplicates: pairs equal to an earlier one, all of which are trained on")
        if self.evaluation_rows is not None and not self.leaked_prompts:
            found.append(f"none of {self.evaluation_rows} evaluation pairs has a prompt that is trained on")
        found += self.suspicious
        if limit is None:
            found.append("no limit on length is known; --max_length sets one")
        elif self.truncate == "prompt":
            found.append(f"{self.over} pairs are over {limit} tokens; {self.cut} prompts are cut to fit")
        else:
            found.append(f"{self.over} pairs are over {limit} tokens, and would be left out")
        found += [
            f"revision template {self.template}: {self.packed_tokens / self.usable:.0f} tokens per pair on average, "
            f"{self.flat_tokens / self.usable:.0f} without sharing equal beginnings ({self.sharing:.2f} to 1)",
            f"{(steps := math.ceil(self.usable / BATCH))} step{'s' * (steps > 1)} per epoch at a batch size of {BATCH}",
        ]
        found += [] if self.tokenised else ["nothing was tokenised: all pairs were stored by an earlier command"]
        found += [f"it assumes {self.assumes}"] if self.assumes else []
        return found + [f"the chat template {note}" for note in self.notes]

    def to_html(self) -> str:
        """Returns all findings as one HTML page that loads no other file."""
        page = Path(__file__).with_name("inspection.html.jinja").read_text("utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        return environment.from_string(page).render(found=self, names=NAMES)

    def to_json(self) -> str:
        """Returns all findings as the text of one JSON object."""
        lengths = {name: each._asdict() for name, each in self.lengths.items()}
        examples = [each._asdict() for each in self.examples]
        for example in examples:
            del example["pictures"]
        row = {"format": 1, **asdict(self), "unusable": self.unusable, "lengths": lengths, "examples": examples}
        return json.dumps(row, ensure_ascii=False, indent=2)


def inspect(
    source: AnySource,
    renderer: Renderer,
    *,
    max_length: int | None = None,
    truncate: str = "none",
    evaluation: AnySource | None = None,
    examples: int = 3,
    num_proc: int | None = None,
    cache: str | Path | None = None,
) -> Inspection:
    """Reads and tokenises every row of preference data, merges equal prefixes, and returns the findings.

    Args:
        renderer: makes the six sequences of each pair.
        max_length: limit of each sequence in tokens; None sets no limit.
        truncate: "prompt" cuts the prompts of longer pairs; "none" counts the pairs as unusable.
        evaluation: pairs that the data should not contain.
        examples: number of pairs to show.
        num_proc: processes to tokenise in; None takes one per core and at most eight, if there are enough rows.
        cache: folder that stores the tokenised trees of a thousand pairs or more, for the next look and for training;
            None stores nothing.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: no row is usable.
    """
    suspicious = Suspicious(renderer, evaluation)
    stream = Stream(source)
    reasons, spread = Reasons(), _Spread(examples)
    columns = {name: array("i") for name in MEASURES}
    usable = over = cut = flat = packed = 0
    store = StoredPairs(renderer, max_length=max_length, truncate=truncate, cache=cache)
    pairs = store.all(_pairs(stream, reasons, suspicious, spread), num_proc)
    for _, pair, reject in counted(pairs, "reading and tokenising pairs"):
        for column, tokens in zip(columns.values(), pair.lengths, strict=False):
            column.append(tokens)
        over += max_length is not None and bool(pair.lengths) and pair.lengths[-1] > max_length
        cut += pair.cut > 0
        if reject:
            reasons.add(*reject)
            continue
        usable += 1
        flat, packed = flat + pair.flat, packed + len(pair.ids)
    if not usable:
        why = "; ".join(f"{each.count} × {each.reason} ({each.where[0]} first)" for each in reasons.sorted()[:10])
        raise DataError(f"0 of {stream.rows} rows usable" + (f": {why}" if why else ""), where=stream.name)
    return Inspection(
        source=stream.name,
        layout=str(stream.layout),
        rows=stream.rows,
        usable=usable,
        reasons=reasons.sorted(),
        suspicious=suspicious.sentences(),
        duplicates=suspicious.duplicates,
        evaluation_rows=suspicious.evaluation_rows if evaluation is not None else None,
        leaked_prompts=len(suspicious.leaked_prompts),
        leaked_pairs=len(suspicious.leaked_pairs),
        leaks=list(suspicious.leaked_prompts.values())[:PLACES],
        max_length=max_length,
        truncate=truncate,
        over=over,
        cut=cut,
        lengths={name: _lengths(column, max_length) for name, column in columns.items()},
        flat_tokens=flat,
        packed_tokens=packed,
        tokenised=store.tokenised,
        template=renderer.template.name,
        assumes=renderer.template.assumes,
        notes=renderer.notes,
        examples=list(_examples(renderer, spread.chosen())),
    )


# ---------------------------------------------------------------------- one row


def _examples(renderer: Renderer, pairs: list[Pair]) -> Iterator[Example]:
    decode = renderer.tokenizer.decode
    for pair, six in renderer.rendered(pairs):
        for role, at in (("draft", 0), ("revision of the rejected answer", 4)):
            if not isinstance(six, Reject):
                pictures = pictures_of(pair.prompt) if role == "draft" else ()
                yield Example(pair.where, role, decode(six[at].context), decode(six[at].answer), pictures)


def _lengths(tokens: array[int], limit: int | None) -> Lengths:
    ordered = sorted(tokens)
    last = len(ordered) - 1
    over = sum(each > limit for each in ordered) if limit is not None else 0
    return Lengths(ordered[last // 2], ordered[round(0.95 * last)], ordered[last], over)


class _Spread:
    """Collects pairs, of which `count` are chosen, evenly spread over all pairs added."""

    def __init__(self, count: int) -> None:
        self.count, self.added, self.stride = count, 0, 1
        self.items: list[Pair] = []

    def add(self, pair: Pair) -> None:
        if self.count and self.added % self.stride == 0:
            self.items.append(pair)
            if len(self.items) > 8 * self.count:
                self.items, self.stride = self.items[::2], 2 * self.stride
        self.added += 1

    def chosen(self) -> list[Pair]:
        """Returns at most `count` of the pairs seen, at even distances from the first to the last."""
        count = min(self.count, len(self.items))
        return [self.items[round(i * (len(self.items) - 1) / max(count - 1, 1))] for i in range(count)]


def _pairs(stream: Stream, reasons: Reasons, suspicious: Suspicious, spread: _Spread) -> Iterator[Pair]:
    """Yields the pairs of a stream; counts each pair in `suspicious` and `spread`, each rejected row in `reasons`."""
    for each in stream:
        if isinstance(each, Reject):
            reasons.add(*each)
            continue
        suspicious.add(each)
        spread.add(each)
        yield each
