"""The paper's bandit (Figure 2 of arXiv 2406.01660): three answers, no prompt, two policies that collected the data.

The best answer should not depend on the policy that collected the pairs. Every number comes from the objectives that
train language models, applied to tables of logits (`srpo.maths.tabular`).

Deviations from the paper:
1. α = 0.5 for SRPO. The figure uses α = 0, where a whole family of drafting policies minimises Eq. 16; the run shows
   that too.
2. Besides the trajectories of Adam, every fit is carried to convergence, on the sampled pairs and on the exact
   frequencies, so that slow training does not look like a difference between methods.
3. The sampling is repeated with other seeds, so that a lucky draw of pairs does not either.

Axes: A = 3 actions, T optimiser steps.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srpo import __version__
from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError
from srpo.maths.objective import OBJECTIVES
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
from srpo.report.curves import lay_out

P = ((0.50, 0.99, 0.30), (0.01, 0.50, 0.25), (0.70, 0.75, 0.50))  # P[i][j] = p(y_i ≻ y_j)
COLLECTORS = {"mu0": (1 / 3, 1 / 3, 1 / 3), "mu1": (0.15, 0.70, 0.15)}
METHODS = ("srpo", "ipo", "dpo")
BETA, ALPHA, PAIRS, LEARNING_RATE = 1.0, 0.5, 10_000, 0.01  # the learning rate is ours; the paper does not state it
SAMPLES, STARTS = 50, 5
STARTS_CAPTION = "SRPO from the reference and from random starts, on exact frequencies under mu1"


@dataclass(frozen=True)
class Panel:
    """One method trained on pairs from one collecting policy, in the bandit of A = 3 answers.

    Attributes:
        method: a key of `OBJECTIVES`.
        collector: a key of `COLLECTORS`.
        path: [steps + 1][A] policy π at the start and after each step of Adam on the sampled pairs.
        fitted: [A] π that minimises the loss on the sampled pairs.
        resampled: [SAMPLES][A] π fitted to fresh pairs of successive seeds; the first is `fitted`.
        population: [A] π that minimises the loss on the exact frequencies.
        closed_form: [A] theory's value of `population`; None for DPO, which has no closed form here.
    """

    method: str
    collector: str
    path: list[list[float]]
    fitted: list[float]
    resampled: list[list[float]]
    population: list[float]
    closed_form: list[float] | None


@dataclass(frozen=True)
class Start:
    """SRPO trained to convergence from one start, on the exact pair frequencies of the collecting policy mu1.

    Attributes:
        alpha: weight of the improvement term.
        start: "reference", or the seed of normally distributed starting logits.
        pi: [A] π at convergence.
        excess: loss at convergence minus the loss of the closed form, which is the minimum.
    """

    alpha: float
    start: str
    pi: list[float]
    excess: float


@dataclass(frozen=True)
class BanditResult:
    """All numbers of the bandit run, for its figure and tables."""

    steps: int
    seed: int
    panels: list[Panel]
    starts: list[Start]

    def moved(self) -> list[str]:
        """Returns the methods whose best answer, when converged, depends on the policy that collected the pairs."""
        best: dict[str, set[int]] = {}
        for panel in self.panels:
            best.setdefault(panel.method, set()).add(argmax(panel.fitted))
        return [method for method, answers in best.items() if len(answers) > 1]

    def fits(self) -> list[list[str]]:
        """Returns the table of the fitted policies as rows of text, header first."""
        head = ["pairs", "sampled", "exact", "closed form", "best"]
        rows = []
        for panel in self.panels:
            best = argmax(panel.fitted)
            agree = sum(argmax(pi) == best for pi in panel.resampled)
            columns = map(_probabilities, (panel.fitted, panel.population, panel.closed_form))
            name = f"{panel.method.upper()} {panel.collector}"
            rows.append([name, *columns, f"y{best} ({agree}/{len(panel.resampled)})"])
        return [head, *rows]

    def adam_gap(self) -> float:
        """Returns the largest difference between a probability after Adam's last step and the one at convergence."""
        ends = ((panel.path[-1], panel.fitted) for panel in self.panels)
        return max(abs(last - fitted) for pair in ends for last, fitted in zip(*pair, strict=True))

    def caption(self) -> str:
        """Returns the text that explains the columns of the table `fits`."""
        return (
            f"π(y0) π(y1) π(y2) at convergence: on {PAIRS:,} sampled pairs (seed {self.seed}), on exact frequencies, "
            f"and in theory; β = {BETA:g}, SRPO's α = {ALPHA:g}. In brackets: how many of {SAMPLES} samples agree "
            f"on the best answer. Adam's step {self.steps} is within {self.adam_gap():.0e} of convergence."
        )

    def starting_points(self) -> list[list[str]]:
        """Returns the table of SRPO's results from several starting points as rows of text, header first."""
        head = ["α", "start", "π at convergence", "excess loss", "best"]
        rows = [
            [f"{s.alpha:g}", s.start, _probabilities(s.pi), f"{abs(s.excess):.1g}", f"y{argmax(s.pi)}"]
            for s in self.starts
        ]
        return [head, *rows]

    def verdict(self) -> str:
        """Returns one sentence that names the methods whose best answer depends on who collected the pairs."""
        moved = self.moved()
        stays = [panel.method for panel in self.panels if panel.collector == "mu0" and panel.method not in moved]
        parts = []
        if moved:
            parts.append(f"the best answer depends on who collected the pairs with {_names(moved)}")
        if stays:
            parts.append(f"it does not with {_names(stays)}")
        return "At convergence " + "; ".join(parts) + "."


