"""Makes a `Pair` or a `Reject` of every row from outside; untrusted rows enter only here.

`source.py` and `files.py` read rows, `formats.py` converts the rows of each layout, `values.py` checks single values.
This file detects a source's layout, converts its rows, and reports the rows that cannot be used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from srpo.data.files import jsonl_rows
from srpo.data.formats import Layout, convert, detect, prompt_of, reasoned
from srpo.data.picture import Picture
from srpo.data.pictures import taken, with_pictures
from srpo.data.reasons import reasons
from srpo.data.source import EXTRA_COLUMNS, AnySource, Source, columns_of
from srpo.data.values import Message, NoPreference, Prompt, Row, Unusable, template_options
from srpo.errors import DataError, LengthError, SRPOError, TemplateError

__all__ = [
    "ERRORS",
    "REJECTS",
    "Message",
    "Pair",
    "Prompt",
    "PromptRow",
    "Reading",
    "Refused",
    "Reject",
    "Source",
    "Stream",
    "TooLong",
    "Undecided",
    "columns_of",
    "jsonl_rows",
    "read",
    "read_pairs",
    "read_prompts",
    "reasons",
]

log = logging.getLogger("srpo")

SHOWN_REJECTS = 10
DETECTED_ON = 100  # number of first rows that decide the layout


@dataclass(frozen=True)
class Pair:
    """One preference: a prompt and two answers to it.

    Attributes:
        prompt: text, or the messages before the answer; a `PicturedPrompt` if it has pictures.
        chosen: text of the preferred answer.
        rejected: text of the other answer.
        where: `file:line` or `row n`, for messages.
        meta: the row's other columns, unchanged.
        tools: tool descriptions for the chat template.
        chat_template_kwargs: further options of the chat template.
        reasoned: True if an answer's message held its thinking in a separate key, such as `reasoning_content`.

    Example:
        >>> Pair("2+2=", chosen="4", rejected="5").chosen
        '4'
    """

    prompt: Prompt
    chosen: str
    rejected: str
    where: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoned: bool = False


class PromptRow(NamedTuple):
    """A prompt to answer, with its place, other columns (`meta`) and options of the chat template, as in `Pair`."""

    prompt: Prompt
    where: str
    meta: dict[str, Any]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Reject(NamedTuple):
    """A row that cannot be used: its place, such as `file:line`, and the reason."""

    where: str
    reason: str


class Undecided(Reject):
    """A reject: a well-formed row that prefers no answer, for it has an empty answer, two equal ones, or a tie.

    Every set of judged answers has such rows. They are left out and counted, and never stop a run.
    """

    __slots__ = ()


class Refused(Reject):
    """A reject: a row that the tokenizer's chat template refuses to render, such as one with an unknown role."""

    __slots__ = ()


class TooLong(Reject):
    """A reject: a row with a sequence over the length limit."""

    __slots__ = ()


ERRORS: dict[type[Reject], type[SRPOError]] = {Refused: TemplateError, TooLong: LengthError}  # other classes: DataError
REJECTS = {each.__name__: each for each in (Reject, Undecided, Refused, TooLong)}


class Reading(NamedTuple):
    """Result of reading a whole source: the layout of its rows (None if unknown), its pairs and its unusable rows."""

    layout: Layout | None
    pairs: list[Pair]
    rejects: list[Reject]


class Stream:
    """Iterates over the preference pairs and unusable rows (`Reject`) of a source, one by one, in the source's order.

    Attributes:
        name: the source's name.
        layout: the layout of most of its first rows; None if they fit no known layout.
        rows: rows read so far.

    Raises:
        InputError: the source cannot be read.
        DataError: the file is not of the kind that its name promises.

    Example:
        >>> stream = Stream([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {"prompt": "2+3="}])
        >>> stream.layout.name, [type(each).__name__ for each in stream]
        ('strings', ['Pair', 'Reject'])
    """

    def __init__(self, source: AnySource) -> None:
        self._source = Source.of(source)
        self.name, self.rows = self._source.name, 0
        self._found = self._source.rows()
        self._first = list(islice(self._found, DETECTED_ON))
        self.layout = detect(row for _, row in self._first)
        if self.layout:
            log.info("srpo: %s: read as %s", self.name, self.layout)

    def __iter__(self) -> Iterator[Pair | Reject]:
        for where, row in chain(self._first, self._found):
            self.rows += 1
            try:
                yield from self._pairs(row, where)
            except Unusable as problem:
                kind = Undecided if isinstance(problem, NoPreference) else Reject
                yield kind(where + problem.column, str(problem))

    def _pairs(self, row: Row, where: str) -> list[Pair]:
        row, pictures = taken(row, self._source.folder)
        prompt, answers = convert(row, self.layout, self._source.rankings)
        prompt = with_pictures(prompt, pictures, [each for pair in answers for each in pair[:2]])
        tools, options = template_options(row)
        known = {*(self.layout.columns if self.layout else ()), *EXTRA_COLUMNS}
        meta = {key: value for key, value in row.items() if key not in known}
        rest = (meta, tools, options, reasoned(row))
        return [
            Pair(prompt, chosen, rejected, f"{where}, {tag}" if tag else where, *rest)
            for chosen, rejected, tag in answers
        ]


