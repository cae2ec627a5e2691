"""Prompts in a file → trails in a file: line by line, so that a killed run loses and repeats nothing."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from srpo.errors import ConfigError, DataError, InputError, Interrupted, OutputError, redacted
from srpo.pairs.read import PromptRow, Reject, read_prompts, reasons
from srpo.pairs.rejected import REJECTED_FILE, rejected_lines
from srpo.progress import Progress
from srpo.revise.reviser import Reviser, Settings
from srpo.revise.trail import Trail

log = logging.getLogger("srpo")
Draw = Callable[[int, Collection[int] | None], Iterator[Trail]]


def revise_file(
    make_reviser: Callable[[], Reviser],
    source: str,
    target: str,
    settings: Settings,
    *,
    bad_rows: str = "error",
    made_with: dict[str, str] | None = None,
    samples: int = 1,
) -> tuple[int, int]:
    """Writes one trail per prompt, in the prompts' order.

    Rows the target already holds are checked against the prompts and kept, a torn last line is dropped, and the rest
    is drawn; the file is then the same as without the interruption.

    Args:
        make_reviser: called once both files are known to be good.
        bad_rows: "skip" leaves out rows without a usable prompt, and takes it that some trails failed.
        made_with: what else decides the trails (the model's path, say); a target made otherwise is refused.
        samples: trails per prompt, one after the other; each is drawn anew.

    Returns:
        Trails in the target, and how many of them were there before.

    Raises:
        DataError: unusable prompts, or a target that holds trails of other prompts.
        ConfigError: a target made with other settings.
        OutputError: the target cannot be written.
        Interrupted: stopped by Ctrl-C; what is written stays.
        InputError: a server failed at some prompts. Their lines say why, and the same command asks for them again.
    """
    rejects: list[Reject] = []
    rows = read_prompts(source, rejects=rejects if bad_rows == "skip" else None)
    if rejects:
        log.warning("srpo: %d unusable rows of %s left out: %s", len(rejects), source, reasons(rejects))
    rows = [row for row in rows for _ in range(samples)]  # equal prompts are told apart by how often they came before
    path = Path(target)
    if rejects:
        kept = "".join(f"{line}\n" for line in rejected_lines(source, rejects))
        try:
            path.with_name(f"{path.name}.{REJECTED_FILE}").write_text(kept, "utf-8")
        except OSError as error:
            raise _unwritable(path, error) from None
    reviser = cache(make_reviser)

    def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
        return reviser().trails(rows, settings, skip=skip, only=only)

    drawn = {**asdict(settings), **(made_with or {})}
    return len(rows), write_trails(path, rows, draw, drawn, strict=bad_rows != "skip")


def write_trails(
    path: Path, rows: list[PromptRow], draw: Draw, made_with: Mapping[str, Any], *, strict: bool = True
) -> int:
    """Writes one trail per row to a file that may hold some of them already.

    Args:
        draw: (how many to leave out at the head, or the only places wanted) → trails, in the rows' order; called only
            if some are missing.
        made_with: all that decides the trails; a file begun with anything else is refused.
        strict: trails that failed are an error, once the others are written.

    Returns:
        How many were there before.

    Raises:
        SRPOError: as `revise_file` does.
    """
    try:
        _expect_same(redacted(dict(made_with)), path)
        present, failed = _present(path, rows)
        with path.open("a", encoding="utf-8") as file, Progress("prompts", len(rows), present) as progress:
            for trail in draw(present, None) if present < len(rows) else ():
                file.write(trail.to_json() + "\n")
                file.flush()
                progress.step()
        if failed:
            _ask_again(draw, path, failed)
    except OSError as error:
        raise _unwritable(path, error) from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; finished trails are in {path}", fix="the same command goes on") from None
    if failed or present < len(rows):
        _tell_failed(path, strict=strict)
    return present


def _unwritable(path: Path, error: OSError) -> OutputError:
    fix = "trails written so far stay; free some space or choose another --output"
    return OutputError(f"cannot be written: {error.strerror}", where=str(path), fix=fix)


def _ask_again(draw: Draw, path: Path, failed: list[int]) -> None:
    """Puts new trails in the places of those that failed."""
    lines = path.read_bytes().split(b"\n")
    places = iter(failed)
    try:
        with Progress("prompts asked again", len(failed)) as progress:
            for trail in draw(0, failed):
                lines[next(places)] = trail.to_json().encode()
                progress.step()
    finally:  # what came before an interruption counts, too
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(b"\n".join(lines))
        os.replace(beside, path)


def _tell_failed(path: Path, *, strict: bool) -> None:
    """Counts the trails that failed, by reason.

    Raises:
        InputError: there are some, and strict.
    """
    lines = _lines(path.read_bytes())
    reasons = (Trail.from_json(line, where=str(path)).failed for line in lines)
    failed = Counter(filter(None, reasons))
    if failed:
        most = "; ".join(f"{count} × {reason}" for reason, count in failed.most_common(3))
        problem = f"{failed.total()} of {len(lines)} prompts failed: {most}"
        if strict:
            raise InputError(problem, where=str(path), fix="the same command asks for them again, and for no other")
        log.warning("srpo: %s: %s", path, problem)


def _expect_same(settings: dict[str, object], path: Path) -> None:
    """Two halves of a file drawn differently would look like one. A file without a trail has no first half."""
    beside = path.with_name(path.name + ".settings.json")
    if path.exists() and path.stat().st_size and beside.exists():
        before = json.loads(beside.read_text("utf-8"))
        changed = [
            f"{key} {before.get(key)!r} → {value!r}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            fix = "use the same settings, or another --output"
            raise ConfigError(f"was begun with other settings: {', '.join(changed)}", where=str(path), fix=fix)
    else:
        beside.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _present(path: Path, rows: list[PromptRow]) -> tuple[int, list[int]]:
    """Whole trails at the head of the file, and the places of those that failed; a torn last line is cut off."""
    if not path.exists():
        return 0, []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    failed = []
    lines = _lines(content[:whole])
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        trail = Trail.from_json(line, where=where)
        if number > len(rows) or _asked(trail) != _asked(rows[number - 1]):
            raise DataError("a trail of another prompt", where=where, fix="choose another --output")
        if trail.failed:
            failed.append(number - 1)
    return len(lines), failed


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "replace").split("\n")[:-1]  # splitlines also splits inside JSON texts


def _asked(row: PromptRow | Trail) -> list[object]:
    """What the model is shown of a row, and its `meta` has beside the prompt."""
    return [row.prompt, *(row.meta.get(key) for key in ("tools", "chat_template_kwargs"))]
