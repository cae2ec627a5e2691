"""Comparison of policies for `auto`, and quality of the confidence, on the carry task's runs of `srpo demo`.

    srpo demo --full --seeds 3 --first_seed 3 --output_dir runs/demo3
    python -m benchmarks.policies runs/demo3 --seeds 3 4 5

For each seed's SRPO model, on both splits: trails under `always` and under `if_preferred`, on sums for choosing and on
others for reporting. `until_worse` and `until_unchanged` follow from those trails, because equal (seed, prompt,
revision) draw equal numbers. The best fixed k of `always` is chosen on the first sums. Differences are paired by sum;
intervals are bootstraps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers.utils import logging as hf_logging

from srpo.evaluate.calibrate import first_revisions
from srpo.judge.single import exact_match, per_character
from srpo.revise.reviser import Reviser
from srpo.revise.trail import Trail
from srpo.statistics.bootstrap import bootstrap
from srpo.statistics.calibration import auc, brier, calibration_error, fit_temperature, linked, reliability
from srpo.tasks.carry import SPLITS, sums

REVISIONS, CHOOSING, TELLING = 5, 4_000_000, 5_000_000


def in_hand(trail: Trail, policy: str, k: int) -> str:
    """Returns the answer after k revisions under `policy`, which may stop before the policy that drew the trail."""
    texts = trail.answers
    for at in range(1, min(k, len(texts) - 1) + 1):
        stops = {"until_worse": not texts[at].kept, "until_unchanged": texts[at].text == trail.after(at - 1).text}
        if stops.get(policy, False):
            return trail.after(at).text
    return trail.after(k).text


def right(trails: list[Trail], policy: str, k: int) -> torch.Tensor:
    """[N] 1 where the answer after k revisions is right."""
    found = [exact_match(t.prompt, in_hand(t, policy, k), t.meta["gold"]) for t in trails]
    return torch.tensor(found, dtype=torch.float64)


def measure(run: Path, seed: int, prompts: int, temperature: float) -> dict[str, object]:
    """Measures one seed's model; returns for each split the numbers that `tell` prints.

    These are each policy's scores of the reported sums after each number of revisions, and the best numbers of
    revisions on the other sums.
    """
    reviser = Reviser(str(run / "srpo"), reference=str(run / "base"), batch_size=1000)
    found: dict[str, object] = {}
    for at, split in enumerate(SPLITS):
        kept = {}
        for start in (CHOOSING, TELLING):
            rows = sums(prompts, split, seed=start + 1000 * at + seed)
            for policy in ("always", "if_preferred"):
                settings: dict[str, object] = {"policy": policy, "max_new_tokens": 7, "temperature": temperature}
                kept[start, policy] = reviser.revise(rows, REVISIONS, seed=seed, **settings)
        always, weighed = kept[CHOOSING, "always"], kept[CHOOSING, "if_preferred"]
        best = max(range(REVISIONS + 1), key=lambda k: float(right(always, "always", k).mean()))
        best_weighed = max(range(REVISIONS + 1), key=lambda k: float(right(weighed, "if_preferred", k).mean()))
        always, weighed = kept[TELLING, "always"], kept[TELLING, "if_preferred"]
        scores = {
            name: [
                right(always if name in ("always", "until_unchanged") else weighed, name, k).tolist() for k in range(6)
            ]
            for name in ("always", "if_preferred", "until_worse", "until_unchanged")
        }
        digits = [[per_character(t.prompt, t.answers[k].text, t.meta["gold"]) for k in (0, 1)] for t in always]
        preferred, better = first_revisions(always, digits)
        found[split] = {
            "best k of always": best,
            "best k of if_preferred": best_weighed,
            "scores": scores,
            "preferred": preferred,
            "better": better,
        }
    return found


def tell(found: dict[str, dict[str, object]]) -> None:
    """Prints scores, gains and quality of the confidence for each seed and pooled."""
    for split in SPLITS:
        print(f"== {split} of distribution")
        pooled, preferred, better = [], [], []
        for seed, each in found.items():
            part: dict = each[split]  # type: ignore[type-arg, assignment]
            k, scores = part["best k of always"], part["scores"]
            for name, by_k in scores.items():
                print(f"seed {seed} {name:16}", " ".join(f"{100 * sum(row) / len(row):5.1f}" for row in by_k))
            gain = torch.tensor(scores["if_preferred"][REVISIONS]) - torch.tensor(scores["always"][k])
            print(f"seed {seed} if_preferred, {REVISIONS}, less always, {k}: {interval(gain)}")
            print(f"seed {seed} confidence: {trust(part['preferred'], part['better'])}")
            pooled.append(gain)
            preferred, better = preferred + part["preferred"], better + part["better"]
        print(f"pooled: {interval(torch.cat(pooled))}; {trust(preferred, better)}")
        for row in reliability(preferred, better):
            share = f"mean {row.score:.2f}, better {100 * row.share:.1f} %"
            print(f"  {row.low:.1f} to {row.high:.1f}: {row.n:5} pairs, {share}")


def interval(gain_N: torch.Tensor) -> str:
    """Returns the mean gain and its 95 % interval in points, as text."""
    each = bootstrap(gain_N.double()[:, None])
    return f"{100 * float(each.mean[0]):+.1f} ({100 * float(each.low[0]):+.1f} to {100 * float(each.high[0]):+.1f})"


def trust(preferred: list[float], better: list[int]) -> str:
    """Returns the quality of the confidence as text: AUC, Brier score and calibration error."""
    raw, temperature = reliability(preferred, better), fit_temperature(preferred, better)
    through = linked(preferred, temperature)
    return (
        f"{len(better)} pairs, AUC {auc(preferred, better):.3f}, Brier {brier(preferred, better):.3f}, ECE "
        f"{calibration_error(raw):.3f}; T {temperature:.3f}: {brier(through, better):.3f}, "
        f"{calibration_error(reliability(through, better)):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", help="folder of `srpo demo`")
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--prompts", type=int, default=2000, help="sums per split, for choosing and for telling each")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cache", default="policies.json", help="seeds that are in it are not drawn again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    cache = Path(args.cache)
    found = json.loads(cache.read_text()) if cache.exists() else {}
    for seed in args.seeds:
        if str(seed) not in found:
            found[str(seed)] = measure(Path(args.runs) / f"seed{seed}", seed, args.prompts, args.temperature)
            cache.write_text(json.dumps(found))
    tell({str(seed): found[str(seed)] for seed in args.seeds})


if __name__ == "__main__":
    main()
