"""What was found of a judge, as lines for a terminal."""

from __future__ import annotations

from srpo.judge.check import MEASURES, Checked
from srpo.statistics.agreement import Measure


def print_checked(checked: Checked) -> None:
    """One line per number, with its interval and what it is of, then what was spent."""
    print(f"{checked.judge}\n{len(checked.verdicts)} pairs\n")
    for name, told in MEASURES.items():
        if name in checked.measures:
            print(f"  {name:<17} {percent(checked.measures[name]):<28} {told}")
    print()
    for reason, count in sorted(checked.reasons.items(), key=lambda each: -each[1])[:5]:
        print(f"  unscored {count} times: {reason}")
    if spent := checked.record.get("spent"):
        cost = f", cost {spent['cost']:.4f}" if checked.record.get("price_in") is not None else ""
        print(f"  {spent['calls']} calls, {spent['tokens_in']:,} tokens read, {spent['tokens_out']:,} written{cost}")
    print("Percent, with 95 % intervals over prompts.")


def percent(measure: Measure) -> str:
    """A number and its interval in percent, and how many verdicts it is of."""
    if not measure.of:
        return "nothing to tell"
    value, low, high = (f"{100 * part:.1f}" for part in measure[:3])
    return f"{value} [{low}, {high}] n={measure.of}"
