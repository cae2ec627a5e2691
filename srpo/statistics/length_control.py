"""Length-controlled win rate: the win rate if both answers were equally long.

It comes from a logistic fit on the verdicts at hand:

    P(a beats b on a prompt) = σ(θ + φ · tanh(Δ / s)),   Δ = length of a − length of b, s its standard deviation

and σ(θ) is the length-controlled win rate. The function tanh keeps a few answers of extreme length from dominating the
fit; ties are half a win and half a loss. A weak penalty (RIDGE · (θ² + φ²) / 2, added to a sum over all prompts) keeps
the fit finite where all verdicts are equal; with a hundred mixed verdicts it moves the result by less than 0.1 points.

The fit cannot separate a judge's liking for length from real merit: the longer answer may contain more of the facts
that were asked for. Read the controlled rate next to the plain win rate, not instead of it.

Axes: N prompts, D draws, 2 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.statistics.bootstrap import LEVEL, Interval, bootstrap, ends_of, resamples

RIDGE, STEPS, REFITS = 0.01, 12, 1000


def length_controlled(
    wins_N: Tensor, longer_N: Tensor, *, draws: int = REFITS, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Returns the win rate at equal length, σ(θ), in (0, 1), with its bootstrap interval; every draw is fitted anew.

    Args:
        wins_N: [N] verdict on each prompt: 1 for a win, ½ for a tie, 0 for a loss, or a share in between.
        longer_N: [N] length of the answer whose wins are counted, minus the other's length; any unit.
        draws: number of bootstrap draws; the default is lower than for a mean, because each draw is a fit.
        seed, level: seed of the draws, and nominal coverage of the interval.

    Raises:
        ConfigError: the two tensors differ in length or are empty.

    Example:
        >>> import torch
        >>> won, longer = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([9.0, 8.0, 9.0, 1.0])
        >>> plain, controlled = float(won.mean()), length_controlled(won, longer).mean
        >>> controlled < plain
        True
    """
    if wins_N.shape != longer_N.shape or wins_N.dim() != 1 or not len(wins_N):
        shapes = f"{tuple(wins_N.shape)} and {tuple(longer_N.shape)}"
        raise ConfigError(f"wins and lengths of shapes {shapes}", expected="two of one length")
    wins_N, longer_N = wins_N.to(torch.float64), longer_N.to(torch.float64)
    spread = float(longer_N.std(correction=0))
    if not spread:  # all lengths are equal: nothing to control for
        return bootstrap(wins_N[:, None], draws=draws, seed=seed, level=level).column(0)
    x_N = torch.tanh(longer_N / spread)
    once_1N = torch.ones(1, len(wins_N), dtype=torch.float64)
    mean = float(torch.sigmoid(_fit(wins_N, x_N, once_1N)[0, 0]))
    rates = [
        torch.sigmoid(_fit(wins_N, x_N, counts_DN)[:, 0])
        for counts_DN in resamples([len(wins_N)], draws=draws, seed=seed)
    ]
    low, high = torch.quantile(torch.cat(rates), ends_of(level)).tolist()
    return Interval(mean, low, high)


def _fit(wins_N: Tensor, x_N: Tensor, counts_DN: Tensor) -> Tensor:
    """[D, 2] θ and φ fitted to each of D draws by Newton's method; `counts_DN` is how often a draw has a prompt."""
    found_D2 = torch.zeros(len(counts_DN), 2, dtype=torch.float64)
    for _ in range(STEPS):
        p_DN = torch.sigmoid(found_D2[:, :1] + found_D2[:, 1:] * x_N)
        missed_DN = counts_DN * (wins_N - p_DN)
        slope_D2 = torch.stack([missed_DN.sum(1), missed_DN @ x_N], 1) - RIDGE * found_D2
        weight_DN = counts_DN * p_DN * (1 - p_DN)
        a_D = weight_DN.sum(1) + RIDGE
        b_D = weight_DN @ x_N
        c_D = weight_DN @ x_N.square() + RIDGE
        # The Hessian is [[a, b], [b, c]]; a two-by-two inverse is written out.
        step_D2 = torch.stack(
            [c_D * slope_D2[:, 0] - b_D * slope_D2[:, 1], a_D * slope_D2[:, 1] - b_D * slope_D2[:, 0]], 1
        )
        step_D2 = step_D2 / (a_D * c_D - b_D.square())[:, None]
        # Newton's method overshoots where nearly all verdicts agree; steps limited to 2 let it recover.
        found_D2 = found_D2 + step_D2.clamp(-2, 2)
    return found_D2
