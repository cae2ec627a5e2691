"""Closed forms and fits: minimising the library's losses over tables must end where theory says, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srpo.errors import ConfigError, NonFiniteError
from srpo.maths.objective import OBJECTIVES, LossOutput, Objective, SixLogps, srpo_loss
from srpo.maths.tabular import (
    Tables,
    closed_form,
    ipo_closed_form,
    minimise,
    population_weights,
    sampled_weights,
    table_loss,
    trajectory,
)

SRPO = OBJECTIVES["srpo"]
PAPER = torch.tensor([[0.50, 0.99, 0.30], [0.01, 0.50, 0.25], [0.70, 0.75, 0.50]], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
SKEWED = torch.tensor([0.15, 0.70, 0.15], dtype=torch.float64)


def distribution(source: torch.Generator, actions: int) -> Tensor:
    p_A = torch.rand(actions, generator=source, dtype=torch.float64) + 0.05
    return p_A / p_A.sum()


def game(seed: int, actions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random preferences, collector and reference, all with full support."""
    source = torch.Generator().manual_seed(seed)
    upper = (0.02 + 0.96 * torch.rand(actions, actions, generator=source, dtype=torch.float64)).triu(1)
    P_AA = upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(actions, dtype=torch.float64)
    return P_AA, distribution(source, actions), distribution(source, actions)


def distance(fit: tuple[Tensor, Tensor], theory: tuple[Tensor, Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(fit, theory, strict=True))


# --- closed forms ---


def test_closed_form_of_the_paper_s_bandit() -> None:
    pi_A, pi_dagger_AA = closed_form(PAPER, UNIFORM, 1.0)
    assert pi_A.tolist() == pytest.approx([0.3553, 0.2571, 0.3876], abs=5e-5)
    assert pi_dagger_AA.sum(0).tolist() == pytest.approx([1.0] * 3, abs=1e-15)


def test_closed_form_by_plain_sums() -> None:
    P_AA, _, reference_A = game(5, 4)
    p, ref, beta = P_AA.tolist(), reference_A.tolist(), 0.4
    Z = [sum(ref[a] * math.exp(p[a][b] / beta) for a in range(4)) for b in range(4)]
    dagger = [[ref[a] * math.exp(p[a][b] / beta) / Z[b] for b in range(4)] for a in range(4)]
    total = sum(ref[a] / Z[a] for a in range(4))
    pi_A, pi_dagger_AA = closed_form(P_AA, reference_A, beta)
    assert pi_A.tolist() == pytest.approx([ref[a] / Z[a] / total for a in range(4)], abs=1e-14)
    assert pi_dagger_AA.flatten().tolist() == pytest.approx([p for row in dagger for p in row], abs=1e-14)


def test_both_ways_to_write_eq_11_agree() -> None:
    P_AA, _, reference_A = game(6, 5)
    pi_A, pi_dagger_AA = closed_form(P_AA, reference_A, 0.8)
    # π* ∝ π_ref(y) π†*(y|y) / π_ref(y|y), where the two references are the same number here.
    assert pi_A.tolist() == pytest.approx((pi_dagger_AA.diagonal() / pi_dagger_AA.diagonal().sum()).tolist(), abs=1e-14)


def test_closed_form_is_a_saddle_point_of_eq_1() -> None:
    # The game itself, not its losses: no random move of π† raises J at π*, none of π lowers max over π† of J.
    P_AA, _, reference_A = game(7, 3)
    beta, (pi_A, pi_dagger_AA) = 0.7, closed_form(P_AA, reference_A, 0.7)

    def J(pi: Tensor, dagger: Tensor) -> float:
        kl_dagger = (dagger * (dagger.log() - reference_A.log()[:, None])).sum(0)
        kl = (pi * (pi.log() - reference_A.log())).sum()
        return float((pi * ((P_AA * dagger).sum(0) - beta * kl_dagger)).sum() + beta * kl)

    best = J(pi_A, pi_dagger_AA)
    source = torch.Generator().manual_seed(0)
    for _ in range(50):
        dagger = (pi_dagger_AA.log() + 0.3 * torch.randn(3, 3, generator=source, dtype=torch.float64)).softmax(0)
        pi = (pi_A.log() + 0.3 * torch.randn(3, generator=source, dtype=torch.float64)).softmax(0)
        assert J(pi_A, dagger) < best
        assert J(pi, pi_dagger_AA) > best  # π†* is the best reply to every π


@pytest.mark.parametrize("beta", [1e-3, 1e3])
def test_closed_form_stands_extreme_temperatures(beta: float) -> None:
    pi_A, pi_dagger_AA = closed_form(PAPER, UNIFORM, beta)
    assert pi_A.isfinite().all()
    assert pi_dagger_AA.isfinite().all()


# --- weights ---


def test_population_weights_are_the_limit_of_sampled_ones() -> None:
    P_AA, mu_A, _ = game(1, 3)
    exact = population_weights(P_AA, mu_A)
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-12)
    sampled = sampled_weights(P_AA, mu_A, pairs=1_000_000, seed=0)
    # A frequency p of n draws has deviation sqrt(p(1 − p)/n) ≤ 5e-4; five of them.
    assert float((exact - sampled).abs().max()) < 2.5e-3
    # Control: chosen and rejected swapped is far outside.
    assert float((exact - sampled.T).abs().max()) > 2.5e-3


