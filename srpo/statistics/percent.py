"""Numbers as text: shares as percent, differences as percentage points, measures with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srpo.statistics.agreement import Measure


def bare(share: float) -> str:
    """Returns a share as text in percent with one decimal and no percent sign: 0.5 gives "50.0"."""
    return f"{100 * share:.1f}"


def percent(share: float) -> str:
    """Returns a share as text in percent with one decimal and the percent sign: 0.5 gives "50.0 %"."""
    return f"{bare(share)} %"


def points(share: float) -> str:
    """Returns a difference of shares as text in percentage points, signed, with one decimal; never "−0.0".

    Example:
        >>> points(0.0312), points(-0.0312), points(-0.0001)
        ('+3.1', '−3.1', '0.0')
    """
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def measured(measure: Measure) -> str:
    """Returns a share as text in percent with its interval and its number of verdicts.

    Example:
        >>> from srpo.statistics.agreement import Measure
        >>> measured(Measure(0.5, 0.25, 0.75, 8))
        '50.0 [25.0, 75.0] n=8'
    """
    if not measure.of:
        return "no verdicts"
    value, low, high = map(bare, measure[:3])
    return f"{value} [{low}, {high}] n={measure.of}"
