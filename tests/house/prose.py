"""Laws of language and of types: word rates of docstrings and comments, how docstrings open, and the share of `Any`.

`python -m tests.house.prose [FOLDER]` prints the counts of each room, so that a room can be measured alone.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.house.laws import Source, sources

# Uses per 1,000 words of docstrings and comments that are still plain English.
RATES: dict[str, tuple[str, float]] = {
    "what": (r"\bwhat\b", 2.0),
    "stand(s)": (r"\bstands?\b", 0.5),
    "say, tell": (r"\b(?:says?|said|tells?|told)\b", 1.0),
    "none": (r"\bnone\b", 1.0),
    "whoever": (r"\b(?:who|where)ever\b", 0.3),
}
ANY_SHARE = 0.03
FUNCTION_LINES = 80
FOLDER_SHARE = 0.15


def docstrings(source: Source) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring in the file."""
    for node in ast.walk(source.tree):
        described = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if described and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def comments(source: Source) -> Iterator[tuple[int, str]]:
    """Line and text of every comment in the file."""
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def counted(read: list[Source]) -> tuple[int, Counter[str]]:
    """Words of all docstrings and comments, and how many of them each rate counts."""
    words, found = 0, Counter[str]()
    for source in read:
        for _, text in [*docstrings(source), *comments(source)]:
            words += len(re.findall(r"[\w'-]+", text))
            for name, (pattern, _) in RATES.items():
                # A lower-case "none" is a word of prose; `None` is the value.
                flags = 0 if name == "none" else re.IGNORECASE
                found[name] += len(re.findall(pattern, text, flags))
    return words, found


def word_rates(package: Path) -> list[str]:
    """Words that a plain sentence rarely needs, used more often than `RATES` allows."""
    words, found = counted(sources(package))
    rates = {name: 1000 * found[name] / max(words, 1) for name in RATES}
    return [f"{name}: {rate:.1f} per 1,000 words" for name, rate in rates.items() if rate > RATES[name][1]]


def docstring_openings(package: Path) -> list[str]:
    """Docstrings that open with "What", "Who" or "That which" instead of a noun or a verb."""
    return [
        source.at(line, f"opens with {text.split()[0]!r}")
        for source in sources(package)
        for line, text in docstrings(source)
        if re.match(r"(What|Who|Whoever|That which)\b", text)
    ]


def parameters(source: Source) -> Iterator[tuple[int, str]]:
    """Line and annotation of every annotated parameter."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            yield from ((each.lineno, ast.unparse(each.annotation)) for each in every if each and each.annotation)


def is_any(annotation: str) -> bool:
    """Whether the annotation tells a reader nothing: `Any`, alone or in a union."""
    return "Any" in re.split(r"\s*\|\s*", annotation)


def any_share(package: Path) -> list[str]:
    """Parameters annotated `Any`, if they are more than `ANY_SHARE` of the annotated ones."""
    found = [(source.at(line, text), text) for source in sources(package) for line, text in parameters(source)]
    untyped = [at for at, text in found if is_any(text)]
    return untyped if len(untyped) > ANY_SHARE * len(found) else []


def long_functions(package: Path) -> list[str]:
    """Functions longer than `FUNCTION_LINES` lines, decorators left out."""
    return [
        source.at(node.lineno, f"{node.name} has {length} lines")
        for source in sources(package)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]


def crowded_folders(package: Path) -> list[str]:
    """Folders directly below the package with more than `FOLDER_SHARE` of all lines."""
    lines = Counter[str]()
    for source in sources(package):
        lines[source.layer] += len(source.text.splitlines())
    total = sum(lines.values())
    return [f"{room}: {100 * n / total:.1f} % of all lines" for room, n in lines.items() if n > FOLDER_SHARE * total]


def main(folders: list[str]) -> None:
    """Prints lines, word rates, openings and the share of `Any`, room by room."""
    names = list(RATES)
    print(f"{'room':<28}{'lines':>7}{'words':>7}" + "".join(f"{n:>11}" for n in names) + f"{'What…':>7}{'Any %':>7}")
    rooms = [Path(each) for each in folders] or [
        Path("srpo"),
        *sorted(p for p in Path("srpo").rglob("*") if p.is_dir()),
    ]
    for room in rooms:
        if not (read := sources(room)):
            continue
        words, found = counted(read)
        annotated = [text for source in read for _, text in parameters(source)]
        share = 100 * sum(map(is_any, annotated)) / max(len(annotated), 1)
        rates = "".join(f"{1000 * found[name] / max(words, 1):>11.1f}" for name in names)
        lines = sum(len(source.text.splitlines()) for source in read)
        print(f"{room!s:<28}{lines:>7}{words:>7}{rates}{len(docstring_openings(room)):>7}{share:>7.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
