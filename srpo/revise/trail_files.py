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

from srpo.data.read import PromptRow, Reject, read_prompts, reasons
from srpo.data.rejected import REJECTED_FILE, rejected_lines
from srpo.errors import ConfigError, DataError, InputError, Interrupted, OutputError
from srpo.progress import Progress
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.secrets import redacted

SETTINGS = ".settings.json"  # how the trails were drawn, beside them
OTHER = "choose another --output"
TRAIL = b'{"prompt": '  # how a trail's line begins
log = logging.getLogger("srpo")
Draw = Callable[[int, Collection[int] | None], Iterator[Trail]]


def revise_file(
    make_reviser: Callable[[], Reviser],
    source: str,
    target: str,
    settings: RevisionSettings,
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
        DataError: unusable prompts, or a target that holds trails of other prompts, or no trails, or with damaged
            settings beside it; it is left as it is.
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
    path, drawn = Path(target), {**asdict(settings), **(made_with or {})}
    if rejects:
        _found(path, rows, drawn)  # a target that is refused stays as it is, with nothing beside it
        kept = "".join(f"{line}\n" for line in rejected_lines(source, rejects))
        try:
            path.with_name(f"{path.name}.{REJECTED_FILE}").write_text(kept, "utf-8")
        except OSError as error:
            raise _unwritable(path, error) from None
    reviser = cache(make_reviser)

    def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
        return reviser().trails(rows, settings, skip=skip, only=only)

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
        present, failed, end = _found(path, rows, made_with)
        with path.open("a", encoding="utf-8") as file, Progress("prompts", len(rows), present) as progress:
            _begin(path, end, made_with)
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


def located_trails(path: str | Path) -> Iterator[tuple[str, Trail]]:
    """Yields each trail of a file with its place, `file:line`; skips blank lines.

    Raises:
        InputError: The file is missing or unreadable.
        DataError: A line is not a trail, or not UTF-8.
    """
    try:
        with open(path, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                where = f"{path}:{number}"
                if raw.strip():
                    yield where, Trail.from_json(raw.decode("utf-8-sig" if number == 1 else "utf-8"), where=where)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="a file written by `srpo revise`") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: byte {error.object[error.start]:#04x}", where=where) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None


def read_trails(path: str | Path, *, gold_key: str | None = "gold") -> list[Trail]:
    """Reads the trails of one file; leaves failed trails out and logs their number.

    Args:
        gold_key: key of the gold answer that each row's `meta` must have; None requires no gold answer.

    Raises:
        InputError: the file is missing or unreadable.
        DataError: a line is not a trail or has no gold answer, or the file has no trails.
    """
    trails, failed = [], 0
    for where, trail in located_trails(path):
        if trail.failed:
            failed += 1
        elif gold_key is not None and gold_key not in trail.meta:
            has = ", ".join(map(repr, trail.meta)) or "nothing"
            fix = "put the gold answer beside each prompt before `srpo revise`, or name its key by --gold_key"
            raise DataError(f"no {gold_key!r} in meta, only {has}", where=where, fix=fix)
        else:
            trails.append(trail)
    if failed:
        log.warning("srpo: %s: %d of %d trails failed and are left out", path, failed, failed + len(trails))
    if not trails:
        raise DataError("no trails", where=str(path), expected="one trail per line")
    return trails


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


def _found(path: Path, rows: list[PromptRow], made_with: Mapping[str, Any]) -> tuple[int, list[int], int]:
    """Whole trails at the head of the file, the places of those that failed, and where the head ends in bytes.

    Nothing is changed here: what is not a file of these trails is somebody's data.

    Raises:
        ConfigError: they were drawn with other settings; two halves drawn differently would look like one.
        DataError: it holds something else, or its settings cannot be read.
        OutputError: it cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
        before = _settings_of(path) if content else None  # a file without a trail has no first half
    except OSError as error:
        raise _unwritable(path, error) from None
    if before is not None:
        _expect_same(path, before, _settings(made_with))
    end = content.rfind(b"\n") + 1
    lines, failed = _lines(content[:end]), []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            trail = Trail.from_json(line, where=where)
        except DataError as error:
            raise DataError(error.what, where=where, expected=error.expected, fix=OTHER) from None
        if number > len(rows) or _asked(trail) != _asked(rows[number - 1]):
            raise DataError("a trail of another prompt", where=where, fix=OTHER)
        if trail.failed:
            failed.append(number - 1)
    if end < len(content) and (not (lines or before) or not _is_torn(content[end:])):
        expected = "a line that `srpo revise` was writing"
        where = f"{path}:{len(lines) + 1}"
        raise DataError("not the beginning of a trail", where=where, expected=expected, fix=OTHER)
    return len(lines), failed, end


def _is_torn(line: bytes) -> bool:
    """Whether a last line without its end is what `Trail.to_json` had begun to write."""
    start = line.rstrip(b"\0")[: len(TRAIL)]  # a power cut leaves NUL bytes
    try:
        return TRAIL.startswith(start) and "answers" in json.loads(line)
    except ValueError:
        return TRAIL.startswith(start)


def _begin(path: Path, end: int, made_with: Mapping[str, Any]) -> None:
    """Cuts off a torn last line and sees to it that the settings stand beside the trails."""
    if end < path.stat().st_size:
        os.truncate(path, end)
    beside = _beside(path)
    if not end or not beside.exists():
        beside.write_text(json.dumps(_settings(made_with), indent=2) + "\n", "utf-8")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SETTINGS)


def _settings(made_with: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = redacted(dict(made_with))
    return found


def _settings_of(path: Path) -> dict[str, Any] | None:
    """What stands beside a file of trails; None where nothing does.

    Raises:
        DataError: it cannot be read.
    """
    beside = _beside(path)
    if not beside.exists():
        return None
    try:
        found = json.loads(beside.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fix = f"choose another --output; or delete it, if {path.name} was drawn as it is to go on"
        raise DataError("damaged", where=str(beside), expected="the settings that the trails were drawn with", fix=fix)
    return found


def _expect_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Settings at their default may be left out of either, so a key that one side lacks counts too."""
    changed = [
        f"{key} {_said(before, key)} → {_said(now, key)}"
        for key in {**now, **before}
        if before.get(key, "") != now.get(key, "")
    ]
    if changed:
        fix = "use the same settings, or another --output"
        raise ConfigError(f"was begun with other settings: {', '.join(changed)}", where=str(path), fix=fix)


def _said(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8", "replace").split("\n")[:-1]  # splitlines also splits inside JSON texts


def _asked(row: PromptRow | Trail) -> list[object]:
    """What the model is shown of a row, and its `meta` has beside the prompt."""
    return [row.prompt, *(row.meta.get(key) for key in ("tools", "chat_template_kwargs"))]
