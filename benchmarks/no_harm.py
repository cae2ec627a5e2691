"""Decisions of `srpo calibrate` on a task where a draft can be right in one pass, and their gain or loss.

    python -m benchmarks.no_harm --output_dir runs/columns --seeds 0

The columns task (benchmarks/tasks/columns.py): a base, pairs of its drafts, SRPO at the carry task's settings, and a
calibration on labelled prompts in distribution. Then final answers are compared with drafts on other prompts, in
distribution and shifted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import PrinterCallback
from transformers.utils import logging as hf_logging

from benchmarks.tasks.columns import column_sums, columns
from srpo.data.read import read_prompts
from srpo.evaluate.calibrate import calibrate
from srpo.judge.single import exact_match
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.statistics.bootstrap import bootstrap
from srpo.tasks.carry import TEMPLATE, BaseConfig, carry_tokenizer, label, train_base, write_rows
from srpo.train.config import SRPOConfig
from srpo.train.trainer import SRPOTrainer

TOKENS = 7


def make(folder: Path, seed: int, base_steps: int, steps: int) -> tuple[Path, Path]:
    """Base and trained model, reused when they are there."""
    base, model = folder / "base", folder / "srpo"
    if not (model / "config.json").exists():
        for _, _, trained in train_base(BaseConfig(steps=base_steps, seed=seed), columns):  # noqa: B007
            pass
        for each in (trained, carry_tokenizer()):
            each.save_pretrained(base)
        TEMPLATE.save(base)
        rows, drafter = column_sums(8000, "in", seed=1_000_000 + seed), Reviser(str(base), batch_size=1000)
        first, second = (
            [t.after(0).text for t in drafter.revise(rows, 0, seed=draw, max_new_tokens=TOKENS)] for draw in (1, 2)
        )
        write_rows(folder / "pairs.jsonl", label(rows, first, second))
        args = SRPOConfig(
            output_dir=str(model),
            beta=0.2,
            alpha=0.5,
            learning_rate=2e-4,
            max_steps=steps,
            per_device_train_batch_size=64,
            seed=seed + 1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SRPOTrainer(str(base), args=args, train_dataset=str(folder / "pairs.jsonl"))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model()
    return base, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--base_steps", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--revisions", type=int, default=3)
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf_logging.set_verbosity_error()
    for seed in args.seeds:
        base, model = make(Path(args.output_dir) / f"seed{seed}", seed, args.base_steps, args.steps)
        reviser = Reviser(str(model), reference=str(base), batch_size=1000)
        for heat in args.temperature:
            settings = RevisionSettings(args.revisions, heat, seed, TOKENS)
            labelled = read_prompts(column_sums(args.labelled, "in", seed=3_000_000 + seed))
            found = calibrate(reviser, labelled, exact_match, settings)
            print(
                f"seed {seed}, temperature {heat:g}: {found.choice.sentence()}; {' '.join(found.sentences())}",
                flush=True,
            )
            reviser.calibration = found
            for split in ("in", "out"):
                rows = column_sums(args.prompts, split, seed=5_000_000 + seed)
                for policy in ("auto", "if_preferred", "always"):
                    keywords = {"temperature": heat, "max_new_tokens": TOKENS, "policy": policy, "seed": seed}
                    trails = reviser.revise(rows, args.revisions, **keywords)  # type: ignore[arg-type]
                    first, last = (
                        torch.tensor([exact_match(t.prompt, t.after(k).text, t.meta["gold"]) for t in trails])
                        for k in (0, args.revisions)
                    )
                    gain = bootstrap((last - first).double()[:, None])
                    low, high = 100 * float(gain.low[0]), 100 * float(gain.high[0])
                    scores = f"drafts {100 * first.mean():.1f}, final {100 * last.mean():.1f}"
                    print(
                        f"  {split:3} {policy:12} {scores}, {100 * gain.mean[0]:+.1f} ({low:+.1f} to {high:+.1f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
