"""Step 5 of benchmarks/orders.py: drafts and revisions of all seeds against every opponent, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.orders_stages import EVALUATION, METHOD_SIZES, ROLE_SIZES, Stage
from benchmarks.tasks import orders as task
from benchmarks.when_pays import Handed
from srpo.data.read import read_prompts
from srpo.evaluate.answers import draw_all, read_prompt_files, read_systems
from srpo.evaluate.plan import BOUNDS, Plan
from srpo.evaluate.run import evaluate
from srpo.judge.single import Judge, exact_match
from srpo.revise.settings import RevisionSettings
from srpo.score.pooling import grouped
from srpo.score.results import Results, Side, SystemComparison
from srpo.score.scores import score
from srpo.score.summary import Question, summarise
from srpo.tasks.carry import write_rows

JUDGES: dict[str, Judge] = {"total": task.total, "whole answer": exact_match}
AT_ALL = ["draft_only", "greedy"]
DRAFTS = [*AT_ALL, "best_of_logp", "best_of_mean_logp", "best_of_vote", "majority"]
REFERENCE = ["reference", "reference_greedy"]
ALL = [*DRAFTS, "best_of", "best_of_reference_logp", "oracle", *REFERENCE]
BEFORE = "before"  # the model of step 2, which no preference has trained
OURS = ("srpo", "srpo_greedy", BEFORE, f"{BEFORE}_greedy")  # compared with every other system after one revision


def tables(
    root: Path, stages: Sequence[Stage], methods: Sequence[str], splits: Sequence[str], temperatures: Sequence[float]
) -> None:
    """Evaluates all seeds, prints the tables and writes them to `tables.md`."""
    pages = []
    for split in splits:
        for heat in temperatures:
            plan = plan_of(root, stages, methods, split, heat)
            evaluate(plan, JUDGES)
            pages.append(page(plan, after_one(plan), split, heat))
            (root / "tables.md").write_text("\n".join(pages), "utf-8")
            print(pages[-1], flush=True)


def plan_of(root: Path, stages: Sequence[Stage], methods: Sequence[str], split: str, heat: float) -> Plan:
    """The plan of an evaluation of all seeds on one split at one temperature."""
    sizes = stages[0].sizes
    own = DRAFTS if heat else AT_ALL  # greedy drafts are all equal: nothing to choose among
    models: dict[str, dict[str, Any]] = {}
    if "srpo" in methods:
        models["srpo"] = {"model": "srpo", "controls": ALL if heat else [*AT_ALL, *REFERENCE]}
        models["srpo_if_preferred"] = {"model": "srpo", "policy": "if_preferred"}
        models["srpo_select_vote"] = {"model": "srpo", "select": "vote"}
    models[BEFORE] = {"model": "role", "controls": own}
    models |= {name: {"model": name, "controls": own} for name in methods if name != "srpo"}
    if "srpo_no_role" in models:
        models["srpo_no_role"]["reference"] = str(root / "seed{seed}" / "base")
    trails = []
    for stage in stages:
        (stage.run / "prompts").mkdir(exist_ok=True)
        write_rows(stage.run / "prompts" / f"{split}.jsonl", stage.rows(sizes.prompts, split, EVALUATION))
        trails += [f"{name}={path}" for name, path in more_chains(stage, methods, split, heat)]
    plan = Plan.of(
        {
            "models": {
                name: {**each, "model": str(root / "seed{seed}" / each["model"])} for name, each in models.items()
            },
            "trails": trails,
            "references": str(root / "seed{seed}" / "role"),
            "prompts": {split: str(root / "seed{seed}" / "prompts" / f"{split}.jsonl")},
            "seeds": [stage.seed for stage in stages],
            "revisions": sizes.revisions,
            "temperature": [heat],
            "max_new_tokens": stages[0].wording.tokens,
            "batch_size": sizes.batch_size,
            "cache_dir": str(root / "drawn"),
            "output_dir": str(root / f"{split}.T{heat:g}"),
            "device": "cpu",
        }
    )
    plan.check()
    return plan


def more_chains(stage: Stage, methods: Sequence[str], split: str, heat: float) -> Iterator[tuple[str, Path]]:
    """Name and file of systems that a plan cannot draw; above T = 0 also greedy chains, for paired differences."""
    yield "lines_first", chain(stage, "base", split, heat, lines_first=True)
    if {"ipo", "sft_reviser"} <= {*methods}:
        yield "ipo_then_sft_reviser", chain(stage, "sft_reviser", split, heat, drafter="ipo")
    if heat:
        yield "lines_first_greedy", chain(stage, "base", split, 0.0, lines_first=True)
        for name, model in (("srpo", "srpo"), (BEFORE, "role"), ("sft_reviser", "sft_reviser")):
            if model in ("role", *methods):
                yield f"{name}_greedy", chain(stage, model, split, 0.0)


def chain(stage: Stage, name: str, split: str, heat: float, *, drafter: str = "", lines_first: bool = False) -> Path:
    """Draws the answers of one system into a file of trails, a stage of the seed (`Stage.done`); returns the file.

    Args:
        name: the model that revises, or that drafts with the lines first.
        drafter: another model that drafts; empty is the same model.
        lines_first: asks for the lines first, without revisions; the total is moved to the front afterwards.
    """
    kind = drafter or ("lines_first" if lines_first else "own")
    place = f"chains/{name}.{kind}.{split}.T{heat:g}"
    drawn_by = {"": (), "base": (), "role": ROLE_SIZES}
    sizes = (*drawn_by.get(name, METHOD_SIZES), *drawn_by.get(drafter, METHOD_SIZES))

    def draw(folder: Path) -> None:
        lines = chain_lines(stage, name, split, heat, drafter, lines_first)
        (folder / "trails.jsonl").write_text("".join(lines), "utf-8")

    stage.done(place, draw, *sizes, "prompts", "revisions")
    return stage.run / place / "trails.jsonl"


def chain_lines(stage: Stage, name: str, split: str, heat: float, drafter: str, lines_first: bool) -> Iterator[str]:
    """Draws the trails of `chain`, as lines of JSON."""
    n = stage.sizes.prompts
    rows, reviser = stage.rows(n, split, EVALUATION), stage.reviser(name)
    if drafter:
        reviser.engine = Handed(stage.reviser(drafter).engine, reviser.engine)  # type: ignore[assignment]
    prompts = [row.prompt for row in read_prompts(rows)]
    asked = stage.rows(n, split, EVALUATION, lines_first=lines_first)
    settings = RevisionSettings(0 if lines_first else stage.sizes.revisions, heat, stage.seed, stage.wording.tokens)
    for row, prompt, trail in zip(rows, prompts, reviser.trails(read_prompts(asked), settings), strict=True):
        answers = trail.answers
        if lines_first:
            answers = tuple(replace(each, text=task.total_moved_first(each.text)) for each in answers)
        meta = {"gold": row["gold"], "split": split}
        yield replace(trail, prompt=prompt, answers=answers, meta=meta).to_json() + "\n"


def after_one(plan: Plan) -> Results:
    """Comparisons after one revision or one more draft: `OURS` with every system, and each chain with `BEFORE`."""
    trails = draw_all(plan, read_prompt_files(plan), task.total).trails
    trails |= read_systems(plan.trails, temperature=plan.temperature[0])
    groups = grouped(score(trails, JUDGES, revisions=plan.revisions))
    (group,) = groups
    systems = list(group.systems)
    ours = [name for name in OURS if name in systems]
    pairs = [(a, b) for a in ours for b in systems if a != b]
    pairs += [(a, b) for a in systems for b in (BEFORE, f"{BEFORE}_greedy") if a not in OURS and b in systems]
    asked = [Question(Side(a, 1), Side(b, 1), group.split, group.temperature) for a, b in pairs]
    bounds = [name for name in systems if name.rpartition("/")[2] in BOUNDS]
    return summarise(groups, asked, highlight=ours[0], bounds=bounds)


def page(plan: Plan, results: Results, split: str, heat: float) -> str:
    """The table of one split and temperature as Markdown, and the differences after one revision."""
    heads = [f"k = {k}" for k in range(plan.revisions + 1)]
    lines = [f"### Orders, {split}, T = {heat:g}, seeds {plan.seeds}, right totals in % with 95 % intervals", ""]
    lines += ["| system | " + " | ".join(heads) + " | k = 1, each seed | k = 1, whole answer |"]
    lines += ["| --- |" + " ---: |" * (len(heads) + 2)]
    for system in results.values("system"):
        curve = results.curve(system, split, heat)
        cells = [f"{100 * row['mean']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})" for row in curve]
        each = [results.curve(system, split, heat, seed)[1]["mean"] for seed in results.seeds]
        whole = 100 * curve[1]["secondary"]["whole answer"][0]
        seeds = " ".join(f"{100 * mean:.1f}" for mean in each)
        lines.append(f"| {system} | {' | '.join(cells)} | {seeds} | {whole:.1f} |")
    lines.append("")
    for system in (name for name in OURS if any(each.a.system == name for each in results.comparisons)):
        rivals = [each for each in results.comparisons if each.a.system == system]
        kinds = {
            "choice among two drafts": [
                each for each in rivals if is_choice(each) and each.b.system not in results.bounds
            ],
            "choice among two drafts, the judge's own among them": [each for each in rivals if is_choice(each)],
            "other model or way": [each for each in rivals if not is_choice(each) and not is_same_model(each)],
        }
        for kind, found in kinds.items():
            best = max(found, key=lambda each: each.pool.b, default=None)
            if best is not None:
                lines.append(f"- {system} after one revision minus the strongest {kind}: {gap(best)}")
    return "\n".join([*lines, *against_before(results), ""])


def against_before(results: Results) -> list[str]:
    """Lines of each chain minus the model before preferences, both decoded in the same way; pooled, then each seed."""
    lines = []
    for each in results.comparisons:
        a, b = each.a.system, each.b.system
        same_decoding = b == (f"{BEFORE}_greedy" if a.endswith("_greedy") else BEFORE)
        if same_decoding and "/" not in a and plain(a) not in (BEFORE, "lines_first"):
            seeds = " ".join(f"{100 * seed.difference:+.1f}" for seed in each.seeds).replace("-", "−")
            lines.append(f"- {a} after one revision minus the model before preferences: {gap(each)}; each seed {seeds}")
    return lines


def gap(each: SystemComparison) -> str:
    """A comparison in words and points."""
    pool = each.pool
    ends = f"{100 * pool.difference:+.1f} ({100 * pool.low:+.1f} to {100 * pool.high:+.1f})".replace("-", "−")
    counts = f"n = {pool.n:,}, {pool.higher} better, {pool.lower} worse"
    return f"{100 * pool.a:.1f} against {100 * pool.b:.1f} for {each.b.system}, {ends} points; {counts}"


def is_choice(each: SystemComparison) -> bool:
    """Whether the second side drafts and chooses, without a revision: every control but the revising reference."""
    control = each.b.system.partition("/")[2]
    return bool(control) and control != "reference"


def is_same_model(each: SystemComparison) -> bool:
    """Whether both sides are chains of the same model under other policies or temperatures."""
    a, b = (plain(side.system) for side in (each.a, each.b))
    return a == b


def plain(system: str) -> str:
    """The name of a system's model."""
    for end in ("_greedy", "_if_preferred", "_select_vote"):
        system = system.removesuffix(end)
    return system