def argmax(pi: list[float]) -> int:
    """Returns the index of the most probable answer under the probabilities `pi`."""
    return max(range(len(pi)), key=pi.__getitem__)


def run_bandit(output_dir: str | Path, *, steps: int = 1500, seed: int = 0) -> BanditResult:
    """Trains SRPO, IPO and DPO on pairs from two collecting policies, writes files, and returns all numbers.

    Writes bandit.png, bandit.svg, results.json, trajectories.csv and table.md.

    Args:
        output_dir: folder for the files; made if missing.
        steps: Adam steps of each trajectory, ≥ 1.
        seed: seed of the sampled pairs and the random starts, 0 ≤ seed < 2⁶².

    Raises:
        ConfigError: steps or seed is out of range.
        OutputError: the folder or a file in it cannot be written.
    """
    if steps < 1:
        raise ConfigError(f"{steps} steps", where="steps", expected="at least 1")
    if not 0 <= seed < 2**62:
        raise ConfigError(f"seed {seed}", where="seed", expected="0 ≤ seed < 2**62")
    folder = writable_folder(Path(output_dir))
    panels = [_panel(method, collector, steps, seed) for collector in COLLECTORS for method in METHODS]
    seeds = [str(seed + k) for k in range(STARTS)]
    starts = [_start(alpha, start) for alpha in (0.0, ALPHA) for start in ("reference", *seeds)]
    result = BanditResult(steps, seed, panels, starts)
    write_file(folder / "results.json", (json.dumps(_as_json(result), indent=1) + "\n").encode())
    write_file(folder / "trajectories.csv", _as_csv(result).encode())
    write_file(folder / "table.md", _as_markdown(result).encode())
    for kind in ("png", "svg"):
        write_file(folder / f"bandit.{kind}", draw(result, kind))
    return result


def draw(result: BanditResult, kind: str) -> bytes:
    """Returns the bytes of an image of the policy against Adam steps: a row per collecting policy, a column per method.

    Closed forms are dashed.

    Args:
        kind: file format, "png" or "svg".
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same numbers give the same file.
    style: Any = {"svg.hashsalt": "srpo", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.5, 5.8))
        # One scale per method, because the upper panel is compared with the lower one.
        grid = figure.subplots(len(COLLECTORS), len(METHODS), sharex=True, sharey="col")
        for axis, panel in zip(grid.flat, result.panels, strict=True):
            _draw_panel(axis, panel)
        for axis in grid[-1]:
            axis.set_xlabel("Adam steps")
        figure.supylabel("probability (one scale per method)", fontsize="medium")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
        lay_out(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue()


def _draw_panel(axis: Any, panel: Panel) -> None:
    dashes = (0, (4, 3))
    best = argmax(panel.path[-1])
    for action, colour in enumerate(("#D55E00", "#009E73", "#0072B2")):
        name = _subscript(f"y{action}")
        if panel.closed_form:
            axis.axhline(panel.closed_form[action], color="#444444", linewidth=1, linestyle=dashes, zorder=1)
        axis.plot([pi[action] for pi in panel.path], color=colour, linewidth=2, label=f"π({name})")
        axis.annotate(
            name,
            (1, panel.path[-1][action]),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            weight="bold" if action == best else "normal",
        )
    axis.plot([], [], color="#444444", linewidth=1, linestyle=dashes, label="closed form (SRPO, IPO)")
    alpha = f" (α = {ALPHA:g})" if panel.method == "srpo" else ""
    collector = _subscript(panel.collector.replace("mu", "μ"))
    axis.set_title(
        f"{panel.method.upper()}{alpha}, pairs from {collector}: best is {_subscript(f'y{best}')}", fontsize=10
    )
    axis.margins(x=0, y=0.12)
    axis.locator_params(axis="x", nbins=4, integer=True)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def _subscript(name: str) -> str:
    return name.translate(str.maketrans("012", "₀₁₂"))


def _game(collector: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the game: preferences [A, A], probabilities of the named collector [A], uniform reference [A]."""
    preferences, mu = torch.tensor(P, dtype=torch.float64), torch.tensor(COLLECTORS[collector], dtype=torch.float64)
    return preferences, mu, torch.full_like(mu, 1 / len(mu))


