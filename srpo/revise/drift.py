"""Statistics of the prompts a calibration saw, and a check that today's prompts are like them.

Length of a prompt's context in tokens, and log π per token of its draft: both are known before any revision. A policy
that gained on the calibrated prompts may lose on others, so unlike prompts get the safest choice instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from srpo.data.read import PromptRow
from srpo.revise.protocols import DraftsAndScores
from srpo.revise.settings import LAST, RevisionSettings
from srpo.revise.trail import Trail
from srpo.sequences.render import options_of

LOOKED_AT = 32  # prompts that are drafted to compare them
FAR, SURE = 0.5, 4.0  # smallest difference of means: in standard deviations, and in standard errors
NAMES = {"length": "length of the prompt, tokens", "logp": "log π of the draft per token"}


def statistics(reviser: DraftsAndScores, rows: Sequence[PromptRow], trails: Sequence[Trail]) -> dict[str, list[float]]:
    """Returns for each quantity in `NAMES` its mean and standard deviation over prompts.

    These are the length of the prompt in tokens and, where the engine gives log-probs, log π per token of the draft.

    Args:
        rows: prompts, at least one.
        trails: trails of these prompts, none failed; only their drafts are read.
    """
    options = [options_of(row) for row in rows]
    contexts = reviser.renderer.drafts([row.prompt for row in rows], options)
    found = {"length": [float(len(context)) for context in contexts]}
    if reviser.has_logps:
        answers = reviser.renderer.answers([trail.answers[0].whole for trail in trails], options)
        found["logp"], size = [], reviser.engine.batch_size
        for at in range(0, len(rows), size):
            batch = [[pair] for pair in zip(contexts[at : at + size], answers[at : at + size], strict=True)]
            logps = reviser.logps(batch)[:, 0].tolist()
            found["logp"] += [logp / len(pair[1]) for logp, [pair] in zip(logps, batch, strict=True)]
    return {name: _mean_and_deviation(values) for name, values in found.items()}


def unlike(
    reviser: DraftsAndScores, rows: Sequence[PromptRow], settings: RevisionSettings, seen: Mapping[str, Sequence[float]]
) -> str:
    """Compares the first prompts with those of a calibration; returns the difference as words, "" if they are alike.

    The first `LOOKED_AT` prompts are drafted. A mean differs from the calibration's if both distances are exceeded:
    `FAR` of its standard deviations, and `SURE` standard errors of a mean of this many prompts. With one prompt that is
    `SURE` standard deviations.

    Args:
        settings: sampling of the drafts.
        seen: from `statistics`, on the calibrated prompts.
    """
    first = list(rows[:LOOKED_AT])
    drafts = reviser.trails(first, replace(settings, policy="drafts", revisions=0, select=LAST))
    return unlike_drafts(reviser, list(zip(first, drafts, strict=True)), seen)


def unlike_drafts(
    reviser: DraftsAndScores, drafted: Sequence[tuple[PromptRow, Trail]], seen: Mapping[str, Sequence[float]]
) -> str:
    """Compares drafted prompts with those of a calibration; returns the difference as words, "" if they are alike.

    Args:
        drafted: (prompt, trail with its draft); failed trails are left out.
        seen: from `statistics`, on the calibrated prompts.
    """
    pairs = [(row, trail) for row, trail in drafted if not trail.failed]
    if not pairs:
        return ""
    today = statistics(reviser, [row for row, _ in pairs], [trail for _, trail in pairs])
    for name, (mean, deviation) in seen.items():
        apart = abs(today[name][0] - mean) if name in today else 0.0
        # Prompts of one length have no deviation; any other length is then far.
        if apart > max(FAR * deviation, SURE * deviation / math.sqrt(len(pairs)), 1e-6):
            return f"{NAMES[name]}: {today[name][0]:.3g}, calibrated on {mean:.3g} ± {deviation:.2g}"
    return ""


def _mean_and_deviation(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))]
