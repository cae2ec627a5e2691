"""Shows prompts with drafts and revisions, changes marked word by word, in a terminal or on an HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.data.values import last_message
from srpo.disk import write_file
from srpo.report.diff import Piece, diff
from srpo.revise.trail import VOTE, Answer, Trail

if TYPE_CHECKING:
    from rich.text import Text


def steps(trail: Trail) -> Iterator[tuple[str, Answer, list[Piece]]]:
    """Yields (name, answer, differences from the last answer kept before it) for the draft and each revision."""
    for k, answer in enumerate(trail.answers):
        old = trail.last_kept(k - 1).text if k and trail.stopped != VOTE else answer.text
        yield name_of(trail, k), answer, diff(old, answer.text)


def name_of(trail: Trail, place: int) -> str:
    """Returns the printed name of one answer of a trail: draft, revision 1, …; draft 1, draft 2, … if all are drafts.

    Args:
        place: position of the answer in the trail, from 0.
    """
    if trail.stopped == VOTE:
        return f"draft {place + 1}"
    return f"revision {place}" if place else "draft"


def ending(trail: Trail) -> str:
    """Returns the reason why revising ended, as text, with the name of the answer that a selector chose, if one did."""
    place = trail.answers[-1].in_hand if trail.answers else None
    return trail.stopped if place is None else f"{trail.stopped}; chosen: {name_of(trail, place)}"


def details(answer: Answer) -> str:
    """Returns one line on an answer: its confidence, whether it was kept and complete, its tokens and seconds."""
    parts = [] if answer.preferred is None else [f"p {answer.preferred:.2f}"]
    parts += [] if answer.kept else ["not kept"]
    parts += [] if answer.finished else ["cut off"]
    return ", ".join([*parts, f"{answer.tokens} tokens", f"{answer.seconds:.2f} s"])


# ---------------------------------------------------------------------- terminal

_STYLES = {"same": "", "removed": "red strike", "added": "bold green"}
_MARKS = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}


def as_text(trail: Trail, *, marks: bool = False) -> Text:
    """Returns a prompt with its draft and revisions as text for a terminal; removed words are red, added ones green.

    Args:
        marks: writes removed words as [-…-] and added words as {+…+}, for output without colours.
    """
    from rich.text import Text

    text = Text()
    text.append(last_message(trail.prompt) + "\n", style="bold")
    for step in steps(trail):
        text.append_text(step_text(*step, marks=marks))
    text.append(f"  stopped: {ending(trail)}\n", style="dim")
    return text


def step_text(name: str, answer: Answer, pieces: list[Piece], *, marks: bool = False) -> Text:
    """Returns one answer of a trail as text for a terminal.

    Args:
        name: printed name of the answer, such as "revision 1".
        answer: the answer.
        pieces: its differences from the answer that it revised.
        marks: writes removed words as [-…-] and added words as {+…+}, for output without colours.
    """
    from rich.text import Text

    text = Text.assemble((f"  {name:<12}", "cyan"))
    for piece in pieces or [Piece("(empty)", "same")]:
        shown = _MARKS[piece.change].format(piece.text) if marks else piece.text
        text.append(shown.replace("\n", "\n" + " " * 14), style=_STYLES[piece.change])
    text.append(f"   {details(answer)}\n", style="dim")
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
_TAGS = {"same": "{}", "removed": "<del>{}</del>", "added": "<ins>{}</ins>"}


def as_page(trails: Iterable[Trail], title: str) -> str:
    """Returns the HTML of a page of prompts, drafts and revisions that loads no other file; every text is escaped."""
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
        row_class = "" if answer.kept else ' class="refused"'
        rows.append(f"<tr{row_class}><td>{name}</td><td>{text}</td><td>{details(answer)}</td></tr>")
    table = "\n".join(rows)
    return (
        f"<article><h2>{html.escape(last_message(trail.prompt))}</h2>\n<table>{table}</table>\n"
        f"<p>stopped: {html.escape(ending(trail))}</p></article>"
    )


def write_page(path: str | Path, trails: Iterable[Trail], title: str) -> None:
    """Writes an HTML page of prompts with their drafts and revisions to the file `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(Path(path), as_page(trails, title).encode(), flag="--html")
