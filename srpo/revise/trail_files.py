"""Files of trails, each line a prompt with its draft and its revisions: the only reader and the only writer.

Trails are written as they are drawn, so a killed run loses no finished trail and repeats none. The settings that decide
the trails are in a second file, so that the halves of a file cannot come from different settings.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.data.read import PromptRow, Reject, read_prompts, reasons
from srpo.data.rejected import REJECTED_FILE, rejected_lines
from srpo.data.source import AnySource, Source
from srpo.disk import write_file
from srpo.errors import ConfigError, DataError, InputError, Interrupted, OutputError
from srpo.progress import Progress
from srpo.revise.settings import ANSWERS, RevisionSettings
from srpo.revise.trail import Trail
from srpo.secrets import redacted

if TYPE_CHECKING:
    from srpo.revise.reviser import Reviser

SETTINGS = ".settings.json"  # suffix of the file with the settings
OTHER = "choose another --output"
TRAIL = b'{"prompt": '  # first bytes of a trail's line
log = logging.getLogger("srpo")
Draw = Callable[[int, Collection[int] | None], Iterator[Trail]]


def revise_file(
    make_reviser: Callable[[], Reviser],
    source: AnySource,
    target: str,
    settings: RevisionSettings,
    *,
    bad_rows: str = "error",
    made_with: dict[str, str] | None = None,
    samples: int = 1,
) -> tuple[int, int]:
    """Drafts and revises an answer to each prompt of a file, and writes one line per prompt, in the same order.

    Trails already in the target are compared with the prompts and kept, and a torn last line is removed. The finished
    file equals that of an uninterrupted run.

    Args:
        make_reviser: Makes the reviser; called after both files have been checked.
        source: File of prompts to read.
        target: File of trails to write.
        settings: Sampling of the trails, and the policy.
        bad_rows: "error" stops at a row without a usable prompt; "skip" leaves it out, and accepts failed trails.
        made_with: Other settings that decide the trails, such as the model's path.
        samples: Number of independently drawn trails per prompt, on consecutive lines.

    Returns:
        Number of trails in the target, and number of trails that were there before.

    Raises:
        DataError: Unusable prompts, or a target with other prompts, other lines or damaged settings; the target is left
            as it is.
        ConfigError: A target made with other settings.
        OutputError: The target cannot be written.
        Interrupted: Ctrl-C; written trails stay.
        InputError: An engine failed on some prompts. Their lines give the reason, and the same command tries them
            again.
    """
    rejects: list[Reject] = []
    rows = read_prompts(source, rejects=rejects if bad_rows == "skip" else None)
    rows = [row for row in rows for _ in range(samples)]  # the n-th of equal prompts has a key of its own
    path, drawn = Path(target), {**settings.made_with(), **(made_with or {})}
    if rejects:
        log.warning("srpo: %d unusable rows of %s left out: %s", len(rejects), Source.of(source).name, reasons(rejects))
        _finished(path, rows, drawn)  # writes nothing beside a target that is refused
        lines = "".join(f"{line}\n" for line in rejected_lines(source, rejects))
        write_file(path.with_name(f"{path.name}.{REJECTED_FILE}"), lines.encode(), flag="--output")
    reviser = cache(make_reviser)

    def draw(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
        return reviser().trails(rows, settings, skip=skip, only=only)

    return len(rows), write_trails(path, rows, draw, drawn, strict=bad_rows != "skip")


def write_trails(
    path: Path, rows: list[PromptRow], draw: Draw, made_with: Mapping[str, Any], *, strict: bool = True
) -> int:
    """Writes one trail (a prompt, its draft and revisions) per row to a file that may already hold the first of them.

    Args:
        path: The file of trails.
        rows: The prompts.
        draw: Called as draw(skip, only) if trails are missing; yields trails in the order of the rows. It leaves out
            the first `skip` rows; if `only` is not None, it draws just the rows with these numbers.
        made_with: All settings that decide the trails; a file made with other settings is refused.
        strict: True raises an error for failed trails, after the others are written.

    Returns:
        Number of trails that were there before.

    Raises:
        SRPOError: As in `revise_file`.
    """
    try:
        present, failed, end = _finished(path, rows, made_with)
        with path.open("a", encoding="utf-8") as file, Progress("prompts", len(rows), present) as progress:
            _begin(path, end, made_with)
            for trail in draw(present, None) if present < len(rows) else ():
                file.write(trail.to_json() + "\n")
                file.flush()
                progress.step()
        if failed:
            _draw_again(draw, path, failed)
    except OSError as error:
        raise _unwritable(path, error) from None
    except KeyboardInterrupt:
        journal = path.with_name(path.name + ANSWERS)
        others = f", other finished answers in {journal}" if journal.exists() else ""
        raise Interrupted(
            f"interrupted; finished trails are in {path}{others}", fix="the same command goes on"
        ) from None
    _report_failed(path, strict=strict)
    return present


def located_trails(path: str | Path) -> Iterator[tuple[str, Trail]]:
    """Yields each trail (prompt, draft and revisions) of a file with its place, `file:line`; skips blank lines.

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


