"""A run that is started in as many processes as its launcher says: see test_pieces.py.

python -m tests.train.two_processes FOLDER PAIRS_OF_A_DEVICE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.train.plain import ROWS, logged, sharp_llama, trainer

LONG = {
    "prompt": "A rather long prompt, which takes more tokens than all of the other ones: ",
    "chosen": "and a long answer, too",
    "rejected": "no",
}


def main(folder: Path, pairs: int) -> None:
    """Two steps of plain gradient descent; writes weights and what was logged."""
    args: dict[str, Any] = {
        **{"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"},
        **{"per_device_train_batch_size": pairs, "max_tokens_per_batch": 100, "max_steps": 2},
        **{"reference_cache": str(folder / "kept"), "precompute_ref_log_probs": True},
    }
    run = trainer(folder / "run", [*ROWS, LONG], ref_model=sharp_llama(seed=1), args=args)
    run.train()
    if run.args.process_index == 0:
        weights = {
            name: p.detach().contiguous() for name, p in run.accelerator.unwrap_model(run.model).named_parameters()
        }
        torch.save(weights, folder / "weights.pt")
        said = {key: logged(run, key) for key in ("loss", "logps/chosen")}
        (folder / "logged.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
