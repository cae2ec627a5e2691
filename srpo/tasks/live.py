"""Shows the progress of the demo's steps in a terminal, and its example answers as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from srpo.progress import clock
from srpo.report.diff import diff
from srpo.revise.trail import Trail
from srpo.tasks.stages import Counts

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class Stage:
    """One line of the demo's live display: a step's share of done items, its seconds, and the seconds left."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.ended = name, 0.0, 0.0

    def line(self, done: int, total: int, now: float) -> str:
        """Returns the progress of one step of the demo as a line of text; the time left follows from the mean speed.

        Args:
            done, total: number of finished items and of all.
            now: the time, in seconds of the clock `time.monotonic`.

        Example:
            >>> stage = Stage("pairs")
            >>> stage.line(0, 100, now=2.0)
            'pairs                         waiting'
            >>> _ = stage.line(1, 100, now=10.0)
            >>> stage.line(51, 100, now=15.0)
            'pairs                         ###############...............   5 s, 5 s left'
        """
        self.begun = self.begun or (now if done else 0.0)
        self.ended = self.ended or (now if total and done == total else 0.0)
        if not self.begun:
            return f"{self.name:<30}waiting"
        filled = "#" * round(30 * done / total)
        seconds = (self.ended or now) - self.begun
        left = "" if self.ended else f", {clock(seconds * (total - done) / done)} left"
        return f"{self.name:<30}{filled:.<30} {clock(seconds):>5}{left}"


class Board:
    """The demo's live display for the library rich, one line per step; reads the shared counts whenever it is drawn."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        names = list(counts.place)
        prefix = f"{names[0].partition(': ')[0]}: " if names else ""
        cut = len(prefix) if all(name.startswith(prefix) for name in names) else 0  # the seed, if it is the only one
        self.stages = [(name, Stage(name[cut:])) for name in names]

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        now = monotonic()
        return Text("\n".join(stage.line(*self.counts[name], now) for name, stage in self.stages))


@contextmanager
def shown(counts: Counts, console: Console) -> Iterator[None]:
    """Inside this `with` block, the progress of the demo is drawn four times a second, if this is a terminal."""
    from rich.live import Live

    if not console.is_terminal:
        yield
        return
    with Live(Board(counts), console=console, refresh_per_second=4, redirect_stderr=False):
        yield


def as_lines(trails: Sequence[Trail]) -> Iterator[Text]:
    """Yields one coloured line per trail: prompt, draft, revisions up to the last change, and the model's confidence.

    Digits that a revision changes are bold green, a refused revision is struck through. An answer equal to the gold
    answer ends with "right", every other answer with "wrong".
    """
    from rich.text import Text

    for trail in trails:
        line = Text(f"{trail.prompt}  ")
        in_hand = trail.answers[0].text
        line.append(in_hand)
        for k, answer in enumerate(trail.answers[1:], 1):
            if answer.text == in_hand:
                continue
            line.append(" → ", "dim")
            if answer.kept:
                for piece in diff(in_hand, answer.text):
                    if piece.change != "removed":
                        line.append(piece.text, "bold green" if piece.change == "added" else "")
            else:
                line.append(answer.text, "strike dim")
            p = "" if answer.preferred is None else f"p {answer.preferred:.2f}, "
            line.append(f" ({p}{'revision' if answer.kept else 'refused'} {k})", "dim")
            in_hand = answer.text if answer.kept else in_hand
        right = in_hand == trail.meta.get("gold")
        yield line.append("  right" if right else "  wrong", "green" if right else "red")
