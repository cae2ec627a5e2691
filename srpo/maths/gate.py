"""The gate of revising: the best that training can reach, in closed form, from rates of the reference model.

An answer is right (1) or wrong (0), and a judge prefers the right one of two. For one prompt the reference drafts a
right answer with probability p, mends a wrong draft with probability m, and keeps a right draft right with probability
k. With t = 1/(2β), the minima of the expected losses are

    IPO's draft         logit π(right)           = logit p + t                                                 (G1)
    SRPO, mending       logit π†(right | wrong)  = logit m + t                                                 (G2)
    SRPO, keeping       logit π†(right | right)  = logit k + t                                                 (G3)
    SRPO's draft        logit π(right)           = logit p + t − log[(1 + k(eᵗ − 1)) / (1 + m(eᵗ − 1))]        (G4)
    after one revision  π(right) π†(right | right) + π(wrong) π†(right | wrong)                                (G5)
    best of 2           1 − π(wrong)², with a selector that never errs                                         (G6)

Prompts differ: p has a beta distribution with the measured mean ρ and the measured chance f that a second draft is
right where a first one is wrong, f = E[p(1 − p)] / E[1 − p]. On each prompt logit m and logit k are logit p plus a
constant, chosen so that their means over wrong and right drafts are the measured ones. A revision adds nothing that a
second draft lacks if and only if the mean of m over wrong drafts is f:

    E[(1 − p)(m − p)] = 0                                                                                      (G7)

(G1) follows from arXiv 2310.12036, Eq. 7, (G2) to (G4) from arXiv 2406.01660, Eq. 5 and 11, for two answers.

Axes: D sets of rates, G points of the distribution of p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

POINTS = 801
_LEAST = 1e-6  # rates are kept this far from 0 and 1, where a logit is infinite
_STEPS = 60  # halvings of the interval that holds a shift


class Rates(NamedTuple):
    """D sets of rates of a reference model that drafts and revises: five [D] tensors in [0, 1].

    Attributes:
        right: ρ, share of right drafts.
        fresh: f, share of right answers among second drafts of prompts whose first draft is wrong.
        mend: share of right revisions of wrong drafts.
        keep: share of right revisions of right drafts.
        copies: share of wrong drafts whose revision repeats them.
    """

    right: Tensor
    fresh: Tensor
    mend: Tensor
    keep: Tensor
    copies: Tensor


class Reach(NamedTuple):
    """Shares of right answers at the optimum of training: five [D] tensors in [0, 1], for D sets of rates.

    Attributes:
        ipo: IPO's draft (G1).
        ipo_best_of_2: the better of two drafts of IPO's (G6).
        draft: SRPO's draft (G4).
        revised: SRPO's answer after one revision (G5).
        drawn_best_of_2: the better of two drafts of SRPO's (G6).
    """

    ipo: Tensor
    ipo_best_of_2: Tensor
    draft: Tensor
    revised: Tensor
    drawn_best_of_2: Tensor


def reach(rates: Rates, beta: float) -> Reach:
    """Returns the shares of right answers that IPO and SRPO reach at the optimum of their losses.

    `beta` > 0 is the weight of the divergence from the reference.

    Example:
        >>> import torch
        >>> same = torch.tensor([0.1])  # all prompts alike; revisions of a reference that copies
        >>> found = reach(Rates(same, same, torch.tensor([0.01]), torch.tensor([0.99]), same), beta=0.2)
        >>> round(float(found.ipo), 2), round(float(found.revised), 2)
        (0.57, 0.21)
    """
    t = 1.0 / (2.0 * beta)
    right, fresh, mend, keep = (rate.double().clamp(_LEAST, 1 - _LEAST) for rate in rates[:4])
    logit_DG, weight_DG = _prompts(right, fresh)
    p_DG = logit_DG.sigmoid()
    mended_DG = logit_DG + _shift(logit_DG, weight_DG * (1 - p_DG), mend)
    kept_DG = logit_DG + _shift(logit_DG, weight_DG * p_DG, keep)
    ipo_DG = (logit_DG + t).sigmoid()  # G1
    mends_DG, keeps_DG = (mended_DG + t).sigmoid(), (kept_DG + t).sigmoid()  # G2, G3
    e = torch.expm1(torch.tensor(t, dtype=torch.float64))
    starved_DG = torch.log1p(kept_DG.sigmoid() * e) - torch.log1p(mended_DG.sigmoid() * e)
    draft_DG = (logit_DG + t - starved_DG).sigmoid()  # G4
    revised_DG = draft_DG * keeps_DG + (1 - draft_DG) * mends_DG  # G5
    two_DG, drawn_DG = 1 - (1 - ipo_DG) ** 2, 1 - (1 - draft_DG) ** 2  # G6
    columns = (ipo_DG, two_DG, draft_DG, revised_DG, drawn_DG)
    return Reach(*((weight_DG * column_DG).sum(1) for column_DG in columns))


def _prompts(right_D: Tensor, fresh_D: Tensor) -> tuple[Tensor, Tensor]:
    """G points of the distribution of p for each of D sets of rates: their logits and weights (sum 1), [D, G] each.

    It is the beta distribution with mean ρ (`right_D`) and the measured f (`fresh_D`). With parameters a + b = s it has
    f = ρ s / (s + 1), so s = f / (ρ − f).
    """
    # With ρ − f below this share of ρ all prompts are practically alike; s stays finite.
    apart_D = (right_D - fresh_D).clamp(min=1e-4 * right_D)
    s_D = fresh_D / apart_D
    a_D1, b_D1 = (s_D * right_D)[:, None], (s_D * (1 - right_D))[:, None]
    core_D1 = (1 / a_D1 + 1 / b_D1).sqrt().clamp(max=4.0)
    reach_D1 = 12 * core_D1 + 40 / torch.minimum(a_D1, b_D1)  # beyond, less than e⁻⁴⁰ of the weight
    # Points dense around the centre and sparse in the tails, which are long and exponential for small a and b.
    unit_G = torch.linspace(-1, 1, POINTS, dtype=torch.float64) * torch.asinh(reach_D1 / core_D1)
    logit_DG = torch.logit(right_D)[:, None] + core_D1 * unit_G.sinh()
    log_p_DG, log_q_DG = (torch.nn.functional.logsigmoid(sign * logit_DG) for sign in (1, -1))
    weight_DG = torch.softmax(a_D1 * log_p_DG + b_D1 * log_q_DG + unit_G.cosh().log(), 1)  # p^a (1 − p)^b dlogit(p)
    return logit_DG, weight_DG


def _shift(logit_DG: Tensor, weight_DG: Tensor, mean_D: Tensor) -> Tensor:
    """Returns δ [D, 1] such that the mean of σ(logit + δ), weighted over G points, is `mean_D`; found by bisection."""
    weight_DG = weight_DG / weight_DG.sum(1, keepdim=True)
    limit_D1 = logit_DG.abs().amax(1, keepdim=True) + 20.0
    low_D1, high_D1 = -limit_D1, limit_D1.clone()
    for _ in range(_STEPS):
        middle_D1 = (low_D1 + high_D1) / 2
        below_D1 = (weight_DG * (logit_DG + middle_D1).sigmoid()).sum(1, keepdim=True) < mean_D[:, None]
        low_D1, high_D1 = torch.where(below_D1, middle_D1, low_D1), torch.where(below_D1, high_D1, middle_D1)
    return (low_D1 + high_D1) / 2
