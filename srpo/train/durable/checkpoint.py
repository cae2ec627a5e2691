"""Checkpoints and the finished model on disk; the only code that writes or verifies either.

A save goes through five steps, so that a folder with a checkpoint's name is always a complete checkpoint:

    stage → manifest → fsync of files and folder → rename → fsync of the parent → rotation

Only staging needs the run; the other steps happen in the background of the next training steps. Reading trusts only
files that match the size and sha256 in the manifest, and a manifest that matches its own hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from srpo.disk import sync, writing
from srpo.errors import CheckpointError, InputError, OutputError
from srpo.model.weights.load import read_pickled
from srpo.model.weights.untrusted import pickled

MANIFEST = "manifest.json"
STAGING = ".staging"  # unfinished saves; safe to delete
REPLACED = ".replaced"  # a checkpoint that is being deleted
FORMAT = 1
WEIGHTS_ONLY = "it holds only the weights (save_only_model)"
log = logging.getLogger("srpo")


@dataclass(frozen=True)
class Manifest:
    """Contents of the manifest file in a checkpoint or model folder: its files, and the run that wrote it.

    Attributes:
        step: optimiser steps taken.
        of: optimiser steps that the whole run will take.
        identity: key → value of everything that the run's numbers depend on.
        accepted: changes of the identity that the user accepted on resuming: step, key, old and new value of each.
        resumable: True if the folder holds the full training state, not only the weights.
        files: path below the folder → its bytes and sha256.
    """

    step: int
    of: int
    identity: Mapping[str, Any]
    accepted: list[dict[str, Any]] = field(default_factory=list)
    resumable: bool = True
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """True if the run that wrote the manifest has taken all its steps."""
        return self.step >= self.of

    def sealed(self) -> bytes:
        """Returns the bytes of the manifest file, which include a hash of its own contents."""
        body = {"format": FORMAT, **asdict(self)}
        return (json.dumps({**body, "seal": _seal(body)}, indent=1) + "\n").encode()


class Invalid(Exception):
    """Raised with the reason why a folder is not a valid checkpoint or model."""


def expect_weights(folder: Path) -> None:
    """Checks that a saved model has weights, before it is called saved.

    Raises:
        OutputError: none of the files has weights.
    """
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.rglob("*")):
        fix = "resume the run, whose checkpoints are kept, with settings that gather the weights before saving"
        raise OutputError("no weights were saved", where=str(folder.parent.parent), fix=fix)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Writes and returns the manifest of all files in a folder, with sizes and hashes, and syncs all to disk."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=_size, reverse=True)
    with ThreadPoolExecutor(4) as threads:  # hashing and fsync both release the interpreter lock
        synced, sums = threads.map(sync, files), threads.map(_sum, files)
        found = [
            (path.relative_to(folder).as_posix(), {"bytes": _size(path), "sha256": each})
            for path, each, _ in zip(files, sums, synced, strict=True)
        ]
    sealed = Manifest(**{**vars(manifest), "files": dict(sorted(found))})
    with (folder / MANIFEST).open("wb") as file:
        file.write(sealed.sealed())
        file.flush()
        os.fsync(file.fileno())
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(inner)
    return sealed


def commit(stage: Path, target: Path) -> None:
    """Renames `stage`, a folder with a manifest, to `target`, replacing an older folder of that name."""
    if target.exists():
        _discard(target)
    stage.rename(target)
    sync(target.parent)


def commit_files(stage: Path, target: Path) -> None:
    """Moves the files of `stage`, a folder with a manifest, into `target`, which may hold other files.

    The manifest moves last, because files without a manifest do not count as a finished model.
    """
    target.mkdir(parents=True, exist_ok=True)
    retract(target)
    for path in sorted(stage.iterdir(), key=lambda path: path.name == MANIFEST):
        place = target / path.name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        path.replace(place)
    sync(target)
    stage.rmdir()


def finish(run: Path, name: str, manifest: Manifest, *, keep: int | None, spare: str | None) -> None:
    """Turns the staged save `name` of a run into a checkpoint, then deletes surplus checkpoints (see `rotate`)."""
    with DiskErrors(run):
        seal(run / STAGING / name, manifest)
        commit(run / STAGING / name, run / name)
        clear(run)
    with writing(run):
        rotate(run, keep, spare=spare)


def retract(folder: Path) -> None:
    """Removes the manifest from a folder, so that the folder's model no longer counts as finished."""
    (folder / MANIFEST).unlink(missing_ok=True)
    sync(folder)


