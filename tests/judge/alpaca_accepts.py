"""Run by `make alpaca` in a separate environment: alpaca_eval reads our outputs and our verdicts unchanged.

Its leaderboard is computed from the two files of outputs; the verdicts are its cache of annotations, so that it asks no
judge. It must come to the win rate that the verdicts have; a file that it does not take as its own would make it ask
for a key of OpenAI's and fail.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas
from alpaca_eval import evaluate, metrics


def main(folder: Path) -> None:
    """Expects first.json, second.json and annotations.json there, as `srpo exchange` and `srpo judge` write them."""
    ours = json.loads((folder / "annotations.json").read_text("utf-8"))
    preferences = [row["preference"] for row in ours if row["preference"] is not None]
    wanted = 100 * sum(preference - 1 for preference in preferences) / len(preferences)
    config = folder / "annotator" / "configs.yaml"
    config.parent.mkdir(exist_ok=True)
    (config.parent / "prompt.txt").write_text("{instruction} {output_1} {output_2}\n")
    name = ours[0]["annotator"]
    config.write_text(
        f"{json.dumps(name)}:\n"
        f'  prompt_template: "{config.parent}/prompt.txt"\n'
        '  fn_completions: "openai_completions"\n'
        '  completions_kwargs: {model_name: "none"}\n'
    )
    leaderboard, annotations = evaluate(
        model_outputs=str(folder / "second.json"),
        reference_outputs=str(folder / "first.json"),
        annotators_config=str(config.parent),
        caching_path=str(folder / "annotations.json"),
        fn_metric="get_winrate",
        sort_by="win_rate",
        output_path=None,
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
    )
    (row,) = leaderboard.to_dict("records")
    print(f"pandas {pandas.__version__}: alpaca_eval says {row['win_rate']:.2f} of {row['n_total']}, we {wanted:.2f}")
    assert row["n_total"] == len(preferences), row
    assert abs(row["win_rate"] - wanted) < 1e-9, row
    assert abs(metrics.pairwise_to_winrate(preferences)["win_rate"] - wanted) < 1e-9
    assert len(annotations) == len(ours)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
