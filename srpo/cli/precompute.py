"""`srpo precompute`: the settings of a training run → the log-probs its reference gives, kept for every run to come."""

from __future__ import annotations

from srpo.cli.settings import settings_of
from srpo.errors import Interrupted

DESCRIPTION = """Score all pairs under the reference once and keep the log-probs; settings are those of `srpo train`.

srpo precompute --config settings.yaml --reference_cache kept
srpo train --config settings.yaml --reference_cache kept

Rows that are kept already are not scored again, so it goes on where it was stopped.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    config, model, data, _ = settings_of("precompute", DESCRIPTION, argv)

    from srpo.train.run import precompute

    try:
        found = precompute(config, model, data)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was scored is kept", fix="the same command goes on from there") from None
    if config.process_index > 0:
        return 0
    print(f"{found.pairs} pairs, {found.scored} of them scored now; kept in {found.folder}")
    use = "--precompute_ref_log_probs" if config.reference_cache is None else f"--reference_cache {found.folder}"
    print(f"srpo train with {use} scores none of them again")
    return 0
