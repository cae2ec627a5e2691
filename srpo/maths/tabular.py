"""Preference games small enough to solve exactly: closed forms, policies as tables, and fits of any objective to them.

There is no prompt and there are A answers ("actions"). The fitted losses are those of language-model training
(`srpo.maths.objective.OBJECTIVES`), here on tables of logits in float64.

Every [A, A] table is indexed [answer, other]: P[i, j] = p(y_i ≻ y_j), π†[i, j] = π†(y_i | y_j), and a weight W[w, l]
belongs to the pair "y_w chosen, y_l rejected". Equations are those of arXiv 2406.01660.

Axes: A actions, C = A·A ordered pairs, T optimiser steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srpo.errors import ConfigError, NonFiniteError
from srpo.maths.objective import Objective, SixLogps


@dataclass(frozen=True)
class Tables:
    """Draft policy π and revision policy π† of a game with A answers, each as softmax logits.

    Attributes:
        draft_A: [A] logits of π.
        revision_AA: [A, A] logits of π†; column j is the distribution of revisions of y_j.
    """

    draft_A: Tensor
    revision_AA: Tensor

    @classmethod
    def of(cls, pi_A: Tensor, pi_dagger_AA: Tensor) -> Tables:
        """Makes tables from probabilities, all > 0.

        Args:
            pi_A: [A] the draft policy π.
            pi_dagger_AA: [A, A] the revision policy; column j is the distribution π†(·|y_j) of revisions of answer y_j.
        """
        return cls(pi_A.double().log(), pi_dagger_AA.double().log())

    @classmethod
    def tied(cls, pi_A: Tensor) -> Tables:
        """Makes tables whose revision policy ignores the draft: π†(·|y) is `pi_A` for every draft y, like π itself."""
        return cls.of(pi_A, pi_A[:, None].expand(-1, len(pi_A)))

    @classmethod
    def random(cls, actions: int, *, seed: int) -> Tables:
        """Makes tables of a game with `actions` answers, all logits drawn from N(0, 1)."""
        source = torch.Generator().manual_seed(seed)
        draft_A = torch.randn(actions, generator=source, dtype=torch.float64)
        return cls(draft_A, torch.randn(actions, actions, generator=source, dtype=torch.float64))

    def trainable(self) -> Tables:
        """Returns a copy of the tables whose logits are leaves of the autograd graph and require gradients."""
        return Tables(*(logits.detach().clone().requires_grad_() for logits in (self.draft_A, self.revision_AA)))

    def policies(self) -> tuple[Tensor, Tensor]:
        """Returns the draft policy π [A] and the revision policy π† [A, A] as probabilities, without autograd."""
        return self.draft_A.detach().softmax(0), self.revision_AA.detach().softmax(0)

    def six(self) -> SixLogps:
        """Returns the six log-probs of all C = A·A ordered pairs, [C] each, in nats.

        Element w·A + l belongs to the pair "y_w chosen, y_l rejected".
        """
        actions = len(self.draft_A)
        w, l = torch.cartesian_prod(torch.arange(actions), torch.arange(actions)).unbind(1)
        draft_A, revision_AA = self.draft_A.log_softmax(0), self.revision_AA.log_softmax(0)
        return SixLogps(
            w=draft_A[w],
            l=draft_A[l],
            w_given_w=revision_AA[w, w],
            l_given_w=revision_AA[l, w],
            w_given_l=revision_AA[w, l],
            l_given_l=revision_AA[l, l],
        )


@dataclass(frozen=True)
class Fit:
    """Policies that `minimise` found, with the loss and the gradient there.

    Attributes:
        pi_A: [A] draft policy π, probabilities.
        pi_dagger_AA: [A, A] revision policy π†; column j, for the draft y_j, sums to 1.
        loss: mean loss over pairs, weighted by their probability.
        gradient: largest absolute partial derivative of the loss by a logit; near zero after convergence.
    """

    pi_A: Tensor
    pi_dagger_AA: Tensor
    loss: float
    gradient: float


def closed_form(P_AA: Tensor, reference_A: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Returns the optimal draft policy [A] and revision policy [A, A] of a game with A answers, Eq. 5 and 11.

    They do not depend on the policy that collected the pairs. Column j of the second belongs to the draft y_j.

    Args:
        P_AA: [A, A] preferences in [0, 1], P[i, j] + P[j, i] = 1.
        reference_A: [A] π_ref > 0, sums to 1; drafts and revisions share it.
        beta: weight of the divergence from the reference, > 0.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import torch
        >>> pi, _ = closed_form(torch.tensor([[0.5, 0.9], [0.1, 0.5]]), torch.tensor([0.5, 0.5]), 1.0)
        >>> [round(p, 4) for p in pi.tolist()]
        [0.5987, 0.4013]
    """
    P_AA, reference_A = _preferences(P_AA), _distribution("the reference", reference_A, like=P_AA)
    _check_beta(beta)
    scores_AA = reference_A.log()[:, None] + P_AA / beta
    log_Z_A = scores_AA.logsumexp(0)
    pi_dagger_AA = (scores_AA - log_Z_A).exp()  # Eq. 5
    return (reference_A.log() - log_Z_A).softmax(0), pi_dagger_AA  # Eq. 11


