"""Trails to look at: what each revision changed, word by word, in a terminal or on a page of its own."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from srpo.data.values import last_message
from srpo.disk import write_file
from srpo.revise.trail import Answer, Trail

if TYPE_CHECKING:
    from rich.text import Text

Change = Literal["same", "gone", "new"]


class Piece(NamedTuple):
    """A run of words of an answer or of the one it revised."""

    text: str
    change: Change


def changes(old: str, new: str) -> list[Piece]:
    """The new text with what left and what came, word by word; letter by letter where a single word was replaced by one
    as long.

    Example:
        >>> changes("the cat sat", "the dog sat down")[1:3]
        [Piece(text='cat', change='gone'), Piece(text='dog', change='new')]
    """
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    if len(ours) == len(theirs) == 1 and len(old) == len(new):
        ours, theirs = list(old), list(new)
    pieces = []
    for kind, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("".join(ours[a:b]), "same"))
        else:
            gone, came = "".join(ours[a:b]), "".join(theirs[c:d])
            pieces += [Piece(gone, "gone")] * bool(gone) + [Piece(came, "new")] * bool(came)
    return pieces


def steps(trail: Trail) -> Iterator[tuple[str, Answer, list[Piece]]]:
    """Each answer of a trail: what it is, itself, and what it changed in the answer that was in hand."""
    for k, answer in enumerate(trail.answers):
        old = trail.after(k - 1).text if k else answer.text
        yield ("draft" if k == 0 else f"revision {k}", answer, changes(old, answer.text))


def about(answer: Answer) -> str:
    """Confidence, whether it was kept, and what it cost."""
    said = [] if answer.preferred is None else [f"p {answer.preferred:.2f}"]
    said += [] if answer.kept else ["not kept"]
    said += [] if answer.finished else ["cut off"]
    return ", ".join([*said, f"{answer.tokens} tokens", f"{answer.seconds:.2f} s"])


# ---------------------------------------------------------------------- terminal

_STYLES = {"same": "", "gone": "red strike", "new": "bold green"}
_MARKS = {"same": "{}", "gone": "[-{}-]", "new": "{{+{}+}}"}


def as_text(trail: Trail, *, marks: bool = False) -> Text:
    """A trail for a terminal: what left struck through in red, what came in bold green.

    Args:
        marks: puts what left in [-…-] and what came in {+…+}, where nothing can be coloured.
    """
    from rich.text import Text

    text = Text()
    text.append(last_message(trail.prompt) + "\n", style="bold")
    for name, answer, pieces in steps(trail):
        text.append(f"  {name:<12}", style="cyan")
        for piece in pieces or [Piece("(empty)", "same")]:
            said = _MARKS[piece.change].format(piece.text) if marks else piece.text
            text.append(said.replace("\n", "\n" + " " * 14), style=_STYLES[piece.change])
        text.append(f"   {about(answer)}\n", style="dim")
    text.append(f"  stopped: {trail.stopped}\n", style="dim")
    return text


# ---------------------------------------------------------------------- page

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
article {{ border-top: 1px solid #8886; padding: 1rem 0; }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ padding: .2rem .8rem .2rem 0; vertical-align: top; }}
td:first-child, td:last-child {{ white-space: nowrap; color: GrayText; font-size: .85rem; }}
td:nth-child(2) {{ white-space: pre-wrap; overflow-wrap: anywhere; width: 100%; }}
del {{ color: #c0392b; }} ins {{ color: #1e8449; font-weight: 600; text-decoration: none; background: #2ecc7122; }}
.refused td:nth-child(2) {{ opacity: .55; }} p {{ color: GrayText; font-size: .85rem; margin: .3rem 0 0; }}
</style></head><body><h1>{title}</h1><p>{summary}</p>
{articles}
</body></html>
"""
_TAGS = {"same": "{}", "gone": "<del>{}</del>", "new": "<ins>{}</ins>"}


def as_page(trails: Iterable[Trail], title: str) -> str:
    """A self-contained page of trails; every text in it is escaped."""
    trails = list(trails)
    changed = sum(len({answer.text for answer in trail.answers}) > 1 for trail in trails)
    return _PAGE.format(
        title=html.escape(title),
        summary=f"{len(trails):,} prompts; revisions changed the answer to {changed:,} of them.",
        articles="\n".join(map(_article, trails)),
    )


def _article(trail: Trail) -> str:
    rows = []
    for name, answer, pieces in steps(trail):
        text = "".join(_TAGS[piece.change].format(html.escape(piece.text)) for piece in pieces)
        kind = "" if answer.kept else ' class="refused"'
        rows.append(f"<tr{kind}><td>{name}</td><td>{text}</td><td>{about(answer)}</td></tr>")
    table = "\n".join(rows)
    return (
        f"<article><h2>{html.escape(last_message(trail.prompt))}</h2>\n<table>{table}</table>\n"
        f"<p>stopped: {html.escape(trail.stopped)}</p></article>"
    )


def write_page(path: str | Path, trails: Iterable[Trail], title: str) -> None:
    """Writes the page.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(Path(path), as_page(trails, title).encode(), flag="--html")
