"""Eq. 9 and 14: pencil values, symmetry, and that both give back p at the optimum."""

from __future__ import annotations

import pytest
import torch

from srpo.maths.confidence import preference_eq9, preference_eq14
from srpo.maths.tabular import closed_form


def value(number: float) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.float64)


def test_eq9_by_hand() -> None:
    # ½ + ¼(3 − 1) = 1: a log-ratio of 2 nats in favour of the revision.
    assert preference_eq9(value(3.0), value(1.0), beta=0.25).tolist() == [1.0]
    assert preference_eq9(value(1.0), value(1.0), beta=0.25).tolist() == [0.5]


def test_eq14_by_hand() -> None:
    # ½ + ⅛(3 + 1 + 2 + 1) = 1.375: raw, so it may leave [0, 1].
    assert preference_eq14(value(3.0), value(1.0), value(-2.0), value(-1.0), beta=0.25).tolist() == [1.375]


def test_eq14_is_antisymmetric_and_eq9_is_not() -> None:
    h_new_old, g_new, h_old_new, g_old = (value(x) for x in (0.3, -0.7, 1.1, 0.2))
    there = preference_eq14(h_new_old, g_new, h_old_new, g_old, beta=0.4)
    back = preference_eq14(h_old_new, g_old, h_new_old, g_new, beta=0.4)
    assert float(there + back) == pytest.approx(1.0, abs=1e-15)
    assert float(preference_eq9(h_new_old, g_old, beta=0.4) + preference_eq9(h_old_new, g_new, beta=0.4)) != 1.0


@pytest.mark.parametrize("beta", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("actions", [2, 3, 5])
def test_both_give_back_p_at_the_optimum(actions: int, beta: float) -> None:
    source = torch.Generator().manual_seed(actions)
    upper = torch.rand(actions, actions, generator=source, dtype=torch.float64).triu(1)
    P_AA = upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(actions, dtype=torch.float64)
    reference_A = torch.rand(actions, generator=source, dtype=torch.float64).add(0.1)
    reference_A /= reference_A.sum()
    pi_A, pi_dagger_AA = closed_form(P_AA, reference_A, beta)
    g_A = pi_A.log() - reference_A.log()
    h_AA = pi_dagger_AA.log() - reference_A.log()[:, None]
    new, old = torch.cartesian_prod(torch.arange(actions), torch.arange(actions)).unbind(1)
    p = P_AA[new, old]

    eq9 = preference_eq9(h_AA[new, old], h_AA[old, old], beta=beta)
    eq14 = preference_eq14(h_AA[new, old], g_A[new], h_AA[old, new], g_A[old], beta=beta)
    assert float((eq9 - p).abs().max()) < 1e-12
    assert float((eq14 - p).abs().max()) < 1e-12

    # Control: Eq. 14 needs the drafting policy; with the reference in its place it is off.
    untrained = preference_eq14(h_AA[new, old], 0 * g_A[new], h_AA[old, new], 0 * g_A[old], beta=beta)
    assert float((untrained - p).abs().max()) > 1e-3