def ipo_closed_form(P_AA: Tensor, mu_A: Tensor, reference_A: Tensor, beta: float) -> Tensor:
    """Returns IPO's optimal policy [A] of a game with A answers, which depends on the policy μ that collected pairs.

    π(y) ∝ π_ref(y) exp(p(y ≻ μ)/β) (arXiv 2310.12036, Eq. 7, τ = β).

    Args:
        P_AA: [A, A] preferences in [0, 1], P[i, j] = p(y_i ≻ y_j), P[i, j] + P[j, i] = 1.
        mu_A: [A] μ, the policy that collected the pairs; > 0, sums to 1.
        reference_A: [A] π_ref > 0, sums to 1.
        beta: weight of the divergence from the reference, > 0.

    Raises:
        ConfigError: an argument is out of range.
    """
    P_AA, reference_A = _preferences(P_AA), _distribution("the reference", reference_A, like=P_AA)
    _check_beta(beta)
    against_mu_A = P_AA @ _distribution("mu", mu_A, like=P_AA)
    return (reference_A.log() + against_mu_A / beta).softmax(0)


def population_weights(P_AA: Tensor, mu_A: Tensor) -> Tensor:
    """Returns W [A, A]: the probability that a pair of draws from μ is labelled "y_w chosen, y_l rejected".

    Args:
        P_AA: [A, A] preferences p(y_i ≻ y_j).
        mu_A: [A] probabilities of μ, the policy that collects the pairs.

    Raises:
        ConfigError: P is no table of preferences, or μ no probabilities > 0 that sum to 1.
    """
    P_AA = _preferences(P_AA)
    mu_A = _distribution("mu", mu_A, like=P_AA)
    return 2.0 * mu_A[:, None] * mu_A[None, :] * P_AA


def sampled_weights(P_AA: Tensor, mu_A: Tensor, *, pairs: int, seed: int) -> Tensor:
    """Returns W [A, A]: the share of "y_w chosen, y_l rejected" among `pairs` randomly drawn pairs; sums to 1.

    Each pair is two independent draws from μ and a label drawn from the preferences.

    Args:
        P_AA: [A, A] preferences p(y_i ≻ y_j).
        mu_A: [A] probabilities of μ.

    Raises:
        ConfigError: P is no table of preferences, μ no probabilities > 0 that sum to 1, or `pairs` is below 1.
    """
    P_AA = _preferences(P_AA)
    mu_A = _distribution("mu", mu_A, like=P_AA)
    if pairs < 1:
        raise ConfigError(f"{pairs} pairs", where="pairs", expected="at least 1")
    source = torch.Generator().manual_seed(seed)
    one, two = torch.multinomial(mu_A, 2 * pairs, replacement=True, generator=source).view(2, pairs)
    one_wins = torch.rand(pairs, generator=source, dtype=torch.float64) < P_AA[one, two]
    w, l = torch.where(one_wins, one, two), torch.where(one_wins, two, one)
    counts = torch.bincount(w * len(mu_A) + l, minlength=P_AA.numel())
    return counts.view_as(P_AA).double() / pairs


