"""`srpo bandit`: the paper's Figure 2, with SRPO, IPO and DPO through the library's own losses."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import parse
from srpo.settings import setting, shared


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo bandit`, which reproduces the paper's bandit figure."""

    output_dir: str = setting(help="Folder for the figure and the tables.")
    steps: int = setting(1500, "Number of Adam steps of each trajectory.")
    seed: int = shared("seed", help="Seed of the sampled pairs and the random starting points.")


def main(argv: list[str]) -> int:
    """Runs `srpo bandit`: fits SRPO, IPO and DPO to a three-answer bandit, and writes the figure and tables.

    Returns:
        0; mistakes raise an error.

    Raises:
        SRPOError: a wrong flag, a number out of range, or an output folder that cannot be written.
    """
    description = "SRPO, IPO and DPO on the three-answer bandit of Figure 2, and the optima that α = 0 allows."
    args = parse("bandit", description, Arguments, argv)

    from rich.console import Console
    from rich.table import Table

    from srpo.tasks.bandit import STARTS_CAPTION, run_bandit

    console = Console(highlight=False)
    result = run_bandit(args.output_dir, steps=args.steps, seed=args.seed)
    for caption, (head, *rows) in (
        (result.caption(), result.fits()),
        (f"{STARTS_CAPTION}:", result.starting_points()),
    ):
        table = Table(*head, box=None, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*row)
        console.print(caption, table, "", sep="\n")
    console.print(result.verdict())
    console.print(f"Figure and tables are in {args.output_dir}.", markup=False, soft_wrap=True)
    return 0