def test_sampling_depends_on_its_seed_only() -> None:
    one, again, other = (sampled_weights(PAPER, SKEWED, pairs=1000, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weighted_cells_equal_a_literal_batch(name: str) -> None:
    """The loss on cells with weights is the objective's own mean over the pairs, one row each."""
    weights_AA = sampled_weights(PAPER, SKEWED, pairs=500, seed=0)
    tables, reference = Tables.random(3, seed=1), Tables.tied(UNIFORM)
    weighted = table_loss(OBJECTIVES[name], tables, weights_AA, UNIFORM, beta=0.3, alpha=0.7)
    rows = torch.repeat_interleave(torch.arange(9), (weights_AA.flatten() * 500).round().long())
    policy, ref = (SixLogps(*(logps[rows] for logps in t.six())) for t in (tables, reference))
    literal = OBJECTIVES[name].loss(policy, ref, beta=0.3, alpha=0.7).loss
    assert float(weighted) == pytest.approx(float(literal), rel=1e-12)


def test_six_reads_the_right_cells() -> None:
    tables = Tables.random(3, seed=2)
    pi, dagger = (p.log().tolist() for p in tables.policies())
    six = tables.six()
    for w in range(3):
        for l in range(3):
            expected = (pi[w], pi[l], dagger[w][w], dagger[l][w], dagger[w][l], dagger[l][l])
            assert [float(logps[w * 3 + l]) for logps in six] == pytest.approx(expected, abs=1e-12)


# --- fits ---


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    actions=st.integers(2, 5),
    beta=st.floats(0.3, 3.0),
    alpha=st.floats(0.05, 0.95),
)
def test_srpo_recovers_eq_5_and_11(seed: int, actions: int, beta: float, alpha: float) -> None:
    P_AA, mu_A, reference_A = game(seed, actions)
    fit = minimise(SRPO, Tables.tied(reference_A), population_weights(P_AA, mu_A), reference_A, beta=beta, alpha=alpha)
    assert distance((fit.pi_A, fit.pi_dagger_AA), closed_form(P_AA, reference_A, beta)) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_srpo_s_optimum_depends_neither_on_the_collector_nor_on_the_start(seed: int) -> None:
    P_AA, mu_A, reference_A = game(seed, 3)
    theory = closed_form(P_AA, reference_A, 1.0)
    for mu in (mu_A, mu_A.flip(0)):
        fit = minimise(
            SRPO, Tables.random(3, seed=seed), population_weights(P_AA, mu), reference_A, beta=1.0, alpha=0.5
        )
        assert distance((fit.pi_A, fit.pi_dagger_AA), theory) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_ipo_recovers_its_own_closed_form_which_moves_with_the_collector(seed: int) -> None:
    P_AA, mu_A, reference_A = game(seed, 4)
    fits, theories = [], []
    for mu in (mu_A, mu_A.flip(0)):
        weights_AA = population_weights(P_AA, mu)
        fits.append(minimise(OBJECTIVES["ipo"], Tables.tied(reference_A), weights_AA, reference_A, beta=0.5, alpha=0.5))
        theories.append(ipo_closed_form(P_AA, mu, reference_A, 0.5))
        assert float((fits[-1].pi_A - theories[-1]).abs().max()) < 1e-6
    assert float((theories[0] - theories[1]).abs().max()) > 1e-3


def test_dpo_recovers_bradley_terry() -> None:
    # Preferences that are Bradley-Terry: p(i ≻ j) = σ(r_i − r_j); then π ∝ π_ref exp(r/β) whatever the collector.
    r, beta = torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64), 0.5
    P_AA = torch.sigmoid(r[:, None] - r[None, :])
    theory = (SKEWED.log() + r / beta).softmax(0)
    for mu in (UNIFORM, SKEWED):
        fit = minimise(
            OBJECTIVES["dpo"], Tables.tied(SKEWED), population_weights(P_AA, mu), SKEWED, beta=beta, alpha=0.5
        )
        assert float((fit.pi_A - theory).abs().max()) < 1e-6


