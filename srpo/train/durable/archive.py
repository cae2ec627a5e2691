"""What an earlier run has left in a run folder, and where it goes when another one starts afresh there.

Nothing of it is mixed up with the new run, and nothing is lost: it is moved into a folder of its own, which is a run
folder like any other and can be gone on with. What is no run's is left alone, for people keep other files there.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from srpo.data.rejected import REJECTED_FILE
from srpo.disk import sync, write_file
from srpo.model.weights.card import CARD_FILE
from srpo.train.durable.checkpoint import checkpoints, listed
from srpo.train.durable.nonfinite import NONFINITE_FILE
from srpo.train.metrics import METRICS_FILE
from srpo.train.run_record import RECORD_FILE

log = logging.getLogger("srpo")


def set_aside(folder: Path) -> Path | None:
    """Makes room for a new run; where the earlier one is now, None if there was none.

    The record of a run that was stopped before it logged a thing is no run.
    """
    saved, model, records = checkpoints(folder), _model(folder), _records(folder)
    if not saved and not model and all(path.name == RECORD_FILE for path in records):
        return None
    aside = next(path for n in range(1, 10**6) if not (path := folder / f"earlier-{n}").exists())
    aside.mkdir()
    # Killed halfway, the folder still has the newest checkpoint; the manifest of the model, which makes it the
    # finished one of its run, goes after all that it vouches for.
    for path in [*(path for _, path in reversed(saved)), *records, *model]:
        place = aside / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name == CARD_FILE:
            write_file(place, path.read_bytes())  # people write in it, and the new run's keeps what they wrote
        else:
            path.rename(place)
    sync(aside)
    sync(folder)
    what = [f"checkpoints, the newest of step {saved[0][0]}"] if saved else []
    what += ["a model"] if model else []
    what += [path.name for path in records]
    said = "srpo: starting afresh; what an earlier run left here is now in %s: %s"
    log.warning(said, aside, "; ".join(what))
    return aside


def with_checkpoints(folder: Path) -> Path | None:
    """The newest of the earlier runs in a folder that has checkpoints; None when none has."""
    found = [(int(path.name[8:]), path) for path in folder.glob("earlier-*") if re.fullmatch(r"earlier-\d+", path.name)]
    return next((path for _, path in sorted(found, reverse=True) if checkpoints(path)), None)


def _records(folder: Path) -> list[Path]:
    """Files that tell of a run, those that say something."""
    names = [METRICS_FILE, REJECTED_FILE, RECORD_FILE]
    nonfinite = [folder / NONFINITE_FILE, *sorted(folder.glob(f"process-*-{NONFINITE_FILE}"))]
    return [path for path in (*(folder / name for name in names), *nonfinite) if path.is_file() and path.stat().st_size]


def _model(folder: Path) -> list[Path]:
    """The files of the finished model by its manifest, which is the last; none where no manifest can be read."""
    return [path for name in listed(folder) if (path := folder / name).is_file()]
