"""`Source`: the origin of rows, and the names of their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from srpo.data.files import is_loaded, rows_of, undecoded
from srpo.data.formats import LAYOUTS
from srpo.data.opened import kind_of
from srpo.data.pictures import COLUMNS as PICTURES
from srpo.data.rankings import CHOICES
from srpo.data.rankings import COLUMNS as RANKING_COLUMNS
from srpo.data.tables import from_cells
from srpo.data.values import Unusable, as_object, from_text, joined
from srpo.errors import ConfigError, DataError, did_you_mean

MESSAGE_COLUMNS = ("prompt", "chosen", "rejected", "conversations")
EXTRA_COLUMNS = ("system", "tools", "chat_template_kwargs", *PICTURES)  # columns allowed in every layout
COLUMNS = tuple(dict.fromkeys([*chain(*(layout.columns for layout in LAYOUTS)), *RANKING_COLUMNS, *EXTRA_COLUMNS]))

AnySource: TypeAlias = "str | Path | Iterable[Mapping[str, Any]] | Source"


@dataclass(frozen=True)
class Source:
    """The origin of rows and how to read them; accepted wherever a path or rows are accepted.

    Attributes:
        origin: path of a JSONL, JSON, CSV or Parquet file, a folder or name that `datasets` can load, or rows.
        columns: srpo's name of a column → the source's own, if they differ; "a+b" joins two texts, a line each.
        rankings: "all" makes a pair of every two ranked completions, "best-worst" one pair of the best and the worst.
        split: the split of a folder or name that `datasets` loads.
        config: the configuration of a folder or name that `datasets` loads.
        whole: split name accepted for a file and for rows in memory, which have no splits.

    Raises:
        ConfigError: an unknown column or an unknown choice of rankings.

    Example:
        >>> from srpo.data.read import read_pairs
        >>> rows = [{"instruction": "2+2=", "chosen": "4", "rejected": "5"}]
        >>> read_pairs(Source(rows, columns={"prompt": "instruction"}))[0].prompt
        '2+2='
    """

    origin: str | Path | Iterable[Mapping[str, Any]]
    columns: Mapping[str, str] = field(default_factory=dict)
    rankings: str = "all"
    split: str = "train"
    config: str | None = None
    whole: str = "train"

    def __post_init__(self) -> None:
        for ours in self.columns:
            if ours not in COLUMNS:
                fix = did_you_mean(ours, COLUMNS)
                raise ConfigError(f"no column {ours!r}", where="map", expected="one of " + ", ".join(COLUMNS), fix=fix)
        if self.rankings not in CHOICES:
            expected, fix = "one of " + ", ".join(CHOICES), did_you_mean(str(self.rankings), CHOICES)
            raise ConfigError(f"{self.rankings!r}", where="rankings", expected=expected, fix=fix)

    @classmethod
    def of(cls, source: AnySource) -> Source:
        """Returns `source` unchanged if it is a `Source`, else a `Source` with that path or those rows as origin."""
        return source if isinstance(source, Source) else cls(source)

    @property
    def name(self) -> str:
        """Path or name of the origin of the rows; "rows" for rows in memory."""
        return str(self.origin) if isinstance(self.origin, str | Path) else "rows"

    @property
    def folder(self) -> Path | None:
        """The folder that paths of pictures start from: that of the file, or the folder; None for rows in memory."""
        if not isinstance(self.origin, str | Path):
            return None
        return Path(self.origin) if Path(self.origin).is_dir() else Path(self.origin).parent

    @property
    def has_splits(self) -> bool:
        """True if the library `datasets` loads the origin, which may then have splits."""
        return isinstance(self.origin, str | Path) and is_loaded(self.origin)

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yields (place, row or `Unusable`) for each row of the origin, its columns under srpo's names.

        Raises:
            InputError: the origin cannot be read.
            DataError: the file is not of the kind that its name promises.
        """
        if isinstance(self.origin, str | Path):
            found = rows_of(self.origin, self.split, self.config, self.whole)
        elif isinstance(self.origin, Mapping):
            has = ", ".join(map(repr, islice(self.origin, 5)))
            raise DataError(f"an object with {has}", where="rows", expected="rows, or one split of a data set")
        else:
            found = ((f"row {i}", row) for i, row in enumerate(records(self.origin), 1))
        cells = isinstance(self.origin, str | Path) and not self.has_splits
        cells = cells and kind_of(Path(str(self.origin))) in (".csv", ".tsv")
        return ((where, self._named(row, cells)) for where, row in found)

    def _named(self, row: object, cells: bool) -> Any:
        try:
            if self.columns:
                row = _renamed(row, self.columns)
            row = from_cells(row) if cells else row
            return from_text(row, MESSAGE_COLUMNS) if isinstance(row, Mapping) else row
        except Unusable as problem:
            return problem


