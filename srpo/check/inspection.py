"""What a data file becomes before anything is trained on it: counts, lengths, sharing, rendered examples.

Rows stream through: what is kept of one is a few numbers and a hash.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from srpo.check.measured_cache import VERSION, Kept, Measured, digest_of
from srpo.data.read import Pair, Reject, Source, Stream
from srpo.errors import DataError
from srpo.sequences.fit import Fitted, fitted
from srpo.sequences.parallel import mapped
from srpo.sequences.render import Renderer
from srpo.sequences.tree import PrefixTree, TokenPair
from srpo.sequences.tree_store import KEPT_FROM

MEASURES = ("prompt", "chosen", "rejected", "w", "l", "w_given_w", "l_given_w", "w_given_l", "l_given_l", "longest")
NAMES = {
    "w": "draft: chosen",
    "l": "draft: rejected",
    "w_given_w": "chosen after chosen",
    "l_given_w": "rejected after chosen",
    "w_given_l": "chosen after rejected",
    "l_given_l": "rejected after rejected",
    "longest": "longest of the six",
}  # what else is measured is called what it is
PLACES = 5  # rows named per reason


class Lengths(NamedTuple):
    """Tokens: the median, the 95th percentile and the longest; and how many rows are over the limit."""

    median: int
    p95: int
    longest: int
    over: int


@dataclass
class Reason:
    """Why rows cannot be used, in the words for the first of them, how many, and where the first few stand."""

    reason: str
    count: int = 0
    where: list[str] = field(default_factory=list)


class Example(NamedTuple):
    """One pair as the model sees it; contexts are given, answers scored."""

    where: str
    role: str
    context: str
    answer: str


@dataclass(frozen=True)
class Inspection:
    """The findings.

    Attributes:
        source: name of the data.
        layout: how its rows are laid out.
        rows: rows read; one row of rankings makes several pairs, each of which counts.
        usable: pairs that would be trained on.
        reasons: why the others would not, the most frequent first.
        duplicates: pairs that repeat an earlier one word for word.
        evaluation_rows: pairs of the evaluation set; None without one.
        leaked_prompts: those whose prompt is in the data; leaked_pairs: those that are there whole.
        leaks: where the first few of them stand.
        max_length: the limit in tokens; None without one.
        over: pairs over it. truncate says what happens to them: cut is how many had their prompts cut.
        lengths: by what is measured: prompt, chosen, rejected, the six sequences, the longest of the six.
        flat_tokens, packed_tokens: of all six sequences of usable pairs, unshared and merged.
        tokenised: pairs rendered to find this out; the others were found as they are at an earlier time.
        template, assumes, notes: the revision template, what it assumes, what the chat template does.
        examples: the first pairs, as draft and as revision.
    """

    source: str
    layout: str
    rows: int
    usable: int
    reasons: list[Reason]
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
        """Flat tokens per packed token."""
        return self.flat_tokens / self.packed_tokens

    @property
    def unusable(self) -> int:
        """Rows and pairs that would not be trained on."""
        return sum(each.count for each in self.reasons)

    def sentences(self) -> list[str]:
        """The findings that are no table, a line each."""
        limit = self.max_length
        found = [
            f"{self.source}: {self.layout}",
            f"{self.usable} pairs usable of {self.rows} rows; {self.unusable} unusable; {self.duplicates} duplicates",
        ]
        if self.evaluation_rows is not None:
            found.append(
                f"of {self.evaluation_rows} evaluation pairs {self.leaked_prompts} have a prompt that is trained on, "
                f"{self.leaked_pairs} are trained on whole"
            )
        if limit is None:
            found.append("no limit on length is known; --max_length sets one")
        elif self.truncate == "prompt":
            found.append(f"{self.over} pairs are over {limit} tokens; {self.cut} prompts are cut to fit")
        else:
            found.append(f"{self.over} pairs are over {limit} tokens, and would be left out")
        found.append(
            f"revision template {self.template}: {self.flat_tokens} flat tokens, {self.packed_tokens} packed "
            f"({self.sharing:.2f} to 1)"
        )
        found += [] if self.tokenised else ["nothing was tokenised: all of it is kept from an earlier time"]
        found += [f"it assumes {self.assumes}"] if self.assumes else []
        return found + [f"the chat template {note}" for note in self.notes]

    def to_html(self) -> str:
        """Everything as one page that loads nothing."""
        page = Path(__file__).with_name("inspection.html.jinja").read_text("utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        return environment.from_string(page).render(found=self, names=NAMES)

    def to_json(self) -> str:
        """Everything as one JSON object."""
        lengths = {name: each._asdict() for name, each in self.lengths.items()}
        examples = [each._asdict() for each in self.examples]
        row = {"format": 1, **asdict(self), "unusable": self.unusable, "lengths": lengths, "examples": examples}
        return json.dumps(row, ensure_ascii=False, indent=2)


def inspect(
    source: str | Path | Source | Iterable[Mapping[str, Any]],
    renderer: Renderer,
    *,
    max_length: int | None = None,
    truncate: str = "none",
    evaluation: str | Path | Source | Iterable[Mapping[str, Any]] | None = None,
    examples: int = 3,
    num_proc: int | None = None,
    cache: str | Path | None = None,
) -> Inspection:
    """Reads, renders and packs every row.

    Args:
        evaluation: rows that ought not to be in the data.
        num_proc: processes to render in; None takes one per core, eight at most, when there are enough rows.
        cache: folder that keeps what was found of a thousand pairs or more of a file, for the same tokenizer, template
            and lengths; None keeps nothing.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: no row is usable.
    """
    seen = _Seen(evaluation)
    stream = Stream(source)
    reasons = _Reasons()
    columns = {name: array("i") for name in MEASURES}
    usable = over = cut = flat = packed = 0
    first: list[Pair] = []
    pairs = _pairs(stream, reasons, seen, first, examples)
    settings = (stream.name, renderer.fingerprint, max_length, truncate)
    before = Kept(_file(cache, settings) if cache and isinstance(Source.of(source).origin, str | Path) else None)
    measuring = _Measuring(before, renderer, max_length, truncate)
    for where, row in measuring.all(pairs, num_proc):
        for column, tokens in zip(columns.values(), row.lengths, strict=False):
            column.append(tokens)
        over += max_length is not None and bool(row.lengths) and row.lengths[-1] > max_length
        cut += row.cut > 0
        usable += not row.reason
        flat, packed = flat + row.flat, packed + row.packed
        if row.reason:
            reasons.add(Reject(where, row.reason))
    measuring.keep()
    if not usable:
        why = "; ".join(f"{each.count} × {each.reason} ({each.where[0]} first)" for each in reasons.sorted()[:10])
        raise DataError(f"0 of {stream.rows} rows usable" + (f": {why}" if why else ""), where=stream.name)
    shown = [each for found in fitted(renderer, first, max_length=None) for each in _examples(renderer, found)]
    return Inspection(
        source=stream.name,
        layout=str(stream.layout),
        rows=stream.rows,
        usable=usable,
        reasons=reasons.sorted(),
        duplicates=seen.duplicates,
        evaluation_rows=seen.rows if evaluation is not None else None,
        leaked_prompts=len(seen.leaked_prompts),
        leaked_pairs=len(seen.leaked_pairs),
        leaks=list(seen.leaked_prompts.values())[:PLACES],
        max_length=max_length,
        truncate=truncate,
        over=over,
        cut=cut,
        lengths={name: _lengths(column, max_length) for name, column in columns.items()},
        flat_tokens=flat,
        packed_tokens=packed,
        tokenised=measuring.tokenised,
        template=renderer.template.name,
        assumes=renderer.template.assumes,
        notes=renderer.notes,
        examples=shown,
    )


# ---------------------------------------------------------------------- one row


def _measured(found: Fitted) -> Measured:
    if isinstance(found.six, Reject):
        return Measured(found.lengths, 0, 0, 0, found.six.reason)
    flat = sum(len(context) + len(answer) for context, answer in found.six)
    return Measured(found.lengths, flat, len(PrefixTree.pack(found.six)), found.cut, "")


class _Measuring:
    """Measures pairs, and those that are kept from an earlier time not again.

    Attributes:
        tokenised: how many were measured.
    """

    def __init__(self, before: Kept, renderer: Renderer, max_length: int | None, truncate: str) -> None:
        self.before, self.now, self.tokenised = before, Kept(None), 0
        self._how = (renderer, max_length, truncate)
        self._known: deque[tuple[str, bytes, Measured]] = deque()
        self._asked: deque[tuple[str, bytes]] = deque()

    def all(self, pairs: Iterable[Pair], num_proc: int | None) -> Iterator[tuple[str, Measured]]:
        """(where it stands, what was found) of each pair, those measured in order and so those kept."""
        for chunk in mapped(self._work, self._new(pairs), num_proc=num_proc):
            for found in chunk:
                where, digest = self._asked.popleft()
                self.tokenised += 1
                yield self._taken(where, digest, found)
            yield from self._found_before()
        yield from self._found_before()

    def keep(self) -> None:
        """Keeping saves time and nothing else: a full disk or a read-only home is no reason to stop."""
        self.now.file = self.before.file
        if self.tokenised and len(self.now) >= KEPT_FROM:
            with suppress(OSError):
                self.now.save()

    def _new(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        for pair in pairs:  # read in a thread of its own, which is why it counts nothing
            digest = digest_of(pair)
            if found := self.before.get(digest):
                self._known.append((pair.where, digest, found))
                continue
            self._asked.append((pair.where, digest))
            yield pair

    def _work(self, pairs: list[Pair]) -> list[Measured]:
        renderer, max_length, truncate = self._how
        return [_measured(each) for each in fitted(renderer, pairs, max_length=max_length, truncate=truncate)]

    def _found_before(self) -> Iterator[tuple[str, Measured]]:
        while self._known:
            yield self._taken(*self._known.popleft())

    def _taken(self, where: str, digest: bytes, found: Measured) -> tuple[str, Measured]:
        if self.before.file:
            self.now.add(digest, found)
        return where, found


def _file(cache: str | Path, settings: tuple[Any, ...]) -> Path:
    return Path(cache) / f"{sha256(json.dumps([VERSION, *settings]).encode()).hexdigest()}.measures"


def _examples(renderer: Renderer, found: Fitted) -> Iterator[Example]:
    if isinstance(found.six, Reject):
        return
    decode = renderer.tokenizer.decode
    for role, at in (("draft", 0), ("revision of the rejected answer", 4)):
        sequence: TokenPair = found.six[at]
        yield Example(found.pair.where, role, decode(sequence.context), decode(sequence.answer))


def _lengths(tokens: array[int], limit: int | None) -> Lengths:
    ordered = sorted(tokens)
    last = len(ordered) - 1
    over = sum(each > limit for each in ordered) if limit is not None else 0
    return Lengths(ordered[last // 2], ordered[round(0.95 * last)], ordered[last], over)


# ---------------------------------------------------------------------- all rows


class _Reasons:
    """Reasons by what they say, numbers and quotations apart."""

    def __init__(self) -> None:
        self._found: dict[str, Reason] = {}

    def add(self, reject: Reject) -> None:
        kind = re.sub(r"\d+|'[^']*'|\[[^\]]*\]", "…", reject.reason)
        reason = self._found.setdefault(kind, Reason(reject.reason))
        reason.count += 1
        if len(reason.where) < PLACES:
            reason.where.append(reject.where)

    def sorted(self) -> list[Reason]:
        return sorted(self._found.values(), key=lambda each: (-each.count, each.reason))


class _Seen:
    """Duplicates in the data, and what of the evaluation set is in it, by hashes of 8 bytes."""

    def __init__(self, evaluation: Any) -> None:
        self.duplicates = self.rows = 0
        self._seen: set[bytes] = set()
        self._prompts: dict[bytes, list[tuple[str, bytes]]] = {}
        self.leaked_prompts: dict[str, str] = {}
        self.leaked_pairs: set[str] = set()
        for pair in Stream(evaluation) if evaluation is not None else ():
            if isinstance(pair, Pair):
                self.rows += 1
                self._prompts.setdefault(_digest(_said(pair)), []).append((pair.where, _whole(pair)))

    def add(self, pair: Pair) -> None:
        whole = _whole(pair)
        self.duplicates += whole in self._seen
        self._seen.add(whole)
        for where, theirs in self._prompts.get(_digest(_said(pair)), []) if self._prompts else []:
            self.leaked_prompts.setdefault(where, f"{where} is {pair.where}")
            if theirs == whole:
                self.leaked_pairs.add(where)


def _said(pair: Pair) -> Any:
    """The prompt, the same whether it came as text or as one message."""
    return [{"role": "user", "content": pair.prompt}] if isinstance(pair.prompt, str) else pair.prompt


def _whole(pair: Pair) -> bytes:
    return _digest([_said(pair), pair.chosen, pair.rejected])


def _digest(value: Any) -> bytes:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).digest()


def _pairs(stream: Stream, reasons: _Reasons, seen: _Seen, first: list[Pair], examples: int) -> Iterator[Pair]:
    """The pairs of a stream; what is not one goes to the reasons, and the first few are put by."""
    for each in stream:
        if isinstance(each, Reject):
            reasons.add(each)
            continue
        seen.add(each)
        if len(first) < examples:
            first.append(each)
        yield each
