"""Draws several drafts of every prompt in a file, and revises each draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from srpo.data.source import AnySource
from srpo.errors import ConfigError
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail_files import revise_file


def sample_file(
    make_reviser: Callable[[], Reviser],
    source: AnySource,
    target: str,
    settings: RevisionSettings,
    *,
    samples: int,
    bad_rows: str = "error",
    made_with: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """Writes `samples` drafts, each with its revisions, for every prompt; resumes after the last line of the target.

    Args:
        make_reviser: makes the reviser; called after both files have been checked.
        source: file of prompts.
        target: file of trails (a prompt with a draft and its revisions) to write, `samples` consecutive lines a prompt.
        settings: sampling of drafts and revisions.
        bad_rows: "error" stops at an unusable row, "skip" leaves it out and accepts failed trails.
        made_with: other settings that decide the trails, such as the model's path.

    Returns:
        Number of trails in the target, and how many of them were in it before.

    Raises:
        ConfigError: `samples` below 1, or several greedy samples, which would be equal.
        SRPOError: a mistake in the prompts or the target, as in `revise_file`.
    """
    if samples < 1:
        raise ConfigError(f"{samples}", where="samples", expected="at least 1")
    if samples > 1 and settings.temperature == 0:
        fix = "sample at a temperature above 0, or one draft per prompt"
        raise ConfigError("greedy drafts of one prompt are equal", where="temperature", fix=fix)
    made = {**(made_with or {}), "samples": str(samples)}
    return revise_file(make_reviser, source, target, settings, bad_rows=bad_rows, made_with=made, samples=samples)
