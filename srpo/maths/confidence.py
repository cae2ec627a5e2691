"""The model's own confidence that one answer beats another: p(revision ≻ draft) from log-ratios of π to π_ref.

Both estimates are linear in log-ratios, so they may leave [0, 1]. They are returned unclipped; clip them, or fit a
link, before a Brier score or a calibration table.

π drafts and π† revises; y is the old answer to the prompt x, y' the new one.

Axes: B prompts.
"""

from __future__ import annotations

from torch import Tensor


def preference_eq9(h_new_given_old: Tensor, h_old_given_old: Tensor, *, beta: float) -> Tensor:
    """Estimates p(y' ≻ y | x), that y' is the better answer, from the revision policy alone: Eq. 9 of arXiv 2406.01660.

    Args:
        h_new_given_old: [B] log π†(y'|y,x) − log π_ref(y'|y,x), nats, summed over answer tokens.
        h_old_given_old: [B] log π†(y|y,x) − log π_ref(y|y,x), nats: the draft y repeated as its own revision.
        beta: the β the model was trained with.

    Returns:
        [B] estimates; 0.5 means indifferent.

    Example:
        >>> import torch
        >>> preference_eq9(torch.tensor([3.0]), torch.tensor([1.0]), beta=0.1)
        tensor([0.7000])
    """
    return 0.5 + beta * (h_new_given_old - h_old_given_old)  # Eq. 9


def preference_eq14(
    h_new_given_old: Tensor, g_new: Tensor, h_old_given_new: Tensor, g_old: Tensor, *, beta: float
) -> Tensor:
    """Estimates p(y' ≻ y | x), that y' is the better answer, from drafting and revising: Eq. 14 of arXiv 2406.01660.

    Exchanging the answers turns p into 1 − p.

    Args:
        h_new_given_old: [B] log π†(y'|y,x) − log π_ref(y'|y,x), nats, summed over answer tokens.
        g_new: [B] log π(y'|x) − log π_ref(y'|x), for y' as a draft.
        h_old_given_new: [B] log π†(y|y',x) − log π_ref(y|y',x), for y as a revision of y'.
        g_old: [B] log π(y|x) − log π_ref(y|x), for y as a draft.
        beta: the β the model was trained with.

    Returns:
        [B] estimates; 0.5 means indifferent.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> preference_eq14(2 * one, one, one, one, beta=0.2)
        tensor([0.6000])
    """
    return 0.5 + beta / 2.0 * (h_new_given_old + g_new - h_old_given_new - g_old)  # Eq. 14
