"""The flags that say who judges two answers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srpo.evaluate.verdicts import PairJudge


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    add = parser.add_argument_group("who judges").add_argument
    add("--judge", help="exact_match, reward:PATH, module:function, llm, votes:FILE, …; see docs/judges.md")
    add("--judge_model", default="", help="of llm: the model's name at the server")
    add("--judge_base_url", default="", help="of llm: the server, http://localhost:8000/v1")
    add("--judge_api_key_env", default="", help="of llm: name of the environment variable that holds its key")
    add("--judge_prompt", default="general", help="of llm: a shipped prompt or a file")
    add("--judge_temperature", type=float, default=0.0, help="of llm: 0 for the likeliest verdict")
    add("--judge_max_tokens", type=int, default=1024, help="of llm: of one reply")
    add("--price_in", type=float, help="of llm: of a million tokens read")
    add("--price_out", type=float, help="of llm: of a million tokens written")
    add("--max_cost", type=float, help="of llm: no call that could take the cost above it")
    add("--verdicts", help="of llm: file where replies are kept, so that none is paid for twice")


def judge_of(args: argparse.Namespace) -> PairJudge:
    """The judge they name."""
    from srpo.evaluate.asking import Asking
    from srpo.evaluate.pair_judges import LLM, load_pair_judge
    from srpo.rounds.votes import VOTES, Votes

    if args.judge.startswith(VOTES):
        return Votes(args.judge.removeprefix(VOTES))
    if args.judge != LLM:
        return load_pair_judge(args.judge)
    asking = Asking(
        args.judge_model,
        temperature=args.judge_temperature,
        max_tokens=args.judge_max_tokens,
        price_in=args.price_in,
        price_out=args.price_out,
        max_cost=args.max_cost,
    )
    return load_pair_judge(
        args.judge,
        asking=asking,
        base_url=args.judge_base_url,
        api_key_env=args.judge_api_key_env,
        prompt=args.judge_prompt,
        verdicts=args.verdicts,
    )