def read(folder: Path, *, step: int | None = None, alone: bool = True) -> Manifest:
    """Reads a folder's manifest, verifies every file in the folder against it, and returns it.

    Args:
        step: expected step, from the folder's name; None skips the comparison.
        alone: reject files that the manifest does not list, because a library would load them.

    Raises:
        Invalid: a file is missing, damaged, a link or not listed.
    """
    manifest = _manifest(folder / MANIFEST)
    if step is not None and manifest.step != step:
        raise Invalid(f"its {MANIFEST} is of step {manifest.step}")
    for name in manifest.files:
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise Invalid(f"{name} is a link")
        if not path.is_file():
            raise Invalid(f"{name} is missing")
    if alone:
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        if others := sorted(there - {*manifest.files, MANIFEST}):
            raise Invalid(f"{others[0]} is not in its manifest")
    for name, wanted in manifest.files.items():
        size = _size(folder / name)
        if size != wanted["bytes"]:
            raise Invalid(f"{name} has {size} bytes instead of {wanted['bytes']}")
    with ThreadPoolExecutor(4) as threads:
        sums = threads.map(_sum, [folder / name for name in manifest.files])
        for (name, wanted), found in zip(manifest.files.items(), sums, strict=True):
            if found != wanted["sha256"]:
                raise Invalid(f"sha256 of {name} differs from its manifest")
    return manifest


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Returns (step, path) of every folder named like a checkpoint, newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def newest(folder: Path) -> tuple[Path, Manifest] | None:
    """Returns the newest valid checkpoint of a run and its manifest; None in a folder without checkpoints.

    Raises:
        CheckpointError: no checkpoint is valid.
    """
    reasons = []
    for step, path in checkpoints(folder):
        try:
            manifest = read_resumable(path, step=step)
        except Invalid as error:
            reasons.append(f"{path.name}: {error}")
            continue
        for reason in reasons:
            log.warning("srpo: skipping %s", reason)
        return path, manifest
    if not reasons:
        return None
    fix = "start from scratch without --resume"
    raise CheckpointError(f"no valid checkpoint: {'; '.join(reasons)}", where=str(folder), fix=fix)


def read_resumable(folder: Path, *, step: int | None = None) -> Manifest:
    """Reads, verifies and returns the manifest of a checkpoint that a run can resume from.

    Args:
        step: expected step; None skips the comparison.

    Raises:
        Invalid: the checkpoint is damaged, of another step, or holds only weights.
    """
    manifest = read(folder, step=step)
    if not manifest.resumable:
        raise Invalid(WEIGHTS_ONLY)
    return manifest


def read_named(folder: Path) -> Manifest:
    """Reads, verifies and returns the manifest of a checkpoint folder that the user named.

    Raises:
        CheckpointError: the folder is not a valid checkpoint.
    """
    try:
        return read_resumable(folder)
    except Invalid as reason:
        raise CheckpointError(str(reason), where=str(folder), expected="a checkpoint of srpo") from None


def position(folder: Path, process: int, processes: int) -> dict[str, Any] | None:
    """Reads from a checkpoint the sums that a process had not logged yet (`DurableTrainer.running_sums`).

    If the run had another number of processes, every process gets the mean of their losses; the other sums are equal
    in all of them.

    Args:
        process, processes: index of this process, and number of processes.

    Returns:
        The sums by name; None if the checkpoint holds none.
    """
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("position-*.json"))]
    if len(found) in (0, processes):
        file = folder / f"position-{process}.json"
        return json.loads(file.read_text("utf-8")) if found else None
    return {**found[0], "loss": sum(each["loss"] for each in found) / len(found)}


