"""The SRPO loss in JAX, and the batches with which Tunix's DPO trainer computes its six log-probs.

A file to copy: it needs jax and numpy, and nothing of srpo. Equations follow arXiv 2406.01660; w is the chosen answer,
l the rejected one.

Axes: B pairs, R = 3·B rows, P prompt tokens, T answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Tokens = Sequence[int]


class SixLogps(NamedTuple):
    """Log-probs of a pair's six answers, [B] each in nats, summed over tokens; `w_given_l` is log π†(w | l, x)."""

    w: Array
    l: Array
    w_given_w: Array
    l_given_w: Array
    w_given_l: Array
    l_given_l: Array


def srpo_loss(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float) -> Array:
    """Returns the loss of each pair, [B]: a pure function of log-probs, for `jax.grad` and `jax.jit`.

    Args:
        policy: log-probs under the model in training.
        reference: log-probs under the frozen reference.
        beta: weight of the divergence from the reference, > 0.
        alpha: weight of the improvement term, in [0, 1].
    """
    g_w, g_l, h_ww, h_lw, h_wl, h_ll = (ours - theirs for ours, theirs in zip(policy, reference, strict=True))
    improvement_B = (0.5 - beta * (h_wl - h_ll)) ** 2 + (0.5 - beta * (h_ww - h_lw)) ** 2  # Eq. 15
    generation_B = (beta * (h_wl + g_w - h_lw - g_l) - 1.0) ** 2  # Eq. 16
    return (1.0 - alpha) * generation_B + alpha * improvement_B  # Eq. 17


def six_of(chosen_R: Array, rejected_R: Array) -> SixLogps:
    """Log-probs of rows made by `rows_of`: all drafts, then all revisions of w, then all revisions of l."""
    (w, ww, wl), (l, lw, ll) = jnp.split(chosen_R, 3), jnp.split(rejected_R, 3)
    return SixLogps(w, l, ww, lw, wl, ll)


def rows_of(
    sixes: Sequence[Sequence[tuple[Tokens, Tokens]]], *, prompt_length: int, answer_length: int, pad: int
) -> dict[str, np.ndarray]:
    """Arrays of one shape for Tunix's `TrainingInput`: three rows of a context and two answers for each pair.

    Args:
        sixes: of each pair the six (context ids, answer ids), as `srpo.Renderer.six` returns them.
        prompt_length: P, to which contexts are padded on the left.
        answer_length: T, to which answers are padded on the right.
        pad: token id of the padding.

    Raises:
        ValueError: a context or an answer is longer than its length; nothing is cut.
    """
    contexts = [six[k][0] for k in (0, 2, 4) for six in sixes]
    chosen, rejected = ([six[k + at][1] for k in (0, 2, 4) for six in sixes] for at in (0, 1))
    found = {}
    for name, rows, length, left in (
        ("prompt", contexts, prompt_length, True),
        ("chosen", chosen, answer_length, False),
        ("rejected", rejected, answer_length, False),
    ):
        longest = max(map(len, rows))
        if longest > length:
            raise ValueError(f"{name}: {longest} tokens, expected at most {length}")
        ids_RL, mask_RL = np.full((len(rows), length), pad, np.int32), np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            ids_RL[i, place], mask_RL[i, place] = row, 1
        found |= {f"{name}_ids": ids_RL, f"{name}_mask": mask_RL}
    return found


def tunix_loss(compute_logps: Callable[..., tuple[Array, Array]], *, beta: float, alpha: float) -> Callable[..., Any]:
    """Returns a loss for the method `with_loss_fn` of Tunix's `DPOTrainer`, whose batches `rows_of` made.

    Args:
        compute_logps: the function of that name in `tunix.sft.dpo.dpo_trainer`.
        beta, alpha: as in `srpo_loss`.
    """

    def loss(model: Any, train_example: Any) -> tuple[Array, dict[str, Array]]:
        example = train_example
        shape = (example.positions, example.attention_mask, example.logits_to_keep, example.completion_mask)
        policy = six_of(*compute_logps(model, example.input_ids, *shape))
        reference = six_of(example.ref_chosen_logps, example.ref_rejected_logps)
        ratios = SixLogps(*(ours - theirs for ours, theirs in zip(policy, reference, strict=True)))
        measured = {
            "rewards/chosen": (beta * ratios.w).mean(),
            "rewards/rejected": (beta * ratios.l).mean(),
            "rewards/margin": (beta * (ratios.w - ratios.l)).mean(),
            "rewards/accuracy": (ratios.w > ratios.l).mean(),
            "log_probs/chosen": policy.w.mean(),
            "log_probs/rejected": policy.l.mean(),
        }
        return srpo_loss(policy, reference, beta=beta, alpha=alpha).mean(), measured

    return loss