def table_loss(
    objective: Objective, tables: Tables, weights_AA: Tensor, reference_A: Tensor, *, beta: float, alpha: float
) -> Tensor:
    """Returns the mean loss of a draft and a revision policy, weighted over ordered pairs of answers; differentiable.

    Args:
        objective: an entry of `OBJECTIVES`.
        tables: logits of the draft and the revision policy.
        weights_AA: [A, A] W[w, l] ≥ 0, the share of pairs "y_w chosen, y_l rejected"; sums to 1.
        reference_A: [A] π_ref > 0, sums to 1; drafts and revisions share it.
        beta: weight of the divergence from the reference, > 0.
        alpha: weight of the improvement term, in [0, 1].
    """
    loss_C = objective.loss(tables.six(), Tables.tied(reference_A).six(), beta=beta, alpha=alpha).per_pair
    return (weights_AA.flatten() * loss_C).sum()


def minimise(
    objective: Objective, start: Tables, weights_AA: Tensor, reference_A: Tensor, *, beta: float, alpha: float
) -> Fit:
    """Returns the policies that minimise `table_loss`, found by L-BFGS from `start`; for arguments see `table_loss`.

    Raises:
        NonFiniteError: the loss or a gradient became nan or infinite.
    """
    tables = start.trainable()
    logits = [tables.draft_A, tables.revision_AA]
    search = torch.optim.LBFGS(
        logits,
        max_iter=2000,
        max_eval=4000,
        history_size=20,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = table_loss(objective, tables, weights_AA, reference_A, beta=beta, alpha=alpha)
        loss.backward()
        return loss

    if closure().isfinite():  # the line search would try thousands of steps from a nan
        search.step(closure)
    loss = float(closure().detach())
    gradient = max(float(table.grad.abs().max()) for table in logits if table.grad is not None)
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        raise NonFiniteError(f"loss {loss}, gradient {gradient}", where="fitting tables", expected="finite numbers")
    return Fit(*tables.policies(), loss, gradient)


def trajectory(
    objective: Objective,
    start: Tables,
    weights_AA: Tensor,
    reference_A: Tensor,
    *,
    beta: float,
    alpha: float,
    steps: int,
    learning_rate: float,
) -> Tensor:
    """Returns the draft policy π before the first and after every step of Adam on `table_loss`: [steps + 1, A].

    Args:
        start: logits of both policies before the first step; further arguments as in `table_loss`.
        steps: optimiser steps, ≥ 1.
        learning_rate: learning rate of Adam, > 0.

    Raises:
        ConfigError: `steps` is below 1.
        NonFiniteError: a probability became nan.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps", where="steps", expected="at least 1")
    tables = start.trainable()
    adam = torch.optim.Adam([tables.draft_A, tables.revision_AA], lr=learning_rate)
    path = [tables.policies()[0]]
    for step in range(1, steps + 1):
        adam.zero_grad()
        table_loss(objective, tables, weights_AA, reference_A, beta=beta, alpha=alpha).backward()
        adam.step()
        path.append(tables.policies()[0])
        if not path[-1].isfinite().all():
            raise NonFiniteError("a probability is nan", where=f"step {step}", fix="lower the learning rate")
    return torch.stack(path)


def _preferences(P_AA: Tensor) -> Tensor:
    P_AA = torch.as_tensor(P_AA, dtype=torch.float64)
    if P_AA.ndim != 2 or P_AA.shape[0] != P_AA.shape[1] or not len(P_AA):
        raise ConfigError(f"preferences of shape {tuple(P_AA.shape)}", where="P", expected="a square table")
    # 1e-6 accepts tables that were typed by hand or stored in float32.
    if not ((P_AA >= 0).all() and ((P_AA + P_AA.T - 1).abs() < 1e-6).all()):
        raise ConfigError("not preferences", where="P", expected="P[i][j] ≥ 0 and P[i][j] + P[j][i] = 1")
    return P_AA


def _distribution(name: str, p_A: Tensor, *, like: Tensor) -> Tensor:
    p_A = torch.as_tensor(p_A, dtype=torch.float64)
    if p_A.shape != like.shape[:1] or not ((p_A > 0).all() and abs(float(p_A.sum()) - 1) < 1e-6):
        expected = f"{len(like)} probabilities > 0 that sum to 1"
        raise ConfigError(f"{p_A.tolist()} is not a full-support distribution", where=name, expected=expected)
    return p_A


def _check_beta(beta: float) -> None:
    if not 0 < beta < math.inf:
        raise ConfigError(f"{beta} is not a temperature", where="beta", expected="a number > 0")