def manifest_names(folder: Path) -> list[str]:
    """Returns the names of the files in a folder's manifest, then the manifest's own; [] without a manifest.

    Listed files may be missing. A damaged manifest gives its own name only.
    """
    if not (folder / MANIFEST).exists():
        return []
    try:
        return [*_manifest(folder / MANIFEST).files, MANIFEST]
    except Invalid:
        return [MANIFEST]


def rotate(folder: Path, keep: int | None, *, spare: str | None = None) -> None:
    """Deletes all checkpoints of a run but the newest `keep`.

    Args:
        keep: number of checkpoints that stay, at least 1; None deletes nothing.
        spare: path of the best checkpoint, which is never deleted; it counts as one of `keep`, if that is above 1.
    """
    if keep is None:
        return
    best = Path(spare).name if spare else ""
    found = [path for _, path in checkpoints(folder)]
    kept = found[:keep]
    if any(path.name == best for path in found[keep:]):
        kept = found[: max(keep - 1, 1)]
    for path in found:
        if path not in kept and path.name != best:
            _discard(path)


def clear(folder: Path) -> None:
    """Removes the leftovers of an interrupted save from a run folder."""
    for name in (STAGING, REPLACED):
        shutil.rmtree(folder / name, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Returns the total size in bytes of all files in a folder."""
    return sum(_size(path) for path in folder.rglob("*") if path.is_file())


def _discard(path: Path) -> None:
    """Deletes a folder; renames it first, so that no half-deleted folder has a checkpoint's name."""
    away = path.with_name(REPLACED)
    shutil.rmtree(away, ignore_errors=True)
    path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


class DiskErrors:
    """Inside this `with` block, a library's error about a failed write becomes an `OutputError`.

    It is raised after the leftovers of the save in `folder` are deleted. An `except` clause could not do this: the
    libraries share no error type, and tokenizers raises a bare Exception.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _is_failed_write(error, trace):
            clear(self._folder)  # frees space
            reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
            what = f"cannot be saved ({reason}); earlier checkpoints are unchanged"
            fix = "free some space, then continue with the same command and --resume"
            raise OutputError(what, where=str(self._folder), fix=fix) from None


def _is_failed_write(error: BaseException | None, trace: TracebackType | None) -> bool:
    """True if an error means that the system, safetensors, tokenizers or torch.save could not write a file.

    `trace` is the error's traceback: torch.save raises errors of general types.
    """
    from safetensors import SafetensorError

    while trace and trace.tb_next:
        trace = trace.tb_next
    in_torch_save = trace is not None and trace.tb_frame.f_globals.get("__name__") == "torch.serialization"
    return isinstance(error, OSError | SafetensorError) or type(error) is Exception or in_torch_save


def unsafe_pickle(folder: Path) -> CheckpointError:
    """Returns the error for a checkpoint folder with a pickle file that holds more than tensors and numbers."""
    what = "a pickle file would run code when unpickled, so it was not loaded"
    for name in pickled(folder):
        try:
            read_pickled(folder / name)
        except InputError as error:
            what = f"{name} {error.what}"
            break
    return CheckpointError(what, where=str(folder), fix="resume only from checkpoints of your own runs")


# ---------------------------------------------------------------------- the manifest


def _manifest(path: Path) -> Manifest:
    if path.is_symlink():
        raise Invalid(f"{MANIFEST} is a link")
    try:
        text = path.read_bytes()
        body = json.loads(text)
        body.pop("seal")
        if body.pop("format") != FORMAT:
            raise Invalid(f"its {MANIFEST} is of another format")
        manifest = Manifest(**body)
        whole = text == manifest.sealed() and all(map(_is_inside, manifest.files))
    except FileNotFoundError:
        raise Invalid(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise Invalid(f"its {MANIFEST} is damaged")
    return manifest


def _seal(body: Mapping[str, Any]) -> str:
    """Returns the sha256 of a manifest's contents, `body`, which the manifest stores beside them."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_inside(name: str) -> bool:
    """Whether a path listed in a manifest stays inside the manifest's folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size
