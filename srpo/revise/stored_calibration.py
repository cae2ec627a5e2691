"""What `srpo calibrate` found out about a model, kept beside its weights: how far its confidence goes, and whether
revising with it helps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo.disk import write_file
from srpo.errors import ConfigError, InputError
from srpo.revise.policy import Policy
from srpo.statistics.calibration import Bin, linked

CALIBRATION_FILE = "srpo_calibration.json"
FORMAT = 1


@dataclass(frozen=True)
class CalibratedPolicy:
    """Whether to revise, and how: decided on one half of the labelled prompts, its interval from the other half.

    Attributes:
        policy: "drafts", "if_preferred" or "always".
        revisions: how many.
        gain, low, high: final score minus draft's, in shares, of the best way of revising; of what would have been
            lost or won where drafts were chosen.
        rival: the way of revising that these numbers are of, as "policy, k = K".
    """

    policy: str
    revisions: int
    gain: float
    low: float
    high: float
    rival: str

    def sentence(self) -> str:
        """What was decided and on what grounds."""
        grounds = (
            f"{self.rival}: final answers {100 * self.gain:+.1f} points against drafts "
            f"(95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f})"
        ).replace("-", "−")
        said = "drafts only" if self.policy == "drafts" else f"policy {self.policy}, {self.revisions} revisions at most"
        return f"{said}; {grounds}"


@dataclass(frozen=True)
class Calibration:
    """One labelled set's verdict on one model.

    Attributes:
        choice: what `auto` does with this model.
        prompts: labelled prompts.
        pairs: first revisions that differ from their draft, one of the two strictly better.
        auc, brier, error, temperature: Of the confidence in these pairs (statistics/calibration.py); None if all
            revisions are better, or all worse.
        linked_brier, linked_error: the same after the fitted link σ((p − ½) / T).
        table: reliability, raw.
        made_with: equation, judge, temperature of decoding, revisions, seed, version.
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

    def probability(self, preferred: float) -> float:
        """A raw confidence through the fitted link, in (0, 1); clipped where none could be fitted."""
        if self.temperature is None:
            return min(1.0, max(0.0, preferred))
        return linked([preferred], self.temperature)[0]

    def sentences(self) -> list[str]:
        """What was found about the confidence, in words."""
        if self.brier is None or self.error is None:
            return [f"no confidence to weigh: {self.prompts:,} prompts, no reference or no first revision that matters"]
        basis = f"{self.pairs:,} first revisions that are better or worse than their draft, of {self.prompts:,} prompts"
        said = [f"{basis}: Brier score {self.brier:.3f}, expected calibration error {self.error:.3f}"]
        if self.auc is not None and self.linked_brier is not None and self.linked_error is not None:
            fitted = f"σ((p − ½) / {self.temperature:.3g})"
            said[0] += f", AUC {self.auc:.3f}"
            said += [f"through the fitted link {fitted}: {self.linked_brier:.3f} and {self.linked_error:.3f}"]
        return said

    def save(self, folder: str | Path) -> Path:
        """Writes it beside the model.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(folder) / CALIBRATION_FILE
        row = {"format": FORMAT, **asdict(self)}
        write_file(path, (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Calibration | None:
        """What stands beside a model; None where nothing does.

        Raises:
            InputError: something else stands there.
        """
        path = Path(folder) / CALIBRATION_FILE
        if not str(folder) or not path.is_file():
            return None
        try:
            row = json.loads(path.read_text("utf-8"))
            if row.pop("format") != FORMAT:
                raise ValueError("of another format")
            choice, table = CalibratedPolicy(**row.pop("choice")), tuple(Bin(**each) for each in row.pop("table"))
            Policy.named(choice.policy)
            return cls(choice=choice, table=table, **row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            fix = "`srpo calibrate` writes it anew; or name a policy"
            raise InputError(f"not a calibration: {error}", where=str(path), fix=fix) from None


def calibrated_policy(folder: str) -> str:
    """What was decided for a model, in a word: half of a file of trails must not follow another decision."""
    found = Calibration.load(folder)
    return f"{found.choice.policy}, {found.choice.revisions}" if found is not None else ""
