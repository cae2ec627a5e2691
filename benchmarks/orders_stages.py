"""Sizes, first seeds and folders of the orders benchmark (benchmarks/orders.py): one `Stage` is one seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks import orders as task
from benchmarks.tasks import pictured_orders
from srpo.disk import write_file
from srpo.revise.reviser import Reviser
from srpo.tasks.stages import run_stage

# First seeds of orders: no two stages share orders.
ROLE, PAIRS, EVALUATION, GATES, READY = 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000
# Names of the sizes that decide each step: of the second role, of the pairs, and of the methods.
ROLE_SIZES = ("role_prompts", "role_steps", "batch", "role_learning_rate")
PAIR_SIZES = (*ROLE_SIZES, "pair_prompts", "draws")
METHOD_SIZES = (*PAIR_SIZES, "steps", "beta", "learning_rate")


@dataclass(frozen=True)
class Sizes:
    """Sizes and settings of a run, each one a flag of the command."""

    base_steps: int = 2000
    cycles: int = 5
    base_learning_rate: float = 1e-4
    ready: int = 1000
    labelled: int = 300
    role_prompts: int = 3000
    role_steps: int = 1000
    role_learning_rate: float = 1e-3
    pair_prompts: int = 2500
    draws: int = 40
    least_pairs: int = 800
    steps: int = 100
    batch: int = 32
    beta: float = 0.1
    learning_rate: float = 5e-5
    prompts: int = 1000
    revisions: int = 3
    batch_size: int = 500


class GateClosed(SystemExit):
    """A step whose numbers do not allow the next one; its text names the number and a remedy."""


@dataclass(frozen=True)
class Stage:
    """A seed's folder and settings.

    Attributes:
        run: folder of the seed.
        seed: seed of weights, orders and draws.
        model: folder of a pretrained model; empty for one from scratch.
        sizes: sizes and settings.
        strict: whether a gate that fails stops the command.
        pictured: whether the amounts are in pictures.
    """

    run: Path
    seed: int
    model: str
    sizes: Sizes
    strict: bool = True
    pictured: bool = False

    @property
    def wording(self) -> task.Wording:
        """Words for a pretrained model; letters, or amounts without names for pictures, for one from scratch."""
        if self.pictured:
            return pictured_orders.WORDING
        return task.WORDS if self.model else task.LETTERS

    def rows(self, n: int, split: str, first: int, *, lines_first: bool = False) -> list[dict[str, str]]:
        """Rows of `n` orders of this seed; `first` is the first seed of their stage."""
        seed = first + self.seed
        rows = task.orders(n, split, seed=seed, wording=self.wording, lines_first=lines_first)
        if self.pictured:
            return pictured_orders.shown(rows, split, self.run / "pictures" / f"{first}.{split}", seed=seed)
        return rows

    @property
    def splits(self) -> Sequence[str]:
        """Splits of the gates; a pretrained model has learnt no longer orders."""
        return ("in", "out") if self.model else task.SPLITS

    def reviser(self, name: str) -> Reviser:
        """Loads one of the seed's models."""
        return Reviser(str(self.run / name), batch_size=self.sizes.batch_size)

    def drafts(
        self, name: str, rows: Sequence[Mapping[str, str]], heat: float, *, seeds: Sequence[int] = (0,), tokens: int = 0
    ) -> list[list[str]]:
        """For each seed one draft of each row by one of the seed's models, at most `tokens` long; 0: a whole answer."""
        reviser, how = self.reviser(name), {"temperature": heat, "max_new_tokens": tokens or self.wording.tokens}
        return [[t.after(0).text for t in reviser.revise(rows, 0, seed=seed, **how)] for seed in seeds]

    def done(self, name: str, work: Callable[[Path], None], *names: str) -> float:
        """Does a stage of this seed once, as `run_stage`; `names` are the sizes that decide it beside the base's."""
        base = ("base_steps", *(("batch", "base_learning_rate") if self.model else ()))
        sizes = {name: asdict(self.sizes)[name] for name in (*base, *names)}
        kind = {"pictured": True} if self.pictured else {}
        return run_stage(self.run / name, {"seed": self.seed, "model": self.model, **kind, **sizes}, work)

    def noted(self) -> dict[str, dict[str, Any]]:
        """The numbers of the steps so far."""
        file = self.run / "gates.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else {}

    def note(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Keeps the numbers of a step in `gates.json`, and prints them."""
        known = {**self.noted(), name: numbers}
        write_file(self.run / "gates.json", (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode())
        texts = (
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in numbers.items()
        )
        print(f"seed {self.seed}, {name}: {', '.join(texts)}", flush=True)

    def expect(self, passes: bool, problem: str) -> None:
        """Stops the command, or says so, if a gate does not pass."""
        if not passes and self.strict:
            raise GateClosed(f"seed {self.seed}: {problem}; the numbers are in {self.run / 'gates.json'}")
        if not passes:
            print(f"seed {self.seed}: gate ignored: {problem}", flush=True)
