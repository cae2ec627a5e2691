"""The flags that name a judge of two answers, the same for every verb that has one."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srpo.evaluate.judge_arguments import JudgeArguments


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """`--judge` and, for a language model, where it is and how it is asked."""
    names = "llm, reward:PATH, exact_match, numeric, edit_similarity, rouge_l, per_character, votes:FILE or module:name"
    parser.add_argument("--judge", help=names)
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


def judge_settings(args: argparse.Namespace) -> JudgeArguments:
    """What they say."""
    from srpo.evaluate.judge_arguments import JudgeArguments

    return JudgeArguments(**{each.name: getattr(args, each.name) for each in fields(JudgeArguments)})