def _panel(method: str, collector: str, steps: int, seed: int) -> Panel:
    P_AA, mu_A, reference_A = _game(collector)
    objective, start = OBJECTIVES[method], Tables.tied(reference_A)
    sample_AA = sampled_weights(P_AA, mu_A, pairs=PAIRS, seed=seed)
    theory = {"srpo": closed_form(P_AA, reference_A, BETA)[0], "ipo": ipo_closed_form(P_AA, mu_A, reference_A, BETA)}
    path_TA = trajectory(
        objective, start, sample_AA, reference_A, beta=BETA, alpha=ALPHA, steps=steps, learning_rate=LEARNING_RATE
    )

    def fit(weights_AA: Tensor) -> list[float]:
        pi: list[float] = minimise(objective, start, weights_AA, reference_A, beta=BETA, alpha=ALPHA).pi_A.tolist()
        return pi

    samples = (sampled_weights(P_AA, mu_A, pairs=PAIRS, seed=seed + k) for k in range(SAMPLES))
    resampled = [fit(weights_AA) for weights_AA in samples]
    return Panel(
        method=method,
        collector=collector,
        path=path_TA.tolist(),
        fitted=resampled[0],
        resampled=resampled,
        population=fit(population_weights(P_AA, mu_A)),
        closed_form=theory[method].tolist() if method in theory else None,
    )


def _start(alpha: float, start: str) -> Start:
    P_AA, mu_A, reference_A = _game("mu1")
    weights_AA, objective = population_weights(P_AA, mu_A), OBJECTIVES["srpo"]
    best = Tables.of(*closed_form(P_AA, reference_A, BETA))
    least = float(table_loss(objective, best, weights_AA, reference_A, beta=BETA, alpha=alpha))
    tables = Tables.tied(reference_A) if start == "reference" else Tables.random(len(mu_A), seed=int(start))
    fit = minimise(objective, tables, weights_AA, reference_A, beta=BETA, alpha=alpha)
    return Start(alpha, start, fit.pi_A.tolist(), fit.loss - least)


def _as_json(result: BanditResult) -> dict[str, Any]:
    settings = {
        "P": P,
        "collectors": COLLECTORS,
        "beta": BETA,
        "alpha": ALPHA,
        "pairs": PAIRS,
        "adam_lr": LEARNING_RATE,
    }
    numbers = asdict(result)
    for panel in numbers["panels"]:
        panel["adam"] = panel.pop("path")[-1]  # trajectories.csv has the whole path
    return {"srpo": __version__, "settings": settings, "moved": result.moved(), **numbers}


def _as_csv(result: BanditResult) -> str:
    lines = ["method,collector,step,y0,y1,y2"]
    for panel in result.panels:
        for step, pi in enumerate(panel.path):
            lines.append(",".join([panel.method, panel.collector, str(step), *(f"{p:.6f}" for p in pi)]))
    return "\n".join(lines) + "\n"


def _as_markdown(result: BanditResult) -> str:
    def table(rows: list[list[str]]) -> str:
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    return (
        f"# Bandit\n\n{result.caption()}\n\n{table(result.fits())}\n\n{result.verdict()}\n\n"
        f"## {STARTS_CAPTION}\n\n{table(result.starting_points())}\n"
    )


def _probabilities(pi: list[float] | None) -> str:
    return "none known" if pi is None else " ".join(f"{p:.4f}".lstrip("0") for p in pi)


def _names(methods: list[str]) -> str:
    return " and ".join(method.upper() for method in methods)
