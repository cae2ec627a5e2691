"""The cache of drawn trails (a prompt with draft and revisions): a file per list of prompts, models and settings.

The name of a file has the sha256 of the files of the model and of its reference, of the prompts, the template and the
settings. A changed model is therefore drawn again, a moved one is not, and an interrupted run resumes: finished trails
are in the file, finished answers of the batch under way in a journal beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.data.read import PromptRow
from srpo.generate.journal import Journal, JournaledEngine
from srpo.revise.settings import ANSWERS
from srpo.revise.trail import Trail
from srpo.revise.trail_files import located_trails, write_trails

if TYPE_CHECKING:
    from srpo.revise.reviser import Reviser

log = logging.getLogger("srpo")
# (reviser, number of leading trails to leave out, row numbers to draw or None for all) → trails
Draw = Callable[["Reviser", int, Collection[int] | None], Iterator[Trail]]
# Files that decide a model's answers; optimiser states, logs and cards do not.
DECIDES = (".safetensors", ".json", ".jinja", ".model", ".txt")
IGNORED = ("trainer_state.json", "run.json", "results.json", "added_by_user.txt")


def cache_file(
    folder: Path, name: str, rows: Sequence[PromptRow], made_with: Mapping[str, object]
) -> tuple[Path, dict[str, object]]:
    """Returns the path of the cache file for answers to some prompts, and `made_with` with a hash of the prompts added.

    The path contains a hash of that mapping, so that other prompts, models or settings get another file.

    Args:
        name: readable part of the file's name.
        made_with: models and settings that decide the answers.
    """
    asked = json.dumps([row._replace(where="") for row in rows], sort_keys=True, default=str)
    made = {**made_with, "prompts": hashlib.sha256(asked.encode()).hexdigest()}
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
    return folder / f"{safe}.{key}.jsonl", made


def models_in(model: str, reference: str | None, template: str | None) -> dict[str, object]:
    """Returns digests of a model and its reference, and the text of a template file, to identify cached answers."""
    file = Path(template or "")
    return {
        "model": content_hash(model),
        "reference": content_hash(reference) if reference else "",
        "template": file.read_text("utf-8") if file.is_file() else template or "saved",
    }


def cached_trails(
    path: Path, rows: list[PromptRow], made_with: Mapping[str, object], reviser: Callable[[], Reviser], draw: Draw
) -> list[Trail]:
    """Returns one trail (a prompt with draft and revisions) per prompt; draws those that the cache file lacks.

    A trail that failed has its reason in `failed`.

    Args:
        path, made_with: the two results of `cache_file`: the file, and all that decides its answers.
        rows: the prompts.
        reviser: loads the reviser; called only if trails are missing.
        draw: called as draw(reviser, skip, only); yields trails in the order of the rows. It leaves out the first
            `skip` rows; if `only` is not None, it draws just the rows with these numbers.

    Raises:
        OutputError: the file cannot be written.
        Interrupted: Ctrl-C; finished trails and answers stay.
    """
    journal = path.with_name(path.name + ANSWERS)

    def journaled(skip: int, only: Collection[int] | None) -> Iterator[Trail]:
        found = reviser()
        engine = found.engine
        found.engine = JournaledEngine(engine, Journal(journal, durable=False))
        try:
            yield from draw(found, skip, only)
        finally:
            found.engine = engine

    present = write_trails(path, rows, journaled, made_with, strict=False)
    journal.unlink(missing_ok=True)
    log.info("srpo: %s: %d trails, %d of them from the cache", path, len(rows), present)
    return [trail for _, trail in located_trails(path)]


@cache
def content_hash(path: str) -> str:
    """Returns a sha256 over the files in a model's folder that decide its answers; an adapter's base is included.

    For a model named on the hub, returns its name with the commit in the local cache.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in DECIDES and file.name not in IGNORED and not file.name.startswith("optimizer"):
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
            if file.name == "adapter_config.json":
                base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
                digest.update(content_hash(base).encode() if base else b"")
    return digest.hexdigest()


def _commit(name: str) -> str:
    """The commit of a hub model in the local hub cache; "" if the model has not been downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""
