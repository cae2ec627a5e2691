"""`srpo precompute`: scores all pairs under the reference model once, and caches the log-probs for later runs."""

from __future__ import annotations

from srpo.cli.output import quiet_transformers
from srpo.cli.training_flags import parse_training, training_groups
from srpo.errors import Interrupted

DESCRIPTION = """Score all pairs under the reference once and cache the log-probs; settings are those of `srpo train`.

srpo precompute --config settings.yaml --reference_cache kept
srpo train --config settings.yaml --reference_cache kept

Pairs in the cache are not scored again, so the same command goes on after an interruption.
"""


def main(argv: list[str]) -> int:
    """Runs `srpo precompute`: computes the reference log-probs that the cache lacks, and prints the counts; returns 0.

    Raises:
        Interrupted: stopped by a signal; the log-probs computed so far are in the cache.
    """
    found, _ = parse_training("precompute", DESCRIPTION, argv)
    quiet_transformers()
    config, model, data, _ = training_groups(found)

    from srpo.train.run import precompute

    try:
        done = precompute(config, model, data)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; the log-probs scored so far are kept", fix="the same command goes on from there"
        ) from None
    if config.process_index > 0:
        return 0
    print(f"{done.pairs} pairs, {done.scored} of them scored now; kept in {done.folder}")
    use = "--precompute_ref_log_probs" if config.reference_cache is None else f"--reference_cache {done.folder}"
    print(f"srpo train with {use} scores none of them again")
    return 0
