"""The flags that say what writes the answers of a file of trails."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.cli.parser import show_progress

if TYPE_CHECKING:
    from srpo.revise.reviser import Reviser

ANSWERS = ".answers.jsonl"


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what every command has that writes a file of trails, engines included."""
    add = parser.add_argument
    add("--model_name_or_path", default="", help="folder of a trained model or adapter")
    add("--output", required=True, help="JSONL of trails; rows already in it are not done again")
    add("--seed", type=int, default=0, help="with a prompt's text it decides every draw")
    add("--max_new_tokens", type=int, default=256, help="tokens per answer")
    add("--batch_size", type=int, default=32, help="prompts generated together")
    add("--revision_template", help="preset or file; default: the one saved with the model")
    add("--bad_rows", choices=["error", "skip"], default="error", help="what to do with unusable rows")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    _add_engine_flags(parser)


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what writes the answers").add_argument
    add("--engine", choices=["hf", "vllm", "openai", "chat"], default="hf", help="see docs/server.md")
    add("--base_url", default="", help="of a server: http://localhost:8000/v1")
    add("--api_key_env", default="", help="name of the environment variable that holds its key")
    add("--served_model", default="", help="the model's name there, if it serves several")
    add("--served_reference", default="", help="the name there of the model before training, for confidence")
    add("--concurrency", type=int, default=16, help="requests to a server at the same time")
    add("--timeout", type=float, default=120.0, help="seconds that one request may take")
    add("--tries", type=int, default=6, help="requests for one answer, at most")
    add("--backoff", type=float, default=0.5, help="seconds before the second of them; doubled for each further one")
    add_device_flags(add)
    add("--speculation", default="auto", help="of vLLM: suffix, ngram, none or auto")


def add_device_flags(add: Callable[..., Any]) -> None:
    """The flags that say where and in what precision a model works in this process."""
    add("--dtype", default="float32", help="of the weights: float32, bfloat16, float16, or auto, as they are stored")
    add("--device", default="", help="cpu, cuda, cuda:1, …; unset: a GPU if there is one")


@dataclass(frozen=True)
class Drawing:
    """What the flags come to.

    Attributes:
        reviser: makes it; weights are read only then.
        made_with: what of the flags decides the answers.
        answers: the file that keeps what a server has answered while trails are not finished.
    """

    reviser: Callable[[], Reviser]
    made_with: dict[str, str]
    answers: Path

    def told(self, output: str, done: int, skipped: int) -> None:
        """The trails stand in their file: what was kept besides goes, and their number is printed."""
        self.answers.unlink(missing_ok=True)
        print(f"{output}: {done} trails" + (f" ({skipped} were already there)" if skipped else ""))


def _expect_writable(args: argparse.Namespace) -> None:
    from srpo.data.rejected import REJECTED_FILE
    from srpo.disk import expect_writable
    from srpo.revise.trail_files import SETTINGS

    outputs: dict[str, str | None] = {"--output": args.output, "--html": getattr(args, "html", None)}
    for kind in (SETTINGS, ANSWERS, f".{REJECTED_FILE}"):
        outputs[f"what is written beside --output ({kind})"] = args.output + kind
    expect_writable(outputs, {"--input": args.input, "--revision_template": args.revision_template})


def drawing(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, Drawing]:
    """Reads the command line.

    Raises:
        ConfigError: settings that mean nothing to the engine, or an output that is an input or another output.
        OutputError: what is to be written cannot be.
    """
    args = parser.parse_args(argv)
    if not args.model_name_or_path and args.engine != "chat":
        parser.error("the following arguments are required: --model_name_or_path")
    _expect_writable(args)

    from transformers.utils import logging as hf_logging

    from srpo.revise.engines import EngineSettings

    hf_logging.set_verbosity_error()
    show_progress()
    engine = EngineSettings(**{each.name: getattr(args, each.name) for each in fields(EngineSettings)})
    answers = Path(args.output + ANSWERS)

    def reviser() -> Reviser:
        return engine.reviser(
            args.model_name_or_path,
            template=args.revision_template,
            reference=args.reference,
            batch_size=args.batch_size,
            journal=answers,
            trust_remote_code=args.trust_remote_code,
        )

    made_with = {
        "model": args.model_name_or_path,
        "revision_template": args.revision_template or "saved",
        "reference": args.reference or "",
        **engine.made_with(),
    }
    return args, Drawing(reviser, made_with, answers)