def read_trails(path: str | Path, *, gold_key: str | None = "gold", failed: bool = False) -> list[Trail]:
    """Reads the trails of one file: prompts with their drafts and revisions; omits failed ones and logs their number.

    Args:
        path: The file of trails.
        gold_key: Key of the gold answer that each row's `meta` must have; None requires no gold answer.
        failed: Keep failed trails among the others.

    Raises:
        InputError: The file is missing or unreadable.
        DataError: A line is not a trail or has no gold answer, or the file has no trails.
    """
    trails, left_out = [], 0
    for where, trail in located_trails(path):
        if trail.failed and not failed:
            left_out += 1
        elif gold_key is not None and gold_key not in trail.meta:
            has = ", ".join(map(repr, trail.meta)) or "nothing"
            fix = "put the gold answer beside each prompt before `srpo revise`, or name its key by --gold_key"
            raise DataError(f"no {gold_key!r} in meta, only {has}", where=where, fix=fix)
        else:
            trails.append(trail)
    if left_out:
        log.warning("srpo: %s: %d of %d trails failed and are left out", path, left_out, left_out + len(trails))
    if not trails:
        raise DataError("no trails", where=str(path), expected="one trail per line")
    return trails


def _unwritable(path: Path, error: OSError) -> OutputError:
    fix = "trails written so far stay; free some space or choose another --output"
    return OutputError(f"cannot be written: {error.strerror}", where=str(path), fix=fix)


def _draw_again(draw: Draw, path: Path, failed: list[int]) -> None:
    """Draws the trails at the indices `failed` of a file again, and replaces their lines."""
    lines = path.read_bytes().split(b"\n")
    places = iter(failed)
    try:
        with Progress("failed prompts", len(failed)) as progress:
            for trail in draw(0, failed):
                lines[next(places)] = trail.to_json().encode()
                progress.step()
    finally:  # after an interruption too
        write_file(path, b"\n".join(lines), flag="--output")


def _report_failed(path: Path, *, strict: bool) -> None:
    """Counts the failed trails of a file by reason; logs the counts, or raises an error if `strict`.

    Raises:
        InputError: An engine failed, and `strict`.
        DataError: Prompts have no room in the model's context, and `strict`.
    """
    trails = [trail for _, trail in located_trails(path)]
    failed = Counter(trail.failed for trail in trails if trail.failed)
    if failed:
        most = "; ".join(f"{count} × {reason}" for reason, count in failed.most_common(3))
        problem = f"{failed.total()} of {len(trails)} prompts failed: {most}"
        if strict and any(trail.can_retry for trail in trails):
            raise InputError(problem, where=str(path), fix="the same command tries them again, and no others")
        if strict:
            fix = "shorten these prompts or lower max_new_tokens; --bad_rows skip accepts the file as it is"
            raise DataError(problem, where=str(path), fix=fix)
        log.warning("srpo: %s: %s", path, problem)