def sign_flipped(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float) -> LossOutput:
    """Eq. 15 with a plus where the minus belongs; all else as it should be."""
    g_w, g_l, h_ww, h_lw, h_wl, h_ll = policy.minus(reference)
    improvement = (0.5 + beta * (h_wl - h_ll)) ** 2 + (0.5 + beta * (h_ww - h_lw)) ** 2
    generation = (beta * (h_wl + g_w - h_lw - g_l) - 1.0) ** 2
    return LossOutput((1 - alpha) * generation + alpha * improvement, generation, improvement)


def alpha_swapped(policy: SixLogps, reference: SixLogps, *, beta: float, alpha: float) -> LossOutput:
    """α on the generation term, as Section 4.2.3 prints it."""
    return srpo_loss(policy, reference, beta=beta, alpha=1.0 - alpha)


def test_control_a_flipped_sign_does_not_recover() -> None:
    fit = minimise(
        Objective(sign_flipped, drafts_only=False),
        Tables.tied(UNIFORM),
        population_weights(PAPER, SKEWED),
        UNIFORM,
        beta=1.0,
        alpha=0.5,
    )
    assert distance((fit.pi_A, fit.pi_dagger_AA), closed_form(PAPER, UNIFORM, 1.0)) > 0.05


def test_alpha_one_trains_revision_alone() -> None:
    theory = closed_form(PAPER, UNIFORM, 1.0)
    start, weights_AA = Tables.random(3, seed=0), population_weights(PAPER, SKEWED)
    fit = minimise(SRPO, start, weights_AA, UNIFORM, beta=1.0, alpha=1.0)
    assert float((fit.pi_dagger_AA - theory[1]).abs().max()) < 1e-6
    assert torch.equal(fit.pi_A, start.policies()[0])
    # Control: with α's role swapped, α = 1 moves the drafts and leaves the revisions unidentified.
    swapped = minimise(Objective(alpha_swapped, drafts_only=False), start, weights_AA, UNIFORM, beta=1.0, alpha=1.0)
    assert float((swapped.pi_dagger_AA - theory[1]).abs().max()) > 0.05
    assert float((swapped.pi_A - start.policies()[0]).abs().max()) > 0.05


def test_alpha_zero_leaves_drafts_unidentified() -> None:
    theory, weights_AA = closed_form(PAPER, UNIFORM, 1.0), population_weights(PAPER, SKEWED)
    ends = {}
    for alpha in (0.0, 0.5):
        least = float(table_loss(SRPO, Tables.of(*theory), weights_AA, UNIFORM, beta=1.0, alpha=alpha))
        fits = [
            minimise(SRPO, Tables.random(3, seed=seed), weights_AA, UNIFORM, beta=1.0, alpha=alpha) for seed in range(5)
        ]
        assert all(fit.loss == pytest.approx(least, abs=1e-12) for fit in fits)
        ends[alpha] = [fit.pi_A for fit in fits]
    assert {int(pi.argmax()) for pi in ends[0.0]} == {0, 2}  # y0 is wrong
    assert all(float((pi - theory[0]).abs().max()) < 1e-6 for pi in ends[0.5])


