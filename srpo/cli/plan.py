"""`srpo plan`: predicts memory per GPU and tokens per second of a training, without weights or a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from srpo.cli.flags import parse
from srpo.errors import ConfigError
from srpo.settings import setting, shared

if TYPE_CHECKING:
    from srpo.sequences.tree import PrefixTree
    from srpo.train.plan import Planned

DESCRIPTION = """Predict memory per card and tokens per second of a training, without weights and without a GPU.

srpo plan --model_name_or_path MODEL --prompt_tokens 350 --answer_tokens 40
srpo plan --model_name_or_path MODEL --dataset_name pairs.jsonl --launch fsdp2 --cards 8 --use_peft
"""
BATCHES = (1, 2, 4, 8)
MOST = 256  # pairs at which the search for the largest batch ends
SIZES = (24, 40, 80)  # GiB of common cards
GIB = 2**30


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo plan`, which predicts memory and speed of a training before it begins."""

    model_name_or_path: str = setting(help="Folder or hub name of the model; only its configuration is read.")
    dataset_name: str | None = setting(None, "Preference pairs whose longest decide the memory; reads a tokenizer.")
    dataset_train_split: str = shared("dataset_train_split")
    revision_template: str | None = shared("revision_template")
    prompt_tokens: int | None = setting(None, "Length of the prompts, without data.", least=1)
    answer_tokens: int | None = setting(None, "Length of both answers, without data.", least=1)
    instruction_tokens: int = setting(16, "Length of the template's request to revise, without data.", least=1)
    shape: str = setting(
        "turn",
        "Sharing of made-up pairs: turn (prompt and draft), quote (the prompt), apart (nothing).",
        choices=("turn", "quote", "apart"),
    )
    launch: str = setting(
        "one",
        "Cards: one (or single), several with whole weights (ddp), or with split ones (fsdp2); not DeepSpeed's ZeRO.",
        choices=("one", "single", "ddp", "fsdp2", "zero2", "zero3"),  # the last two are refused with a reason
    )
    cards: int = setting(1, "Number of cards.", least=1)
    use_peft: bool = setting(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = setting(16, "Rank of the LoRA adapter.", least=1)
    lora_target_modules: list[str] | None = setting(None, "Modules that get a LoRA adapter, or all-linear.")
    load_in_4bit: bool = setting(False, "Keep the frozen base of an adapter in 4 bits.")
    load_in_8bit: bool = setting(False, "Keep the frozen base of an adapter in 8 bits.")
    use_bnb_nested_quant: bool = setting(False, "Quantise the scales of a base in 4 bits as well.")
    bf16: bool | None = setting(None, "Multiply matrices in bfloat16; unset: on, but off with use_cpu, as in training.")
    precompute_ref_log_probs: bool = setting(False, "Read the reference's log-probs from a cache.")
    gradient_accumulation_steps: int = setting(1, "Batches of an optimiser step on each card.", least=1)
    use_cpu: bool = setting(False, "Plan for a processor instead of a GPU.")
    card_memory: int = setting(80, "GiB of memory of a card, for the choices that depend on it.", least=1)
    peak_tflops: float = setting(989.0, "Largest number of 10¹² operations per second of a card.", above=0)
    utilisation: float = setting(0.4, "Share of that number that a training reaches; assumed.", above=0, most=1)
    trust_remote_code: bool = shared("trust_remote_code")
    json: bool = setting(False, "Print the plan as JSON instead of text.")


def main(argv: list[str]) -> int:
    """Runs `srpo plan`: simulates training steps of up to 256 pairs, prints their memory and speed; returns 0.

    Memory is in GiB per GPU, speed in packed tokens per second.

    Raises:
        ConfigError: the lengths of the pairs are missing or given twice, both 4 and 8 bits are asked for, or `--launch`
            names DeepSpeed's ZeRO, which cannot be planned.
    """
    args = parse("plan", DESCRIPTION, Arguments, argv)
    lengths = [args.prompt_tokens, args.answer_tokens]
    if args.dataset_name is None and None in lengths:
        fix = "give `--dataset_name`, or `--prompt_tokens` and `--answer_tokens`"
        raise ConfigError("lengths of the pairs are not known", where="srpo plan", fix=fix)
    if args.dataset_name is not None and lengths != [None, None]:
        fix = "leave out `--prompt_tokens` and `--answer_tokens`, or `--dataset_name`"
        raise ConfigError("lengths of the pairs are given twice", where="srpo plan", fix=fix)
    if args.load_in_4bit and args.load_in_8bit:
        raise ConfigError("given with load_in_4bit", where="load_in_8bit", fix="leave one of the two out")

    from srpo.cli.output import quiet_transformers
    from srpo.model.weights.load import load_config
    from srpo.train.plan import Planned

    quiet_transformers()
    config = load_config(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    trees = _trees(args, config.get_text_config().vocab_size)
    found = _found(args, Planned(config, _setup(args), _adapter(args)), trees)
    print(json.dumps(found, indent=2) if args.json else "\n".join(_lines(args, found)))
    return 0


def _setup(args: Arguments) -> Any:
    import torch

    from srpo.model.weights.precision import base_dtype
    from srpo.train.plan import Setup

    bf16 = not args.use_cpu if args.bf16 is None else args.bf16
    return Setup(
        launch=args.launch,
        cards=args.cards,
        bf16=bf16,
        # An adapter's base: a GPU of the plan multiplies bfloat16, whatever the type of the activations.
        base=getattr(torch, base_dtype("", adapter=True, device="cpu")[0]) if args.use_cpu else torch.bfloat16,
        bits=4 if args.load_in_4bit else 8 if args.load_in_8bit else 0,
        nested=args.use_bnb_nested_quant,
        backend="path" if args.use_cpu else "flex",
        device="cpu" if args.use_cpu else "cuda",
        memory=args.card_memory * GIB,
        precomputed=args.precompute_ref_log_probs,
        accumulated=args.gradient_accumulation_steps,
    )


def _adapter(args: Arguments) -> Any:
    """LoRA settings, or None if all weights are trained."""
    from srpo.train.adapters import lora_config
    from srpo.train.arguments import ModelArguments

    named = ("use_peft", "lora_r", "lora_target_modules")
    return lora_config(ModelArguments(**{name: getattr(args, name) for name in named}), disable_dropout=True)


def _no_pictures() -> None:
    fix = "plan with --prompt_tokens, image tokens included; the tower comes on top"
    raise ConfigError(
        "rows with pictures are not planned: the vision tower is not counted", where="dataset_name", fix=fix
    )


def _trees(args: Arguments, vocabulary: int) -> list[PrefixTree]:
    """The prefix trees of the pairs to simulate, the longest first: pairs of the data, or made-up ones."""
    if args.dataset_name is None:
        from srpo.train.plan import made_pairs

        lengths = (args.prompt_tokens or 1, args.answer_tokens or 1, args.instruction_tokens)
        return made_pairs(*lengths, args.shape, count=max(MOST, *BATCHES), vocabulary=vocabulary)
    from srpo.data.source import Source
    from srpo.model.weights.load import load_tokenizer
    from srpo.sequences.render import Renderer, template_for
    from srpo.train.dataset import TreeDataset

    tokenizer = load_tokenizer(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    template = template_for(args.model_name_or_path, args.revision_template)
    renderer = Renderer(tokenizer, template, processor=_no_pictures)
    source = Source(args.dataset_name, split=args.dataset_train_split)
    data = TreeDataset.build(source, renderer, max_length=None, bad_rows="skip")
    return sorted((data.trees[i] for i in range(len(data))), key=len, reverse=True)


def _found(args: Arguments, plan: Planned, trees: Sequence[PrefixTree]) -> dict[str, Any]:
    """Predicted memory in GiB per GPU and speed of each case, as JSON values."""
    kept, rows, most = plan.kept, [], min(MOST, len(trees))

    @cache
    def step(checkpointing: bool, pairs: int) -> int:
        return plan.step(trees[:pairs], checkpointing=checkpointing)

    batches = [batch for batch in BATCHES if batch <= len(trees)]
    for batch in batches:
        steps = [step(on, batch) / GIB for on in (False, True)]
        rows.append({"pairs": batch, "step": steps[0], "step_checkpointing": steps[1]})
    # Speed by pairs of the middle, memory by the longest.
    typical = trees[len(trees) // 2 :][: batches[-1]] or trees[:1]
    costs = {name: plan.cost(typical, checkpointing=on) for name, on in (("", False), ("_checkpointing", True))}
    speed = args.peak_tflops * 1e12 * args.utilisation
    sizes = {size: [plan.fitting(partial(step, on), size * GIB, most) for on in (False, True)] for size in SIZES}
    return {
        "weights": plan.weights,
        "trained": plan.trained,
        "bf16": plan.setup.bf16,
        "bf16_base": plan.setup.base.itemsize == 2 if plan.adapter else None,
        "kept": {name: value / GIB for name, value in kept._asdict().items()},
        "scoring_gib": plan.scoring / GIB,
        "longest_pair_tokens": len(trees[0]),
        "longest_pair_flat_tokens": trees[0].flat_tokens,
        "batches": [row | {"all": kept.all / GIB + row["step"]} for row in rows],
        "largest_batch": sizes,
        "largest_batch_tried": most,
        "speed": {f"tokens_per_second{name}": cost.tokens / (cost.flops / speed) for name, cost in costs.items()},
        "wire_gib_per_step": costs[""].wire / GIB,
    }


def _lines(args: Arguments, found: dict[str, Any]) -> list[str]:
    """The values of `_found` as lines of text for the terminal."""
    kept, way = found["kept"], {"one": "one card", "single": "one card", "ddp": f"DDP on {args.cards} cards"}
    where = way.get(args.launch, f"FSDP 2 on {args.cards} cards")
    weights, trained = (f"{found[name] / 1e9:.3g}B" for name in ("weights", "trained"))
    dtype = "bfloat16" if found["bf16"] else "float32"
    if found["bf16_base"] not in (None, found["bf16"]):
        dtype += f", frozen base in {'bfloat16' if found['bf16_base'] else 'float32'}"
    lines = [
        f"{args.model_name_or_path}: {weights} weights, {trained} trained, {where}, in {dtype}",
        f"longest pair: {found['longest_pair_tokens']:,} packed tokens ({found['longest_pair_flat_tokens']:,} flat)",
        "",
        f"kept on each card, GiB: {sum(kept.values()):.2f} = "
        + " + ".join(f"{name} {value:.2f}" for name, value in kept.items() if value),
        "",
        "pairs per card   GiB of a step   in all   with activation checkpointing, in all",
    ]
    for row in found["batches"]:
        checkpointing = sum(kept.values()) + row["step_checkpointing"]
        lines.append(f"{row['pairs']:>14} {row['step']:>15.2f} {row['all']:>8.2f} {checkpointing:>39.2f}")
    lines += ["", "largest batch in 90 % of a card, without and with activation checkpointing:"]
    most = found["largest_batch_tried"]
    for size, counts in found["largest_batch"].items():
        plain, saving = (f"{count} or more" if count == most else str(count) for count in counts)
        lines.append(f"{size:>10} GiB: {plain} and {saving}")
    if found["scoring_gib"]:
        lines.append(f"before training the whole policy is on each card: {found['scoring_gib']:.2f} GiB")
    plain, saving = (f"{value:,.0f}" for value in found["speed"].values())
    lines += [
        "",
        f"{plain} packed tokens/s on all cards, {saving} with activation checkpointing, if the cards reach",
        f"{args.utilisation:.0%} of {args.peak_tflops:g} TFLOPS",
    ]
    if found["wire_gib_per_step"]:
        lines.append(f"{found['wire_gib_per_step']:.2f} GiB sent by each card in a step of one batch")
    return [*lines, "Not counted: CUDA's context, libraries' workspaces, fragmentation, waiting for other cards."]
