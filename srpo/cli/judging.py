"""The flags that say who judges two answers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srpo.judge.settings import JudgeArguments

# Fields of JudgeArguments that are no text, and what a flag makes of them.
NUMBERS = {
    "judge_temperature": float,
    "judge_max_tokens": int,
    "price_in": float,
    "price_out": float,
    "max_cost": float,
    "judge_concurrency": int,
    "judge_timeout": float,
}
FLAGS = {
    "judge": "exact_match, reward:PATH, module:function, votes:FILE, llm, …; see docs/judges.md",
    "judge_model": "of llm: the model's name at the server",
    "judge_base_url": "of llm: the server, http://localhost:8000/v1",
    "judge_api_key_env": "of llm: name of the environment variable that holds its key",
    "judge_prompt": "of llm: a shipped prompt (general, unless named) or a file",
    "judge_temperature": "of llm: 0 for the likeliest verdict",
    "judge_max_tokens": "of llm: tokens of one reply",
    "judge_orders": "of llm: both, or one, at half the price",
    "price_in": "of llm: price of a million tokens read",
    "price_out": "of llm: price of a million tokens written",
    "max_cost": "of llm: no call that could take the cost above it",
    "judge_body": "of llm: JSON with other fields of a request; null leaves one out",
    "judge_concurrency": "of llm: calls under way at the same time [16]",
    "judge_timeout": "of llm: seconds that one call may take [120]",
    "verdicts": "of llm: file where replies are kept, so that nothing is asked twice [verdicts.jsonl]",
}


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """Adds them; what is not given is as `JudgeArguments` has it."""
    add = parser.add_argument_group("who judges").add_argument
    for name, said in FLAGS.items():
        add(f"--{name}", type=NUMBERS.get(name, str), default=argparse.SUPPRESS, help=said)


def expect_judge_writable(args: argparse.Namespace, outputs: Mapping[str, str | None], *read: str) -> None:
    """Before anybody is asked: what is to be written can be, and costs no file that is read, the judge's own included.

    Args:
        outputs: as `expect_writable` takes them.
        read: names of the flags of files that are read.

    Raises:
        ConfigError, OutputError: as `expect_writable`.
    """
    from srpo.disk import expect_writable

    judge = judge_of(args)
    inputs: dict[str, str | None] = {f"--{name}": getattr(args, name) for name in read}
    if judge.judge == "llm":
        inputs["--verdicts"] = judge.verdicts  # read, and appended to
        if os.path.isfile(judge.judge_prompt):
            inputs["--judge_prompt"] = judge.judge_prompt
    elif judge.judge and judge.judge.startswith("votes:"):
        inputs["--judge"] = judge.judge.removeprefix("votes:")
    expect_writable(outputs, inputs)


def judge_of(args: argparse.Namespace) -> JudgeArguments:
    """What they say."""
    from srpo.judge.settings import JudgeArguments

    found = JudgeArguments(**{name: value for name, value in vars(args).items() if name in FLAGS})
    found.expect_used()
    return found
