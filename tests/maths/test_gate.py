"""The closed form of the gate against gradient descent on the paper's losses, sums, and simulated models."""

from __future__ import annotations

import math
import random

import pytest
import torch

from srpo.maths.gate import Rates, reach
from srpo.maths.objective import SixLogps, ipo_loss, srpo_loss


def rates(right: float, fresh: float, mend: float, keep: float, copies: float = 0.0) -> Rates:
    return Rates(*(torch.tensor([each]) for each in (right, fresh, mend, keep, copies)))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def minimised(p: float, m: float, k: float, beta: float) -> tuple[float, float, float, float]:
    """IPO's draft, and SRPO's draft, mending and keeping: gradient descent on the losses of one pair (right, wrong)."""
    reference = torch.tensor([logit(p), logit(m), logit(k), logit(p)], dtype=torch.float64)
    shift = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([shift], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def six(logits: torch.Tensor) -> SixLogps:
        right, wrong = (torch.nn.functional.logsigmoid(sign * logits)[:, None] for sign in (1, -1))
        return SixLogps(right[0], wrong[0], right[2], wrong[2], right[1], wrong[1])

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        ours, theirs = six(reference + shift), six(reference)
        drafts = six((reference + shift)[3:].expand(3))
        total = srpo_loss(ours, theirs, beta=beta, alpha=0.5).loss + ipo_loss(drafts, theirs, beta=beta).loss
        total.backward()
        return total

    optimiser.step(loss)
    draft, mend, keep, ipo = torch.sigmoid(reference + shift).tolist()
    return ipo, draft, mend, keep


@pytest.mark.parametrize(
    ("p", "m", "k", "beta"), [(0.1, 0.1, 0.1, 0.2), (0.1, 0.01, 0.99, 0.2), (0.1, 0.3, 0.9, 0.2), (0.4, 0.5, 0.8, 0.5)]
)
def test_one_prompt_equals_gradient_descent(p: float, m: float, k: float, beta: float) -> None:
    found = reach(rates(p, p, m, k), beta)
    ipo, draft, mend, keep = minimised(p, m, k, beta)
    assert float(found.ipo) == pytest.approx(ipo, abs=2e-3)
    assert float(found.draft) == pytest.approx(draft, abs=2e-3)
    assert float(found.revised) == pytest.approx(draft * keep + (1 - draft) * mend, abs=2e-3)
    assert float(found.ipo_best_of_2) == pytest.approx(1 - (1 - ipo) ** 2, abs=3e-3)
    # Negative control: another β gives another reach.
    assert float(reach(rates(p, p, m, k), 2 * beta).ipo) != pytest.approx(ipo, abs=2e-2)


def test_many_prompts_equal_a_simulation() -> None:
    """Prompts drawn from the beta distribution, each solved alone by the formulas of one prompt."""
    rng, a, b, beta, lift = random.Random(0), 0.6, 1.4, 0.25, 0.7
    t = 1 / (2 * beta)
    drawn = [rng.betavariate(a, b) for _ in range(40_000)]
    p = torch.tensor(drawn, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    m = k = (torch.logit(p) + lift).sigmoid()
    right, wrong = p.mean(), 1 - p.mean()
    measured = (right, (p * (1 - p)).mean() / wrong, ((1 - p) * m).mean() / wrong, (p * k).mean() / right)
    found = reach(rates(*(float(each) for each in measured)), beta)
    ipo = (torch.logit(p) + t).sigmoid()
    draft = (torch.logit(p) + t - torch.log((1 + k * math.expm1(t)) / (1 + m * math.expm1(t)))).sigmoid()
    revised = draft * (torch.logit(k) + t).sigmoid() + (1 - draft) * (torch.logit(m) + t).sigmoid()
    for ours, theirs in ((found.ipo, ipo), (found.draft, draft), (found.revised, revised)):
        assert float(ours) == pytest.approx(float(theirs.mean()), abs=0.01)
    assert float(found.ipo_best_of_2) == pytest.approx(float((1 - (1 - ipo) ** 2).mean()), abs=0.01)
    # Negative control: prompts taken for alike are too hopeful about a second draft.
    alike = reach(rates(*(float(each) for each in (right, right, *measured[2:]))), beta)
    assert float(alike.ipo_best_of_2) > float(found.ipo_best_of_2) + 0.1


def test_a_revision_that_is_a_new_draft_reaches_a_draft_of_ipo() -> None:
    """(G7): with m = f, and k the chance that a second draft is right after a right one, the shifts are zero."""
    right, fresh = 0.4, 0.15
    keep = 1 - fresh * (1 - right) / right
    found = reach(rates(right, fresh, fresh, keep), 0.2)
    assert float(found.revised) == pytest.approx(float(found.ipo), abs=1e-4)
    better = reach(rates(right, fresh, 2 * fresh, keep), 0.2)
    assert float(better.revised) > float(found.revised) + 0.03


def test_extreme_rates_stay_finite() -> None:
    for row in ((0.0, 0.0, 0.0, 0.5), (1.0, 0.5, 0.5, 1.0), (0.5, 0.0, 0.0, 1.0), (0.5, 0.9, 1.0, 0.0)):
        found = torch.stack(reach(rates(*row), 0.01))
        assert bool(found.isfinite().all())
        assert bool(((found >= 0) & (found <= 1)).all())