def read(source: AnySource, *, rejects: list[Reject] | None = None) -> Reading:
    """Reads all preference pairs of a source; returns them with its layout and its unusable rows.

    Args:
        source: a path, a name, rows, or any of them in a `Source`.
        rejects: a list to extend with the unusable rows; without it, an unusable row raises an error, unless it only
            prefers no answer (`Undecided`).

    Raises:
        InputError: the source cannot be read.
        DataError: a row is unusable (the first ten are named), or no pair is left.

    Example:
        >>> read([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}]).layout.name
        'strings'
    """
    stream = Stream(source)
    pairs: list[Pair] = []
    new: list[Reject] = []
    for each in stream:
        if isinstance(each, Reject):
            new.append(each)
        else:
            pairs.append(each)
    if rejects is not None:
        rejects += new
    broken = [each for each in new if not isinstance(each, Undecided)]
    if (broken and rejects is None) or (new and not pairs):
        raise too_bad(broken if pairs else new, stream.rows, "pairs", known=stream.layout is not None)
    if not pairs:
        raise _empty(stream.name, "pairs")
    if new and rejects is None:
        log.warning("srpo: %d of %d rows left out: %s", len(new), stream.rows, reasons(new))
    return Reading(stream.layout, pairs, new)


def read_pairs(source: AnySource, *, rejects: list[Reject] | None = None) -> list[Pair]:
    """Reads and returns the preference pairs of a source, in order.

    Args:
        source: path of a JSONL, JSON, CSV or Parquet file, a folder or name that `datasets` can load, rows in any of
            the layouts of `srpo.data.formats`, or any of them in a `Source`.
        rejects: a list to extend with the unusable rows; without it, an unusable row raises an error, unless it only
            prefers no answer (`Undecided`).

    Raises:
        InputError: the source cannot be read.
        DataError: a row is unusable (the first ten are named), or no pair is left.

    Example:
        >>> read_pairs([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}])[0].rejected
        '5'
    """
    return read(source, rejects=rejects).pairs


def read_prompts(source: AnySource, *, rejects: list[Reject] | None = None) -> list[PromptRow]:
    """Reads and returns prompts in order, from rows with or without answers; all other columns are in `meta`.

    Args:
        source: path of a file or folder, name of a data set, rows, or a `Source`; see `read_pairs`.
        rejects: a list to extend with the unusable rows; without it, an unusable row raises an error.

    Raises:
        InputError: the source cannot be read.
        DataError: a row has no usable prompt (the first ten are named), or no prompt is left.

    Example:
        >>> read_prompts([{"prompt": "2+2=", "gold": "4"}])[0].meta
        {'gold': '4'}
    """
    source = Source.of(source)
    found: list[PromptRow] = []
    new: list[Reject] = []
    for where, row in source.rows():
        try:
            found.append(_prompt_row(*taken(row, source.folder), where, from_file=source.name != "rows"))
        except Unusable as problem:
            new.append(Reject(where + problem.column, str(problem)))
    if rejects is not None:
        rejects += new
    if new and (rejects is None or not found):
        raise too_bad(new, len(found) + len(new), "prompts")
    if not found:
        raise _empty(source.name, "prompts")
    return found


def _prompt_row(row: Row, pictures: tuple[Picture, ...], where: str, *, from_file: bool) -> PromptRow:
    prompt, column = prompt_of(row)
    prompt = with_pictures(prompt, pictures)
    meta = {key: value for key, value in row.items() if key != column}
    return PromptRow(prompt, where, plain(meta) if from_file else meta, *template_options(row))


def _empty(name: str, noun: str) -> DataError:
    expected = "at least one JSON object per line" if name.endswith(".jsonl") else "at least one row"
    return DataError(f"no {noun}", where=name, expected=expected)


def plain(value: object) -> Any:
    """Returns a value from a table as a JSON value: dates and other types become text, infinities and NaN null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def too_bad(bad: list[Reject], rows: int, noun: str, *, known: bool = True) -> DataError:
    """Returns the error, for the caller to raise, that lists the unusable rows of a source and a remedy.

    Args:
        bad: the unusable rows; the first ten are listed.
        rows: number of all rows.
        noun: the use that the rows are unfit for, such as "pairs".
        known: False, for an unknown layout, adds the advice to name the columns by `--map`.
    """
    fix = "mend them" if len(bad) == rows else "mend these rows, or go on without them with `--bad_rows skip`"
    fix += "" if known else ", or say which columns are meant with `--map prompt=…,chosen=…,rejected=…`"
    return DataError(f"{len(bad)} of {rows} rows cannot be used as {noun}:\n{listed(bad)}\n", fix=fix)


def listed(bad: list[Reject]) -> str:
    """Returns text that lists the first ten unusable rows with their reasons, a line each, and counts the others."""
    lines = [f"  {where}: {reason}" for where, reason in bad[:SHOWN_REJECTS]]
    more = [f"  … and {len(bad) - SHOWN_REJECTS} more"] if len(bad) > SHOWN_REJECTS else []
    return "\n".join([*lines, *more])
