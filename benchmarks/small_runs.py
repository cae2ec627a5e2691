"""Small runs of every command, by group: each returns the numbers that the files of its commands hold.

Groups run in order in one `Shop`, because later ones use the models and trails of earlier ones. Only the command line,
the public names of `srpo` and written files are used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import small_files
from benchmarks.small_shop import Shop, numbers
from benchmarks.small_use import library

TRAIN: dict[str, Any] = {
    "model_name_or_path": "base",
    "dataset_name": "pairs.jsonl",
    "eval_dataset_name": "eval.jsonl",
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "beta": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "no",
    "logging_steps": 1,
    "seed": 0,
    "use_cpu": "true",
    "report_to": "none",
    "disable_tqdm": "true",
    "dataset_num_proc": 1,
}
LORA: dict[str, Any] = {"use_peft": "true", "lora_r": 4, "lora_alpha": 8, "learning_rate": 1e-2}
CACHED: dict[str, Any] = {"reference_cache": "kept", "max_steps": 9}
POSTS: dict[str, Any] = {
    "model_name_or_path": "plain",
    "dataset_name": "layouts/posts.jsonl",
    "eval_dataset_name": "layouts/posts.jsonl",
    "max_steps": 3,
}
# Differences from TRAIN, by the name of the run.
RUNS: dict[str, dict[str, Any]] = {
    "whole": {"save_strategy": "steps", "save_steps": 3, "config": "settings.yaml"},
    "flat": {"backend": "flat"},
    "path": {"backend": "path"},
    "dpo": {"objective": "dpo"},
    "dpo_flat": {"objective": "dpo", "backend": "flat"},
    "ipo": {"objective": "ipo", "learning_rate": 5e-4},
    "ipo_flat": {"objective": "ipo", "learning_rate": 5e-4, "backend": "flat"},
    "lora": LORA,
    "lora_flat": {**LORA, "backend": "flat", "lora_target_modules": "all-linear"},
    "lora_dpo": {**LORA, "objective": "dpo", "lora_dropout": 0.0},
    "cached": CACHED,
    "cached_again": {**CACHED, "beta": 0.3},
    "precomputed_first": {"precompute_ref_log_probs": "true", "precompute_ref_batch_size": 6, "max_steps": 9},
    "synced": {"sync_ref_model": "true", "ref_model_sync_steps": 2},
    "pieces": {"max_tokens_per_batch": 300, "gradient_accumulation_steps": 2, "warmup_steps": 2},
    "mean_turn": {"logps_reduction": "mean", "alpha": 0.3, "beta": 1.0, "revision_template": "turn"},
    "rematerialised": {"activation_checkpointing": "true", "lr_scheduler_type": "cosine"},
    "bfloat16": {"dtype": "bfloat16", "max_steps": 3},
    "dropping": {"disable_dropout": "false", "num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 5},
    "editor": {"revision_template": "editor.jinja", "max_steps": 3},
    "ranked": {"dataset_name": "layouts/rankings.jsonl", "rankings": "best-worst", "max_steps": 3},
    "broken": {"dataset_name": "broken.jsonl", "bad_rows": "skip", "max_steps": 3},
    "cut": {"dataset_name": "long.jsonl", "truncate": "prompt", "max_length": 70, "max_steps": 3},
    "posts": {**POSTS, "revision_template": "paper-tldr"},
    "preset": {**POSTS, "preset": "paper-tldr", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
    "other_reference": {"ref_model_name_or_path": "flat", "objective": "srpo", "max_steps": 3},
    "watched": {"eval_revisions": 1, "eval_judge": "exact_match", "eval_prompts": 6, "eval_max_new_tokens": 10},
}
DRAW: dict[str, Any] = {"input": "in.jsonl", "max_new_tokens": 10, "batch_size": 16}
# One token read costs 1 and one written 2: sums of whole numbers are exact in whatever order the replies arrive.
JUDGED: dict[str, Any] = {"judge": "llm", "judge_model": "scripted", "price_in": 1_000_000, "price_out": 2_000_000}
CONTROLS = ["draft_only", "best_of", "oracle", "reference", "gold"]


def prepare(shop: Shop) -> Any:
    """Writes models, rows and judges; their digests, so that another library of tensors shows here first."""
    folder = shop.folder
    shop.apart(lambda: small_files.write_models(folder), "models")
    small_files.write_layouts(folder / "layouts")
    (folder / "my_judge.py").write_text(small_files.JUDGE, "utf-8")
    (folder / "editor.jinja").write_text(small_files.EDITOR, "utf-8")
    train = small_files.pairs(24, seed=1)
    small_files.write_lines(folder / "pairs.jsonl", train)
    small_files.write_lines(folder / "eval.jsonl", small_files.pairs(8, seed=2))
    small_files.write_lines(folder / "broken.jsonl", [*train[:9], {"prompt": "What?"}, {**train[9], "chosen": ""}])
    for number, row in enumerate(train[:12]):
        row["prompt"] = f"Numbers {' '.join(map(str, range(number * 5)))}. {row['prompt']}"
    small_files.write_lines(folder / "long.jsonl", train[:12])
    for seed, split in ((3, "in"), (4, "out")):
        small_files.write_lines(folder / f"{split}.jsonl", small_files.prompts(44, seed, split))
    (folder / "settings.yaml").write_text(json.dumps({"beta": 0.7, "weight_decay": 0.01, "alpha": 0.6}), "utf-8")
    return {name: shop.weights(name) for name in ("base", "reward")}


def check(shop: Shop) -> Any:
    """`srpo check --json` on every layout with every template that fits it."""
    found: dict[str, Any] = {}
    shared = {"dataset_num_proc": 1, "json": True}
    for name, extra in small_files.write_layouts(shop.folder / "again"):
        chat = ["plain", "paper-tldr", "paper-xsum"] if name == "posts" else ["quote", "turn"]
        for template in chat:
            model = "plain" if name == "posts" else "base"
            settings = {"dataset_name": f"layouts/{name}.jsonl", "model_name_or_path": model}
            said = shop.srpo("check", *extra, **settings, revision_template=template, **shared)
            found[" ".join([name, template, *extra])] = shop.scrubbed(json.loads(said))
    cut = {"dataset_name": "long.jsonl", "truncate": "prompt", "max_length": 70, "eval_dataset_name": "pairs.jsonl"}
    said = shop.srpo("check", **cut, model_name_or_path="base", revision_template="editor.jinja", **shared)
    return {**found, "long, cut, leaked": shop.scrubbed(json.loads(said))}


def train(shop: Shop) -> Any:
    """Every objective, back-end and way of training: metrics of each step, evaluations and final weights."""
    found: dict[str, Any] = {name: trained(shop, name, **changes) for name, changes in RUNS.items()}
    kept = {"reference_cache": "scored", "output_dir": "scored_run"}
    for backend in ("path", "flat"):
        found[f"precompute {backend}"] = numbers(shop.srpo("precompute", **{**TRAIN, **kept, "backend": backend}))
    found["scored"] = trained(shop, "scored_flat", backend="flat", reference_cache="scored")
    ignored = shutil.ignore_patterns("checkpoint-6", "*.safetensors", "metrics.jsonl")
    shutil.copytree(shop.folder / "whole", shop.folder / "resumed", ignore=ignored)
    shutil.copytree(shop.folder / "whole/checkpoint-3", shop.folder / "resumed/checkpoint-3", dirs_exist_ok=True)
    found["resumed"] = trained(shop, "resumed", **RUNS["whole"], resume="true")
    found["resumed weights equal"] = found["resumed"]["weights"] == found["whole"]["weights"]
    found["watched weights equal"] = found["watched"]["weights"] == found["path"]["weights"]
    return found


def trained(shop: Shop, name: str, **changes: Any) -> dict[str, Any]:
    """One run of `srpo train`, and the numbers in its folder."""
    shop.srpo("train", **{**TRAIN, **changes, "output_dir": name})
    rejected = shop.folder / name / "rejected.jsonl"
    return {
        "metrics": shop.lines(f"{name}/metrics.jsonl"),
        "weights": shop.weights(name),
        "template": shop.json(f"{name}/revision_template.json"),
        "training": shop.json(f"{name}/srpo_training.json"),
        "rejected": shop.lines(f"{name}/rejected.jsonl") if rejected.exists() else None,
    }


def revise(shop: Shop) -> Any:
    """Trails of every policy, greedy and sampled, with and without a reference; and samples for labelling."""
    found: dict[str, Any] = {}

    def draw(name: str, verb: str = "revise", **settings: Any) -> None:
        output = f"{verb}.{name}.jsonl".replace(":", "_")
        shop.srpo(verb, **{**DRAW, **settings, "output": output})
        found[f"{verb} {name}"] = shop.lines(output)

    weighing: dict[str, Any] = {"model_name_or_path": "whole", "reference": "base", "revisions": 3}
    for temperature in (0, 1.0):
        for policy in ("always", "if_preferred", "until_worse", "until_unchanged", "fixed:1", "drafts"):
            draw(f"{policy} {temperature}", **weighing, policy=policy, temperature=temperature)
    draw("auto", **weighing, temperature=0.7, seed=3, batch_size=1)
    draw("no reference", model_name_or_path="flat", revisions=2)
    draw("adapter", model_name_or_path="lora", revisions=2)
    draw("turn", model_name_or_path="mean_turn", reference="base", revisions=2)
    draw("bfloat16", model_name_or_path="whole", reference="base", revisions=1, dtype="bfloat16")
    draw("base asked", model_name_or_path="base", revisions=2, revision_template="quote")
    draw("text", model_name_or_path="posts", reference="plain", revisions=2, input="layouts/posts.jsonl")
    samples: dict[str, Any] = {"samples": 3, "revisions": 2, "reference": "base"}
    draw("own", "sample", model_name_or_path="whole", **samples)
    draw("adapter", "sample", model_name_or_path="lora", samples=2, revisions=1, seed=7)
    return found


def label(shop: Shop) -> Any:
    """Pairs by judges that cost nothing, by votes, and by a scripted model behind a server."""
    found: dict[str, Any] = {}

    def ask(name: str, **settings: Any) -> None:
        shop.srpo("label", trails="sample.own.jsonl", output=f"label.{name}.jsonl", **settings)
        beside = sorted(shop.folder.glob(f"label.{name}.jsonl*.json"))
        found[name] = [shop.lines(f"label.{name}.jsonl"), *(shop.json(each.name) for each in beside)]

    ask("exact", judge="exact_match")
    ask("edits", judge="edit_similarity", ask="draft-revision", labels=30, seed=2)
    ask("uncertain", judge="my_judge:close", choose="uncertain", labels=25)
    ask("reward", judge="reward:reward", ask="draft-draft", labels=20)
    ask("llm", **JUDGED, judge_base_url=shop.url + "/v1", labels=40, verdicts="label.verdicts.jsonl")
    ask("to_vote", to_vote=True, labels=20)
    votes = shop.lines("label.to_vote.jsonl")
    for row in votes:
        row["vote"] = "first" if len(row["first"]) < len(row["second"]) else "second"
    small_files.write_lines(shop.folder / "votes.jsonl", votes)
    ask("voted", judge="votes:votes.jsonl")
    return found


def measure(shop: Shop) -> Any:
    """Calibrations of confidence, judges checked and compared, and answers written for other tools."""
    found: dict[str, Any] = {}
    calibrating = {**DRAW, "model_name_or_path": "whole", "reference": "base", "revisions": 2}
    for name, extra in {
        "eq9": {},
        "eq14": {"equation": "eq14", "judge": "per_character", "temperature": 0.8},
        "greedy": {"temperature": 0, "judge": "edit_similarity", "seed": 4},
    }.items():
        printed = numbers(shop.srpo("calibrate", **{**calibrating, **extra, "output_dir": f"calibrated.{name}"}))
        files = sorted((shop.folder / f"calibrated.{name}").glob("*.json"))
        found[f"calibrate {name}"] = [*(shop.json(f"calibrated.{name}/{file.name}") for file in files), printed]
    llm = {**JUDGED, "judge_base_url": shop.url + "/v1"}
    for name, judge in {"llm": {**llm, "runs": 2}, "wordy": {"judge": "my_judge:brief"}}.items():
        shop.srpo("judge", "check", **judge, pairs="pairs.jsonl", output=f"check.{name}.json")
        found[f"judge check {name}"] = shop.json(f"check.{name}.json")
    both = {"first": "revise.always 1.0.jsonl", "second": "revise.base asked.jsonl"}
    judges = {"llm": llm, "one": {**llm, "judge_orders": "one"}, "edits": {"judge": "edit_similarity"}}
    for name, judge in judges.items():
        said = shop.srpo("judge", "compare", **judge, **both, output=f"compare.{name}.json")
        found[f"judge compare {name}"] = [shop.json(f"compare.{name}.json"), numbers(said)]
    for one, other in (("llm", "one"), ("llm", "edits")):
        said = shop.srpo("judge", "agree", first=f"compare.{one}.json", second=f"compare.{other}.json")
        found[f"judge agree {one} {other}"] = numbers(said)
    return {**found, **exchange(shop, both["first"])}


def exchange(shop: Shop, trails: str) -> dict[str, Any]:
    """Trails as every other form, and back."""
    found: dict[str, Any] = {}
    for form, read, source in (
        ("alpaca", shop.json, trails),
        ("arena", shop.lines, trails),
        ("trails", shop.lines, "exchange.arena"),
        ("prompts", shop.lines, trails),
    ):
        shop.srpo("exchange", input=source, form=form, name="ours", revisions=1, output=f"exchange.{form}")
        found[f"exchange {form}"] = read(f"exchange.{form}")
    return found


def evaluate(shop: Shop) -> Any:
    """Evaluations of stored trails and of models: results, tables and everything drawn."""
    for seed in (0, 1):
        for model, name in (("whole", "ours"), ("dpo", "rival")):
            settings = {**DRAW, "model_name_or_path": model, "revisions": 2, "seed": seed, "input": "both.jsonl"}
            both = (shop.folder / "in.jsonl").read_text("utf-8") + (shop.folder / "out.jsonl").read_text("utf-8")
            (shop.folder / "both.jsonl").write_text(both, "utf-8")
            shop.srpo("revise", **settings, reference="base", policy="always", output=f"{name}.{seed}.jsonl")
    trails = {"trails": [f"{name}={name}.{seed}.jsonl" for name in ("ours", "rival") for seed in (0, 1)]}
    llm = {**JUDGED, "judge_base_url": shop.url + "/v1"}
    ruled = {"judge": "numeric", "secondary": ["exact_match", "edit_similarity", "rouge_l", "my_judge:close"]}
    plans: dict[str, dict[str, Any]] = {
        "trails": {**trails, **ruled},
        "paper": {**trails, "judge": "exact_match", "resampling": "paper", "seed": 5, "highlight": "rival"},
        "one seed": {"trails": ["ours.0.jsonl", "revise.greedy.jsonl"], "judge": "per_character"},
        "llm": {**trails, **llm, "judge_runs": 2, "versus": ["draft", "rivals"], "secondary": ["edit_similarity"]},
        "against draft": {**trails, **llm, "against": "draft", "versus": ["everyone"], "judge_orders": "one"},
        "reward": {**trails, "judge": "reward:reward", "versus": ["draft", "everyone"]},
    }
    shutil.copy(shop.folder / "revise.always 0.jsonl", shop.folder / "revise.greedy.jsonl")
    drawn = {"models": ["ours=whole", "rival=dpo"], "references": "base", "revisions": 2, "max_new_tokens": 10}
    prompts = {"prompts": ["in=in.jsonl", "out=out.jsonl"]}
    plans["models"] = {**drawn, **prompts, "controls": CONTROLS, "seeds": [0, 1], **ruled}
    plans["temperatures"] = {**drawn, **prompts, "temperature": [0, 0.7], "policy": "if_preferred", "limit": 20}
    plans["plan"] = {"config": "plan.yaml", "seeds": [2], "judge": "edit_similarity", **prompts}
    models: dict[str, dict[str, Any]] = {
        "ours": {"model": "whole", "policy": "if_preferred", "controls": ["draft_only", "reference"]}
    }
    models["rival"] = {"model": "dpo", "policy": "best_of"}
    models["adapter"] = {"model": "lora", "revisions": 1}
    plan = {"models": models, "labels": {"ours": "Ours"}, "curves": ["ours"], "references": "base", "revisions": 2}
    (shop.folder / "plan.yaml").write_text(json.dumps({**plan, "max_new_tokens": 10, "limit": 40}), "utf-8")
    return {name: evaluated(shop, name, settings) for name, settings in plans.items()}


def evaluated(shop: Shop, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One evaluation, and the numbers in its folder."""
    folder = f"evaluated {name}"
    shop.srpo("evaluate", **settings, output_dir=folder)
    drawn = sorted((shop.folder / folder).glob("drawn/**/*.jsonl"))
    trails = [shop.lines(str(each.relative_to(shop.folder))) for each in drawn]
    tables = {file.name: shop.table(f"{folder}/{file.name}") for file in (shop.folder / folder).glob("*.csv")}
    return {
        "results": shop.json(f"{folder}/results.json"),
        "tables": dict(sorted(tables.items())),
        "drawn": sorted(trails, key=json.dumps),
    }


