"""The flags that name a judge of two answers, the same for every verb that has one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from srpo.errors import ConfigError


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """`--judge` and, for a language model, where it is and how it is asked."""
    names = "llm, reward:PATH, exact_match, numeric, edit_similarity, rouge_l, per_character or module:name"
    parser.add_argument("--judge", required=True, help=names)
    group = parser.add_argument_group("a language model as judge (--judge llm)")
    group.add_argument("--judge_base_url", default="", help="of an OpenAI-compatible server: http://localhost:8000/v1")
    group.add_argument("--judge_model", default="", help="its name at that server")
    group.add_argument("--judge_key_env", default="", help="environment variable that holds the key, if one is needed")
    group.add_argument("--judge_prompt", default="general", help="general, tldr, dialogue, arena-hard, or a file")
    group.add_argument("--judge_temperature", type=float, default=0.0, help="of its replies")
    group.add_argument("--judge_max_tokens", type=int, default=1024, help="of one reply")
    group.add_argument("--judge_orders", default="both", help="both, or one at half the price")
    group.add_argument("--judge_body", default="{}", help="JSON: further fields of a request; null leaves one out")
    group.add_argument("--judge_price", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens")
    group.add_argument("--max_cost", type=float, help="make no call that could take the cost above it")
    group.add_argument("--verdicts", default="verdicts.jsonl", help="file that keeps replies; nothing is asked twice")
    group.add_argument("--judge_concurrency", type=int, default=16, help="calls under way at once")
    group.add_argument("--judge_timeout", type=float, default=120.0, help="seconds for one try of a call")


def judge_maker(args: argparse.Namespace) -> Callable[[int], Any]:
    """Run → the judge that the flags name.

    Raises:
        ConfigError: flags that do not fit together.
    """
    from srpo.evaluate.asking import Asking
    from srpo.evaluate.pair_judges import LLM, load_pair_judge

    if args.judge != LLM:
        for flag in ("judge_base_url", "judge_model", "max_cost"):
            if getattr(args, flag):
                raise ConfigError(f"{args.judge} asks no server", where=f"--{flag}", fix="add --judge llm")
        one = load_pair_judge(args.judge)
        return lambda run: one
    try:
        body = json.loads(args.judge_body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ConfigError("not a JSON object", where="--judge_body", expected='{"seed": 1}, say')
    price_in, price_out = args.judge_price or (None, None)

    def make(run: int) -> Any:
        asking = args.judge_model and Asking(
            args.judge_model,
            temperature=args.judge_temperature,
            max_tokens=args.judge_max_tokens,
            orders=args.judge_orders,
            run=run,
            price_in=price_in,
            price_out=price_out,
            max_cost=args.max_cost,
            body=body,
        )
        return load_pair_judge(
            LLM,
            asking=asking or None,
            base_url=args.judge_base_url,
            api_key_env=args.judge_key_env,
            prompt=args.judge_prompt,
            verdicts=args.verdicts,
            concurrency=args.judge_concurrency,
            timeout=args.judge_timeout,
        )

    return make
