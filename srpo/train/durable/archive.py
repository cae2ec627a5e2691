"""Moves the files of an earlier run out of the run folder when a new run starts from scratch there.

The earlier run goes into `earlier-N`, a run folder that can itself be resumed, so nothing is mixed up or lost. Files
that do not belong to a run stay in place.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from srpo.data.rejected import REJECTED_FILE
from srpo.disk import sync, write_file
from srpo.model.weights.card import CARD_FILE
from srpo.train.durable.checkpoint import checkpoints, manifest_names
from srpo.train.durable.nonfinite import NONFINITE_FILE
from srpo.train.metrics import METRICS_FILE
from srpo.train.run_record import RECORD_FILE

log = logging.getLogger("srpo")


def archive_earlier_run(folder: Path) -> Path | None:
    """Moves the files of an earlier run in `folder` to its subfolder `earlier-N`, and returns that subfolder.

    None, with nothing moved, if there is no earlier run. A folder with a run record alone holds no run: it stopped
    before its first log.
    """
    saved, records = checkpoints(folder), _records(folder)
    model = [path for name in manifest_names(folder) if (path := folder / name).is_file()]
    if not saved and not model and all(path.name == RECORD_FILE for path in records):
        return None
    archive = next(path for n in range(1, 10**6) if not (path := folder / f"earlier-{n}").exists())
    archive.mkdir()
    # Newest checkpoint and model manifest last: after a kill halfway, the folder still has its newest checkpoint, and
    # no manifest vouches for a model whose files are not all there.
    for path in [*(path for _, path in reversed(saved)), *records, *model]:
        place = archive / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name == CARD_FILE:
            write_file(place, path.read_bytes())  # a copy: the new run keeps the text that people wrote into the card
        else:
            path.rename(place)
    sync(archive)
    sync(folder)
    moved = [f"checkpoints up to step {saved[0][0]}"] if saved else []
    moved += ["a model"] if model else []
    moved += [path.name for path in records]
    log.warning("srpo: starting from scratch; moved the earlier run to %s: %s", archive, "; ".join(moved))
    return archive


def newest_with_checkpoints(folder: Path) -> Path | None:
    """Returns the newest subfolder `earlier-N` of a run folder that contains checkpoints, or None."""
    found = [(int(path.name[8:]), path) for path in folder.glob("earlier-*") if re.fullmatch(r"earlier-\d+", path.name)]
    return next((path for _, path in sorted(found, reverse=True) if checkpoints(path)), None)


def _records(folder: Path) -> list[Path]:
    """Paths of the non-empty log and record files in a run folder."""
    names = [METRICS_FILE, REJECTED_FILE, RECORD_FILE, NONFINITE_FILE]
    files = [*(folder / name for name in names), *sorted(folder.glob(f"process-*-{NONFINITE_FILE}"))]
    return [path for path in files if path.is_file() and path.stat().st_size]