def rounds(shop: Shop) -> Any:
    """Offline training and one round; merged and converted weights; the bandit."""
    settings = {key: value for key, value in TRAIN.items() if not key.startswith("eval_")}
    settings |= {"max_steps": 2, "rounds": 1, "round_steps": 2, "labels_per_round": 30, "offline_share": 0.25}
    settings |= {"sample_prompts": "in.jsonl", "validation_prompts": "out.jsonl", "validation_revisions": 1}
    settings |= {"sample_max_new_tokens": 10, "judge": "my_judge:close", "output_dir": "rounds"}
    (shop.folder / "rounds.yaml").write_text(json.dumps(settings), "utf-8")
    shop.srpo("rounds", config="rounds.yaml", choose="uncertain")
    folder = shop.folder / "rounds"
    found: dict[str, Any] = {"rounds.json": shop.json("rounds/rounds.json")}
    for file in sorted(folder.rglob("*.jsonl")):
        name = str(file.relative_to(folder))
        if "checkpoint" not in name:
            found[name] = shop.lines(f"rounds/{name}")
    for file in sorted(folder.rglob("model.safetensors")):
        if "checkpoint" not in str(file):
            found[str(file.relative_to(folder))] = shop.weights(str(file.parent.relative_to(shop.folder)))
    said = shop.srpo("merge", model_name_or_path="lora", output_dir="merged")
    found["merge"] = [shop.weights("merged"), numbers(said)]
    shop.srpo("convert", model_name_or_path="pickled", output_dir="converted")
    found["convert"] = shop.weights("converted")
    shop.srpo("bandit", output_dir="bandit", steps=60)
    for file in sorted((shop.folder / "bandit").iterdir()):
        if file.suffix in (".json", ".csv"):
            read: Callable[[str], Any] = shop.json if file.suffix == ".json" else shop.table
            found[f"bandit {file.name}"] = read(f"bandit/{file.name}")
    return found


def public(shop: Shop) -> Any:
    """The public names of `srpo`, used from Python."""
    return shop.scrubbed(shop.apart(lambda: library(Path(".")), "library"))


GROUPS: dict[str, Callable[[Shop], Any]] = {
    "inputs": prepare,
    "check": check,
    "train": train,
    "library": public,
    "revise and sample": revise,
    "label": label,
    "calibrate, judge, exchange": measure,
    "evaluate": evaluate,
    "rounds, merge, convert, bandit": rounds,
}


def run_groups(folder: Path) -> Iterator[tuple[str, Any]]:
    """Each group's name and numbers, in order."""
    shop = Shop(folder)
    try:
        for name, group in GROUPS.items():
            yield name, group(shop)
    finally:
        shop.close()
