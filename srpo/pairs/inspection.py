"""What a data file becomes before anything is trained on it: counts, lengths, sharing, rendered examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from srpo.pairs.read import Pair, Reject, read_pairs
from srpo.pairs.render import Renderer
from srpo.pairs.tree import PrefixTree, TokenPair


class Lengths(NamedTuple):
    """Tokens: the median, the 95th percentile and the longest."""

    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class Inspection:
    """The findings.

    Attributes:
        usable: pairs that can be trained on, length apart.
        rejects: rows that cannot, with their reasons.
        duplicates: pairs that repeat an earlier one word for word.
        lengths: by what is measured: prompt, chosen, rejected, longest of the six.
        over: pairs whose longest sequence exceeds `max_length`.
        flat_tokens, packed_tokens: of all six sequences, unshared and merged.
        layout: "strings" or "messages", or both with their counts.
        examples: the first pairs and their six sequences.
    """

    usable: int
    rejects: list[Reject]
    duplicates: int
    lengths: dict[str, Lengths]
    over: int
    flat_tokens: int
    packed_tokens: int
    layout: str
    examples: list[tuple[Pair, list[TokenPair]]]


def inspect(
    source: str | Path | Iterable[Mapping[str, Any]],
    renderer: Renderer,
    *,
    max_length: int | None = None,
    examples: int = 3,
) -> Inspection:
    """Reads, renders and packs every row, keeping only counts and the first few.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: no row is usable.
    """
    rejects: list[Reject] = []
    pairs = read_pairs(source, rejects=rejects)
    measured: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": [], "longest of the six": []}
    flat = packed = over = 0
    shown: list[tuple[Pair, list[TokenPair]]] = []
    for pair, six in zip(pairs, renderer.sixes(pairs), strict=True):
        longest = max(len(context) + len(answer) for context, answer in six)
        found = (len(six[0].context), len(six[0].answer), len(six[1].answer), longest)
        for column, tokens in zip(measured.values(), found, strict=True):
            column.append(tokens)
        over += max_length is not None and longest > max_length
        tree = PrefixTree.pack(six)
        flat, packed = flat + tree.flat_tokens, packed + len(tree)
        if len(shown) < examples:
            shown.append((pair, six))
    repeats = Counter((str(pair.prompt), pair.chosen, pair.rejected) for pair in pairs)
    kinds = Counter("strings" if isinstance(pair.prompt, str) else "messages" for pair in pairs)
    layout = next(iter(kinds)) if len(kinds) == 1 else ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lengths = {name: _lengths(column) for name, column in measured.items()}
    return Inspection(len(pairs), rejects, len(pairs) - len(repeats), lengths, over, flat, packed, layout, shown)


def _lengths(tokens: list[int]) -> Lengths:
    ordered = sorted(tokens)
    last = len(ordered) - 1
    return Lengths(ordered[last // 2], ordered[round(0.95 * last)], ordered[last])
