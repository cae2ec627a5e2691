"""The calibration that `srpo calibrate` stores beside a model: how good its confidence is, and the chosen policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srpo.disk import write_file
from srpo.errors import ConfigError, InputError
from srpo.revise.policy import Policy
from srpo.revise.settings import LAST, SELECTORS
from srpo.statistics.calibration import Bin, linked

CALIBRATION_FILE = "srpo_calibration.json"
GATE_FILE = "srpo_gate.json"  # written by `srpo calibrate --before`, see evaluate/gate.py
FORMAT = 1


@dataclass(frozen=True)
class CalibratedPolicy:
    """The revision policy chosen on one half of the labelled prompts, with its gain on the other half.

    Attributes:
        policy: Chosen policy: "drafts", "greedy", "vote", "if_preferred" or "always".
        revisions: Largest number of revisions.
        gain, low, high: Score of `rival` minus score of its drafts, and the ends of the 95 % interval, as shares.
        select: Selector of the final answer.
        rival: Policy, selector and number of revisions that scored best on the first half, such as "always, k = 2" or
            "always + logp, k = 2"; "greedy" has no number. If the interval of its gain does not lie above zero, the
            chosen policy is "drafts" instead.
    """

    policy: str
    revisions: int
    gain: float
    low: float
    high: float
    rival: str
    select: str = LAST

    def sentence(self) -> str:
        """Returns the chosen revision policy and its gain in points as a sentence."""
        evidence = (
            f"{self.rival}: final answers {100 * self.gain:+.1f} points against drafts "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"
        ).replace("-", "−")
        named = {"drafts": "drafts only", "greedy": "one greedy draft"}
        chosen = named.get(self.policy, f"policy {self.policy}, {self.revisions} revisions at most")
        chosen += f", final answer by {self.select}" if self.select != LAST else ""
        return f"{chosen}; {evidence}"


@dataclass(frozen=True)
class Calibration:
    """Result of `srpo calibrate`: the chosen revision policy of one model, and the quality of its confidence.

    Attributes:
        choice: Policy that `auto` uses with this model.
        prompts: Number of labelled prompts.
        pairs: Number of first revisions that differ from their draft, one of the two being strictly better.
        auc, brier, error, temperature: Quality of the confidence on these pairs, see statistics/calibration.py. All are
            None without such a pair, `auc` and `temperature` also if all revisions are better, or all worse.
        linked_brier, linked_error: `brier` and `error` after the fitted link σ((p − ½) / T), T the `temperature`.
        table: Reliability table of the raw confidence.
        seen: Mean and standard deviation of statistics of the prompts, see revise/drift.py; empty in older files.
        made_with: Settings of the measurement: equation, judge, decoding temperature, revisions, seed and version.
    """

    choice: CalibratedPolicy
    prompts: int
    pairs: int
    auc: float | None
    brier: float | None
    error: float | None
    temperature: float | None
    linked_brier: float | None
    linked_error: float | None
    table: tuple[Bin, ...]
    made_with: Mapping[str, Any]
    seen: Mapping[str, list[float]] = field(default_factory=dict)

    def probability(self, preferred: float) -> float:
        """Maps the raw confidence in a revision into (0, 1) by the fitted sigmoid; without one, clips it to [0, 1]."""
        if self.temperature is None:
            return min(1.0, max(0.0, preferred))
        return linked([preferred], self.temperature)[0]

    def sentences(self) -> list[str]:
        """Returns the quality of the model's confidence as sentences: Brier score, calibration error, AUC."""
        if self.brier is None or self.error is None:
            return [
                f"no confidence to measure: {self.prompts:,} prompts, no reference or no revision that changes a score"
            ]
        basis = f"{self.pairs:,} first revisions that are better or worse than their draft, of {self.prompts:,} prompts"
        lines = [f"{basis}: Brier score {self.brier:.3f}, expected calibration error {self.error:.3f}"]
        if self.auc is not None and self.linked_brier is not None and self.linked_error is not None:
            fitted = f"σ((p − ½) / {self.temperature:.3g})"
            lines[0] += f", AUC {self.auc:.3f}"
            lines += [f"through the fitted link {fitted}: {self.linked_brier:.3f} and {self.linked_error:.3f}"]
        return lines

    def save(self, folder: str | Path) -> Path:
        """Writes the calibration into a model's folder as JSON, and returns the file's path.

        Raises:
            OutputError: The file cannot be written.
        """
        path = Path(folder) / CALIBRATION_FILE
        row = {"format": FORMAT, **asdict(self)}
        write_file(path, (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Calibration | None:
        """Reads the calibration in a model's folder; returns None if there is no calibration.

        Raises:
            InputError: The file is damaged.
        """
        path = Path(folder) / CALIBRATION_FILE
        if not str(folder) or not path.is_file():
            return None
        try:
            row = json.loads(path.read_text("utf-8"))
            if row.pop("format") != FORMAT:
                raise ValueError("another format")
            choice, table = CalibratedPolicy(**row.pop("choice")), tuple(Bin(**each) for each in row.pop("table"))
            Policy.named(choice.policy)
            if choice.select not in SELECTORS:
                raise ValueError(f"no selector {choice.select!r}")
            return cls(choice=choice, table=table, **row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            fix = "run `srpo calibrate` again, or name a policy"
            raise InputError(f"not a calibration: {error}", where=str(path), fix=fix) from None


def calibrated_policy(folder: str) -> str:
    """Returns policy, number of revisions and selector stored by `srpo calibrate`, as text; "" if none is stored."""
    found = Calibration.load(folder)
    return f"{found.choice.policy}, {found.choice.revisions}{_selected(found.choice)}" if found is not None else ""


def _selected(choice: CalibratedPolicy) -> str:
    return f", {choice.select}" if choice.select != LAST else ""