def test_alpha_zero_is_minimised_beside_any_drafting_policy() -> None:
    """The same without an optimiser: Eq. 16 at β = 1 asks only that h(w|l) − h(l|w) + g(w) − g(l) = 2p − 1."""
    pi_A = torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64)  # y1 loses to everything
    g_A = (pi_A / UNIFORM).log()
    asked_AA = 2 * PAPER - 1 - (g_A[:, None] - g_A[None, :])
    # Half of what is asked on either side of the diagonal, far enough down that the diagonal can fill each column.
    dagger_AA = (asked_AA / 2 - 4.0).exp().fill_diagonal_(0.0)
    dagger_AA += torch.diag(1 - dagger_AA.sum(0))
    assert (dagger_AA > 0).all()
    weights_AA = population_weights(PAPER, SKEWED)
    made_up, optimal = Tables.of(pi_A, dagger_AA), Tables.of(*closed_form(PAPER, UNIFORM, 1.0))
    for alpha, equally_good in ((0.0, True), (0.5, False)):
        losses = [
            float(table_loss(SRPO, tables, weights_AA, UNIFORM, beta=1.0, alpha=alpha)) for tables in (made_up, optimal)
        ]
        assert (losses[0] - losses[1] < 1e-12) is equally_good


def test_adam_walks_to_where_lbfgs_jumps() -> None:
    weights_AA = sampled_weights(PAPER, SKEWED, pairs=10_000, seed=0)
    start = Tables.tied(UNIFORM)
    path_TA = trajectory(SRPO, start, weights_AA, UNIFORM, beta=1.0, alpha=0.5, steps=600, learning_rate=0.01)
    fit = minimise(SRPO, start, weights_AA, UNIFORM, beta=1.0, alpha=0.5)
    assert path_TA.shape == (601, 3)
    assert path_TA[0].tolist() == pytest.approx([1 / 3] * 3)
    assert path_TA[-1].tolist() == pytest.approx(fit.pi_A.tolist(), abs=1e-3)
    assert fit.gradient < 1e-6


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: closed_form(PAPER[:2], UNIFORM, 1.0), "square"),
        (lambda: closed_form(PAPER + 0.1, UNIFORM, 1.0), "= 1"),
        (lambda: closed_form(PAPER * torch.nan, UNIFORM, 1.0), "= 1"),
        (lambda: closed_form(PAPER, UNIFORM * 2, 1.0), "the reference"),
        (lambda: closed_form(PAPER, torch.tensor([0.5, 0.5, 0.0]), 1.0), "> 0"),
        (lambda: closed_form(PAPER, UNIFORM, 0.0), "beta"),
        (lambda: closed_form(PAPER, UNIFORM, math.nan), "beta"),
        (lambda: ipo_closed_form(PAPER, UNIFORM[:2], UNIFORM, 1.0), "mu"),
        (lambda: population_weights(PAPER, torch.tensor([0.5, 0.5])), "mu"),
        (lambda: sampled_weights(PAPER, UNIFORM, pairs=0, seed=0), "pairs"),
    ],
)
def test_bad_games_are_refused(call: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        call()  # type: ignore[operator]


def test_a_loss_that_is_nan_is_an_error() -> None:
    broken = Objective(lambda p, r, *, beta, alpha: LossOutput(p.w * torch.nan, p.w, p.w), drafts_only=True)
    with pytest.raises(NonFiniteError):
        minimise(broken, Tables.tied(UNIFORM), population_weights(PAPER, UNIFORM), UNIFORM, beta=1.0, alpha=0.5)
    arguments = {"beta": 1.0, "alpha": 0.5, "learning_rate": 0.01}
    with pytest.raises(NonFiniteError, match="step 1"):
        trajectory(broken, Tables.tied(UNIFORM), population_weights(PAPER, UNIFORM), UNIFORM, steps=3, **arguments)
    with pytest.raises(ConfigError, match="steps"):
        trajectory(SRPO, Tables.tied(UNIFORM), population_weights(PAPER, UNIFORM), UNIFORM, steps=0, **arguments)