def evaluation_source(name: str, columns: Mapping[str, str], rankings: str, split: str, config: str | None) -> Source:
    """Returns the source of evaluation rows, given the settings by which the training rows are read.

    Args:
        name: file, folder or data set of the evaluation rows.
        columns, rankings: as in `Source`.
        split: the split to read; for a file only "test", TRL's default, is accepted, and takes the whole file.
        config: configuration of the training set; has no effect for a file, which has no configurations.
    """
    source = Source(name, columns, rankings, split, config, whole="test")
    return source if source.has_splits else replace(source, config=None)


def records(origin: Iterable[object]) -> Iterable[object]:
    """Returns the rows of a table in memory (pandas, polars, Arrow) as dicts, with None for missing values.

    Rows that are not such a table are returned unchanged, but pictures of a `datasets` data set stay encoded.
    """
    for name in ("to_dicts", "to_pylist"):  # methods of polars and Arrow tables
        if hasattr(origin, name):
            rows: Iterable[object] = getattr(origin, name)()
            return rows
    if not (hasattr(origin, "to_dict") and hasattr(origin, "columns")):
        return undecoded(origin)
    found: list[dict[str, Any]] = origin.to_dict(orient="records")
    return [{key: _plain_cell(value) for key, value in row.items()} for row in found]


def _plain_cell(value: Any) -> Any:
    """The value of a pandas cell: arrays become lists, missing values None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain_cell(each) for each in value]
    return None if value is None or (value != value) is True or type(value).__name__ in ("NAType", "NaTType") else value


def columns_of(text: str | None) -> dict[str, str]:
    """Parses the value of the flag `--map` into a dict: srpo's name of a column → the source's name; {} for None.

    Raises:
        ConfigError: the text is of another form, or names a column twice.

    Example:
        >>> columns_of("prompt=instruction,chosen=good")
        {'prompt': 'instruction', 'chosen': 'good'}
    """
    columns: dict[str, str] = {}
    for piece in (text or "").split(",") if text else []:
        ours, equals, theirs = (part.strip() for part in piece.partition("="))
        if not (ours and equals and theirs) or ours in columns:
            raise ConfigError(
                f"{piece!r}", where="map", expected="`ours=theirs,…`, as in prompt=instruction,chosen=good"
            )
        columns[ours] = theirs
    return columns


def _renamed(row: object, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with columns renamed by `columns` (srpo's name → row's name), replacing any column of that name."""
    row = as_object(row, ", ".join(columns.values()))
    found, taken = {}, {*columns}
    for ours, theirs in columns.items():
        several = theirs.split("+") if theirs not in row else [theirs]
        for each in several:
            if each not in row:
                raise Unusable(f"no {each!r} to be {ours!r}; this row has {', '.join(map(repr, row)) or 'no keys'}")
        taken |= {*several}
        parts = [row[each] for each in several]
        found[ours] = parts[0] if len(parts) == 1 else joined(parts, theirs)
    return {**found, **{key: value for key, value in row.items() if key not in taken}}
