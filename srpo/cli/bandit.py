"""`srpo bandit`: the paper's Figure 2, with SRPO, IPO and DPO through the library's own losses."""

from __future__ import annotations

from srpo.cli.parser import Parser


def main(argv: list[str]) -> int:
    """Fits the bandit, writes figure and tables, prints the tables.

    Raises:
        SRPOError: a flag, the range of a number or the output folder is wrong.
    """
    parser = Parser("bandit", "SRPO, IPO and DPO on the three-answer bandit of Figure 2, and what α = 0 leaves open.")
    parser.add_argument("--output_dir", required=True, help="folder for the figure and the tables")
    parser.add_argument("--steps", type=int, default=1500, help="Adam steps of each trajectory")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled pairs and the random starts")
    args = parser.parse_args(argv)

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
