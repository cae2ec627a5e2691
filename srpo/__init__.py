"""srpo: Self-Improving Robust Preference Optimization (arXiv 2406.01660), for training and for use.

One language model learns to draft and to revise from ordinary preference pairs, with one supervised loss. Names are
loaded when first used: importing srpo imports neither torch nor transformers and opens no socket.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "SRPOError": "srpo.errors",
    "Pair": "srpo.data.read",
    "Source": "srpo.data.source",
    "read_pairs": "srpo.data.read",
    "Renderer": "srpo.sequences.render",
    "RevisionTemplate": "srpo.sequences.templates",
    "PrefixTree": "srpo.sequences.tree",
    "SixLogps": "srpo.maths.objective",
    "srpo_loss": "srpo.maths.objective",
    "dpo_loss": "srpo.maths.objective",
    "ipo_loss": "srpo.maths.objective",
    "preference_eq9": "srpo.maths.confidence",
    "preference_eq14": "srpo.maths.confidence",
    "six_logps": "srpo.model.packed.forward",
    "SRPOConfig": "srpo.train.config",
    "SRPOTrainer": "srpo.train.trainer",
    "Reviser": "srpo.revise.reviser",
    "Trail": "srpo.revise.trail",
}

# A literal list, since type checkers do not evaluate an expression for __all__.
__all__ = [
    "Pair",
    "PrefixTree",
    "Renderer",
    "Reviser",
    "RevisionTemplate",
    "SRPOConfig",
    "SRPOError",
    "SRPOTrainer",
    "SixLogps",
    "Source",
    "Trail",
    "__version__",
    "dpo_loss",
    "ipo_loss",
    "preference_eq9",
    "preference_eq14",
    "read_pairs",
    "six_logps",
    "srpo_loss",
]

if TYPE_CHECKING:
    from srpo.data.read import Pair, read_pairs
    from srpo.data.source import Source
    from srpo.errors import SRPOError
    from srpo.maths.confidence import preference_eq9, preference_eq14
    from srpo.maths.objective import SixLogps, dpo_loss, ipo_loss, srpo_loss
    from srpo.model.packed.forward import six_logps
    from srpo.revise.reviser import Reviser
    from srpo.revise.trail import Trail
    from srpo.sequences.render import Renderer
    from srpo.sequences.templates import RevisionTemplate
    from srpo.sequences.tree import PrefixTree
    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'srpo' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