def _finished(path: Path, rows: list[PromptRow], made_with: Mapping[str, Any]) -> tuple[int, list[int], int]:
    """Returns the number of trails in a file, the indices of those to draw again, and the length of all in bytes.

    The file is not changed: it may be a user's data instead of trails.

    Raises:
        ConfigError: The trails were drawn with other settings.
        DataError: The file holds other data than trails of `rows`, or its settings are damaged.
        OutputError: The file cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
        before = _read_settings(path) if content else None  # an empty file has no settings to keep
    except OSError as error:
        raise _unwritable(path, error) from None
    if before is not None:
        _expect_same(path, before, redacted(dict(made_with)))
    end = content.rfind(b"\n") + 1
    # str.splitlines would also split at separators inside a text.
    lines, failed = content[:end].decode("utf-8", "replace").split("\n")[:-1], []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            trail = Trail.from_json(line, where=where)
        except DataError as error:
            raise DataError(error.what, where=where, expected=error.expected, fix=OTHER) from None
        if number > len(rows) or _request(trail) != _request(rows[number - 1]):
            raise DataError("a trail of another prompt", where=where, fix=OTHER)
        if trail.can_retry:
            failed.append(number - 1)
    if end < len(content) and (not (lines or before) or not _is_torn(content[end:])):
        expected = "a line that `srpo revise` was writing"
        where = f"{path}:{len(lines) + 1}"
        raise DataError("not the beginning of a trail", where=where, expected=expected, fix=OTHER)
    return len(lines), failed, end


def _is_torn(line: bytes) -> bool:
    """Returns whether a file's incomplete last line is the beginning of a trail."""
    start = line.rstrip(b"\0")[: len(TRAIL)]  # a power cut leaves NUL bytes
    try:
        return TRAIL.startswith(start) and "answers" in json.loads(line)
    except ValueError:
        return TRAIL.startswith(start)


def _begin(path: Path, end: int, made_with: Mapping[str, Any]) -> None:
    """Cuts a file of trails at `end` bytes, which removes a torn last line, and writes its settings file."""
    if end < path.stat().st_size:
        os.truncate(path, end)
    beside, settings = path.with_name(path.name + SETTINGS), json.dumps(redacted(dict(made_with)), indent=2) + "\n"
    if not end and not (beside.exists() and beside.read_bytes() == settings.encode()):
        path.with_name(path.name + ANSWERS).unlink(missing_ok=True)  # answers of other settings
    if not end or not beside.exists():
        beside.write_text(settings, "utf-8")


def _read_settings(path: Path) -> dict[str, Any] | None:
    """Reads the settings that a file of trails was drawn with; None without a settings file.

    Raises:
        DataError: The settings file is damaged.
    """
    beside = path.with_name(path.name + SETTINGS)
    if not beside.exists():
        return None
    try:
        found = json.loads(beside.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fix = f"choose another --output; or delete the settings file, if {path.name} was drawn with these settings"
        raise DataError("damaged", where=str(beside), expected="the settings that the trails were drawn with", fix=fix)
    return found


def _expect_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError if a file's earlier settings differ from the current ones; a missing key equals ""."""

    def shown(settings: dict[str, Any], key: str) -> str:
        return repr(settings[key]) if key in settings else "not set"

    keys = [key for key in {**now, **before} if before.get(key, "") != now.get(key, "")]
    if keys:
        changes = ", ".join(f"{key} {shown(before, key)} → {shown(now, key)}" for key in keys)
        fix = "use the same settings, or another --output"
        raise ConfigError(f"was begun with other settings: {changes}", where=str(path), fix=fix)


def _request(row: PromptRow | Trail) -> list[object]:
    """Returns the parts of a row or trail that the model sees: prompt, tools and chat-template options."""
    return [row.prompt, *(row.meta.get(key) for key in ("tools", "chat_template_kwargs"))]
