"""Prompts in a file → trails in a file: line by line, so that a killed run loses and repeats nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from srpo.errors import ConfigError, DataError, Interrupted, OutputError, redacted
from srpo.pairs.read import PromptRow, Reject, read_prompts, reasons
from srpo.pairs.rejected import REJECTED_FILE, rejected_lines
from srpo.revise.reviser import Reviser, Settings
from srpo.revise.trail import Trail

log = logging.getLogger("srpo")


def revise_file(
    make_reviser: Callable[[], Reviser],
    source: str,
    target: str,
    settings: Settings,
    *,
    bad_rows: str = "error",
    made_with: dict[str, str] | None = None,
) -> tuple[int, int]:
    """Writes one trail per prompt, in the prompts' order.

    Rows the target already holds are checked against the prompts and kept, a torn last line is dropped, and the rest
    is drawn; the file is then the same as without the interruption.

    Args:
        make_reviser: called once both files are known to be good.
        made_with: what else decides the trails (the model's path, say); a target made otherwise is refused.

    Returns:
        Trails in the target, and how many of them were there before.

    Raises:
        DataError: unusable prompts, or a target that holds trails of other prompts.
        ConfigError: a target made with other settings.
        OutputError: the target cannot be written.
        Interrupted: stopped by Ctrl-C; what is written stays.
    """
    rejects: list[Reject] = []
    rows = read_prompts(source, rejects=rejects if bad_rows == "skip" else None)
    if rejects:
        log.warning("srpo: %d unusable rows of %s left out: %s", len(rejects), source, reasons(rejects))
    path = Path(target)
    try:
        if rejects:
            kept = "".join(f"{line}\n" for line in rejected_lines(source, rejects))
            path.with_name(f"{path.name}.{REJECTED_FILE}").write_text(kept, "utf-8")
        _expect_same(redacted({**asdict(settings), **(made_with or {})}), path)
        present = _present(path, rows)
        with path.open("a", encoding="utf-8") as file:
            if present < len(rows):
                done = present
                for trail in make_reviser().trails(rows, settings, skip=present):
                    file.write(trail.to_json() + "\n")
                    file.flush()
                    done += 1
                    if done % 100 == 0 or done == len(rows):
                        log.info("srpo: %d of %d prompts", done, len(rows))
    except OSError as error:
        fix = "trails written so far stay; free some space or choose another --output"
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path), fix=fix) from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; finished trails are in {path}", fix="the same command goes on") from None
    return len(rows), present


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


def _present(path: Path, rows: list[PromptRow]) -> int:
    """Whole trails at the head of the file; a torn last line is cut off."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    lines = content[:whole].decode("utf-8", "replace").split("\n")[:-1]  # splitlines also splits inside JSON texts
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        trail = Trail.from_json(line, where=where)
        if number > len(rows) or _asked(trail) != _asked(rows[number - 1]):
            raise DataError("a trail of another prompt", where=where, fix="choose another --output")
    return len(lines)


def _asked(row: PromptRow | Trail) -> list[object]:
    """What the model is shown of a row, and its `meta` has beside the prompt."""
    return [row.prompt, *(row.meta.get(key) for key in ("tools", "chat_template_kwargs"))]
