"""The bandit: the claim of Figure 2, the files, and what a user can get wrong."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import srpo.cli.bandit
from srpo.errors import ConfigError, OutputError, UsageError
from srpo.tasks import bandit
from srpo.tasks.bandit import ALPHA, BanditResult, argmax, run_bandit

STEPS, SAMPLES = 40, 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BanditResult]:
    folder = tmp_path_factory.mktemp("bandit") / "made" / "on the way"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandit, "SAMPLES", SAMPLES)
        return folder, run_bandit(folder, steps=STEPS, seed=0)


@pytest.fixture
def few_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bandit with 3 samples and 2 starts: 30 fits in place of 312."""
    monkeypatch.setattr(bandit, "SAMPLES", 3)
    monkeypatch.setattr(bandit, "STARTS", 2)


def test_the_claim_of_figure_2(run: tuple[Path, BanditResult]) -> None:
    best = {(panel.method, panel.collector): argmax(panel.fitted) for panel in run[1].panels}
    assert best == {
        ("srpo", "mu0"): 2,
        ("srpo", "mu1"): 2,
        ("ipo", "mu0"): 2,
        ("ipo", "mu1"): 0,
        ("dpo", "mu0"): 2,
        ("dpo", "mu1"): 0,
    }
    assert run[1].moved() == ["ipo", "dpo"]
    assert "with IPO and DPO; it does not with SRPO" in run[1].verdict()


def test_the_claim_holds_for_every_draw_of_pairs(run: tuple[Path, BanditResult]) -> None:
    for panel in run[1].panels:
        assert panel.resampled[0] == panel.fitted
        assert len({tuple(pi) for pi in panel.resampled}) == SAMPLES
        assert {argmax(pi) for pi in panel.resampled} == {argmax(panel.fitted)}


def test_exact_frequencies_give_the_closed_forms(run: tuple[Path, BanditResult]) -> None:
    known = [panel for panel in run[1].panels if panel.closed_form is not None]
    assert {panel.method for panel in known} == {"srpo", "ipo"}
    for panel in known:
        assert panel.population == pytest.approx(panel.closed_form, abs=1e-5)
        # 10,000 pairs put a frequency off by at most 0.005 (one deviation); 0.02 is four of them.
        assert panel.fitted == pytest.approx(panel.closed_form, abs=0.02)


def test_numbers_of_an_independent_fit(run: tuple[Path, BanditResult]) -> None:
    """A numpy fit with hand-derived gradients, Adam 0.01, 20,000 steps, exact frequencies gave these for DPO."""
    dpo = {panel.collector: panel.population for panel in run[1].panels if panel.method == "dpo"}
    assert dpo["mu0"] == pytest.approx([0.405, 0.069, 0.527], abs=1e-3)
    assert dpo["mu1"] == pytest.approx([0.632, 0.063, 0.306], abs=1e-3)


def test_alpha_zero_against_alpha_half(run: tuple[Path, BanditResult]) -> None:
    starts = run[1].starts
    assert all(abs(start.excess) < 1e-12 for start in starts)
    assert {argmax(start.pi) for start in starts if start.alpha == 0.0} == {0, 2}
    assert {argmax(start.pi) for start in starts if start.alpha == ALPHA} == {2}
    # From the reference α = 0 does put y2 first, at probabilities that are not the optimal ones.
    theory = run[1].panels[0].closed_form
    from_reference = {start.alpha: start.pi for start in starts if start.start == "reference"}
    assert argmax(from_reference[0.0]) == 2
    assert from_reference[0.0] != pytest.approx(theory, abs=0.01)
    assert from_reference[ALPHA] == pytest.approx(theory, abs=1e-6)


def test_the_files(run: tuple[Path, BanditResult]) -> None:
    folder, result = run
    written = {path.name for path in folder.iterdir()}
    assert written == {"bandit.png", "bandit.svg", "results.json", "trajectories.csv", "table.md"}
    assert (folder / "bandit.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.parse(folder / "bandit.svg").getroot().tag.endswith("svg")

    numbers = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert numbers["moved"] == ["ipo", "dpo"]
    assert numbers["panels"][3]["fitted"] == result.panels[3].fitted

    with (folder / "trajectories.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result.panels) * (STEPS + 1)
    last = [float(rows[-1][name]) for name in ("y0", "y1", "y2")]
    assert last == pytest.approx(result.panels[-1].path[-1], abs=1e-6)

    table = (folder / "table.md").read_text(encoding="utf-8")
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {len(result.fits()[0]) + 1}
    assert result.verdict() in table


@pytest.mark.usefixtures("few_fits")
def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_bandit(tmp_path / name, steps=5, seed=0)
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("few_fits", "empty_figures")
def test_the_verb_prints_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert srpo.cli.bandit.main(["--output_dir", str(tmp_path / "[red]"), "--steps", "1", "--seed", "5"]) == 0
    text = capsys.readouterr().out
    assert "closed form" in text
    assert "SRPO mu1" in text
    assert "seed 5" in " ".join(text.split())
    assert "[red]" in text  # a folder's name is not markup
    # One Adam step tells no answers apart; the verdict speaks of convergence.
    assert re.search(r"it\s+does\s+not\s+with\s+SRPO", text)


@pytest.mark.parametrize(
    ("steps", "seed", "key"), [(0, 0, "steps"), (-5, 0, "steps"), (1, -1, "seed"), (1, 2**63, "seed")]
)
def test_numbers_out_of_range(tmp_path: Path, steps: int, seed: int, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        run_bandit(tmp_path / "new", steps=steps, seed=seed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "argv", [[], ["--output_dir"], ["--output_dir", "x", "--steps", "many"], ["--output_dir", "x", "--step", "5"]]
)
def test_a_wrong_command_line(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        srpo.cli.bandit.main(argv)


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(OutputError, match="taken"):
            run_bandit(folder, steps=1)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.usefixtures("few_fits")
def test_a_file_that_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(OutputError, match=r"results\.json"):
        run_bandit(tmp_path, steps=1)
