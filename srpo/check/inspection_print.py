"""Prints the terminal output of `srpo check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srpo.check.inspection import NAMES, Inspection
from srpo.check.thumbnail import shows_thumbnails, thumbnail
from srpo.data.picture import Picture
from srpo.errors import InputError

if TYPE_CHECKING:
    from rich.text import Text

SHOWN = 3_000  # number of letters shown from each end of a context


def print_inspection(found: Inspection) -> None:
    """Prints the findings on data, examples first, so that the counts stay on the screen; in a file no line wraps."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for each in found.examples:
        console.print(f"[bold]{each.role}[/bold] ({each.where}); the scored text is between >> and <<")
        for picture in each.pictures if shows_thumbnails(console) else ():
            console.print(_shown(picture))
        text = Text(_ends(each.context), style="dim").append(">>", style="not dim bold")
        console.print(text.append(each.answer, style="not dim bold green").append("<<", style="not dim bold"))
        console.print()
    for sentence in found.sentences():
        console.print(sentence, markup=False)
    for reason in found.reasons:
        more = ", …" if reason.count > len(reason.where) else ""
        console.print(f"  {reason.count} × {reason.reason} ({', '.join(reason.where)}{more})", markup=False)
    for leak in found.leaks:
        console.print(f"  {leak}", markup=False)
    limit = [f"over {found.max_length}"] if found.max_length else []
    table = Table("tokens", box=None)
    for column in ("median", "95 %", "longest", *limit):
        table.add_column(column, justify="right")
    for name, lengths in found.lengths.items():
        cells = lengths if limit else lengths[:3]
        table.add_row(NAMES.get(name, name), *map(str, cells))
    console.print()
    console.print(table)


def _shown(picture: Picture) -> Text | str:
    """A picture as text, or why there is none: a picture that cannot be read any more does not end the report."""
    try:
        return thumbnail(picture)
    except InputError as problem:
        from rich.markup import escape

        return escape(str(problem))


def _ends(text: str) -> str:
    left_out = len(text) - 2 * SHOWN
    return text if left_out <= 0 else f"{text[:SHOWN]}\n… {left_out} letters …\n{text[-SHOWN:]}"
