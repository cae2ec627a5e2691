"""Run state on disk: checkpoints and the finished model. The only code that writes, and believes, either.

A save is written into a staging folder, sealed with a manifest, put on the disk and only then given its name:

    stage → manifest → fsync of files and folder → rename → fsync of the parent → rotation

so that at every instant what carries the name of a checkpoint is a whole one. All but the first of these needs nothing
of the run any more, and goes on behind its next steps. Whoever reads believes nothing that the manifest does not vouch
for: each file by its size and sha256, and the manifest by a hash of its own.
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
from typing import Any

from srpo.disk import sync, writing
from srpo.errors import CheckpointError, OutputError, SRPOError

MANIFEST = "manifest.json"
STAGING = ".staging"  # saves that are not finished; anything in it is worth nothing
REPLACED = ".replaced"  # a checkpoint on its way out
FORMAT = 1
WEIGHTS_ALONE = "it holds the weights alone (save_only_model)"
log = logging.getLogger("srpo")


@dataclass(frozen=True)
class Manifest:
    """What a folder of run state holds and which run it is of.

    Attributes:
        step: optimiser steps taken.
        of: optimiser steps of the whole run.
        identity: key → value of everything that the run's numbers depend on.
        accepted: changes of the identity that were let pass: step, key, old and new value.
        resumable: it holds everything that going on needs, not the weights alone.
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
        """The run has taken all its steps."""
        return self.step >= self.of

    def sealed(self) -> bytes:
        """As it stands on the disk."""
        body = {"format": FORMAT, **asdict(self)}
        return (json.dumps({**body, "seal": _seal(body)}, indent=1) + "\n").encode()


class Invalid(Exception):
    """Why a folder is not believed."""


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of everything in the folder and puts all of it on the disk."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=_size, reverse=True)
    with ThreadPoolExecutor(4) as threads:  # hashing and waiting for the disk both leave the interpreter to others
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
    """Gives a sealed folder its name; what had the name before goes."""
    if target.exists():
        _discard(target)
    stage.rename(target)
    sync(target.parent)


def commit_files(stage: Path, target: Path) -> None:
    """Moves the files of a sealed folder into one that has others in it, the manifest last: until it is there, the
    rest is not believed to be a finished model."""
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
    """Makes a checkpoint of what is staged under that name, then deletes those that are too many (see `rotate`)."""
    with Writing(run):
        seal(run / STAGING / name, manifest)
        commit(run / STAGING / name, run / name)
        clear(run)
    with writing(run):
        rotate(run, keep, spare=spare)


def retract(folder: Path) -> None:
    """The folder's model is no longer the finished one of its run."""
    (folder / MANIFEST).unlink(missing_ok=True)
    sync(folder)


def read(folder: Path, *, step: int | None = None, alone: bool = True) -> Manifest:
    """The manifest, once every file of the folder has been found to be what it says.

    Args:
        step: the step that the folder's name promises.
        alone: nothing but what the manifest lists may be there; what a library finds, it loads.

    Raises:
        Invalid: something is not.
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
            raise Invalid(f"{name} has {size} bytes and not {wanted['bytes']}")
    with ThreadPoolExecutor(4) as threads:
        sums = threads.map(_sum, [folder / name for name in manifest.files])
        for (name, wanted), found in zip(manifest.files.items(), sums, strict=True):
            if found != wanted["sha256"]:
                raise Invalid(f"{name} is not what was written")
    return manifest


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of everything with a checkpoint's name, newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def newest(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint that can be believed; None when there is nothing with a checkpoint's name.

    Raises:
        CheckpointError: there are, and none can be believed.
    """
    reasons = []
    for step, path in checkpoints(folder):
        try:
            manifest = read(path, step=step)
            if not manifest.resumable:
                raise Invalid(WEIGHTS_ALONE)
        except Invalid as error:
            reasons.append(f"{path.name}: {error}")
            continue
        for reason in reasons:
            log.warning("srpo: not resuming from %s", reason)
        return path, manifest
    if not reasons:
        return None
    fix = "start afresh without --resume, in another folder to keep what is left of these"
    raise CheckpointError(f"no valid checkpoint: {'; '.join(reasons)}", where=str(folder), fix=fix)


def believed(folder: Path) -> Manifest:
    """The manifest of a checkpoint that was named.

    Raises:
        CheckpointError: it cannot be believed.
    """
    try:
        manifest = read(folder)
        if not manifest.resumable:
            raise Invalid(WEIGHTS_ALONE)
    except Invalid as reason:
        raise CheckpointError(str(reason), where=str(folder), expected="a checkpoint of srpo") from None
    return manifest


def listed(folder: Path) -> list[str]:
    """Names of all that a folder's manifest vouches for, whether it is there or not, and the manifest's own after
    them; of a manifest that is damaged its own, and none where there is none."""
    if not (folder / MANIFEST).exists():
        return []
    try:
        return [*_manifest(folder / MANIFEST).files, MANIFEST]
    except Invalid:
        return [MANIFEST]


def rotate(folder: Path, keep: int | None, *, spare: str | None = None) -> None:
    """Deletes all but the newest `keep` checkpoints.

    Args:
        keep: at least 1; None deletes nothing.
        spare: a checkpoint that stays in any case, the best one.
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
    """Removes what a save that was cut short has left."""
    for name in (STAGING, REPLACED):
        shutil.rmtree(folder / name, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(_size(path) for path in folder.rglob("*") if path.is_file())


def _discard(path: Path) -> None:
    """A folder loses its name at once, and its files one by one."""
    away = path.with_name(REPLACED)
    shutil.rmtree(away, ignore_errors=True)
    path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


class Writing:
    """Whatever a library says when the disk will not take what it writes becomes an `OutputError`.

    Not an `except`: the libraries that write know no common kind of error, and one of them raises a bare Exception.
    """

    SAYS_SO = ("os error", "inline_container", "PytorchStreamWriter", "iostream error", "file write failed")

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, SRPOError):
            return
        said = str(error).strip().split("\n")[0]
        if isinstance(error, OSError) or any(words in said for words in self.SAYS_SO):
            clear(self._folder)  # what there is room for again
            what = f"cannot be saved ({getattr(error, 'strerror', None) or said}); earlier checkpoints are as they were"
            fix = "make room, then go on with the same command and --resume"
            raise OutputError(what, where=str(self._folder), fix=fix) from None


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
    """sha256 of a manifest's contents: it vouches for the files, and this for it."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_inside(name: str) -> bool:
    """A manifest cannot point out of its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and path.as_posix() == name


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size
