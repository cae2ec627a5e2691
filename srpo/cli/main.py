"""`srpo VERB …`: finds the verb, runs it, and turns an error into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

from srpo import __version__
from srpo.cli.output import QUIET, show_progress
from srpo.errors import Interrupted, OutputError, SRPOError, UsageError, did_you_mean

VERBS = {
    "demo": "base, pairs, training, revision and report on a generated task; offline, minutes on a CPU",
    "train": "train on preference pairs, with SRPO, DPO or IPO",
    "precompute": "score pairs under the reference once, for all epochs and later runs",
    "revise": "draft answers to a file of prompts and revise them",
    "calibrate": "measure on labelled prompts whether revising helps a model, and how far to trust its confidence",
    "serve": "serve a model that drafts and revises, with OpenAI's API and a page to try it",
    "chat": "try a model in the terminal: drafts, revisions and their differences, and votes on them",
    "sample": "draw several drafts of each prompt and revise them, for a judge to label",
    "label": "make preference pairs of the model's own answers, ordered by a judge",
    "rounds": "offline training, then rounds of sample, label and train",
    "evaluate": "score drafts and revisions, with confidence intervals",
    "judge": "measure a judge on labelled pairs, compare two files of answers, compare two judges",
    "exchange": "convert answers to and from the files of AlpacaEval and Arena-Hard",
    "check": "show how a data file is read and rendered, before training",
    "plan": "predict memory and speed of a training on one or many cards, without weights or GPU",
    "merge": "merge an adapter into its base, and compare the merged model with both",
    "export": "write a model as GGUF for llama.cpp and Ollama, and compare the file with it",
    "convert": "convert pickled weights to safetensors, without running pickled code",
    "bandit": "draw the paper's Figure 2 with the library's own losses",
    "recipes": "list the settings files that come with srpo, for common models and the paper, or copy one",
    "env": "show versions, devices and back-ends on this machine",
    "doctor": "show what would be used on this machine, what is missing and what is slow",
    "config-schema": "print the JSON Schema of a settings file, for editors and other programs",
    "completion": "print the completion of verbs and flags for bash, zsh or fish",
}
CONVERSING = {"serve", "chat"}  # verbs that wait for requests or for a person: their time is no progress
FIRST_STEPS = """srpo: one model drafts and revises; Self-Improving Robust Preference Optimization (arXiv 2406.01660)

  srpo demo      the whole method on a generated task, offline, a few minutes on two cores: start here
  srpo check     how your pairs are read and shown to the model:
                   srpo check --dataset_name pairs.jsonl --model_name_or_path MODEL
  srpo train     training on your pairs:
                   srpo train --dataset_name pairs.jsonl --model_name_or_path MODEL --output_dir RUN
  srpo revise    drafts and revisions of a file of prompts, each with the model's own confidence
  srpo evaluate  whether revising helped: scores with intervals, and the strongest opponents

`srpo --help` lists all verbs, `srpo VERB --help` the options of one, and `srpo doctor` looks at this machine.
"""


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "srpo: one model drafts and revises; Self-Improving Robust Preference Optimization (arXiv 2406.01660)\n\n"
        f"usage: srpo VERB [options]\n\n{lines}\n\n`srpo VERB --help` lists the options of a verb; "
        f"{QUIET} hides its progress.\n"
    )


def run(argv: list[str]) -> int:
    """Runs one srpo command line; its first word names the verb, such as train.

    Returns:
        The exit code, 0 on success.

    Raises:
        SRPOError: a user's mistake; `main` prints it.
    """
    quiet, argv = QUIET in argv, [word for word in argv if word != QUIET]
    if not argv:
        print(FIRST_STEPS, end="")
        return 0
    if argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        fix = did_you_mean(verb, VERBS) or "`srpo --help` lists the verbs"
        raise UsageError(f"unknown verb {verb!r}", expected="one of " + ", ".join(VERBS), fix=fix)
    from srpo.progress import Progress

    show_progress(quiet=quiet or verb == "demo")  # the demo prints its stages
    if verb in CONVERSING:
        return module_of(verb).main(rest)
    with Progress(f"{verb} under way", bar=False):
        return module_of(verb).main(rest)


def module_of(verb: str) -> Any:
    """Imports and returns the module of a verb, such as `srpo.cli.train`; its function `main` runs the verb."""
    return importlib.import_module(f"srpo.cli.{verb.replace('-', '_')}")


def main() -> None:
    """Entry point of the command `srpo`: runs it, prints an error as one line, and exits with the error's code."""
    from srpo.secrets import Redacting
    from srpo.signals import signals

    stderr: Any = sys.stderr if isinstance(sys.stderr, Redacting) else Redacting(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold characters that its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = stderr  # libraries log and warn there, too
    try:
        with signals.heard(until_exit=True):
            code = run(sys.argv[1:])
        sys.stdout.flush()  # here, where a closed pipe still has an exit code; at exit it is a traceback
    except SRPOError as error:
        print(f"srpo: error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt as signal:
        print(f"srpo: interrupted by {signal}" if signal.args else "srpo: interrupted", file=sys.stderr)
        code = Interrupted.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OutputError.exit_code
    except Exception as error:  # our mistake, or a library's: one line and exit code 70
        if os.environ.get("SRPO_TRACEBACK"):
            raise
        print(*_lines(error), sep="\n", file=sys.stderr)
        code = SRPOError.exit_code
    raise SystemExit(code)


def _lines(error: Exception) -> list[str]:
    """The lines to print for an exception other than `SRPOError`."""
    text = (str(error).strip().splitlines() or [""])[0]
    # torch may not be imported, so its error is found by name; its CPU allocator raises a plain RuntimeError
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        smaller = "take smaller batches (per_device_train_batch_size, max_tokens_per_batch, batch_size)"
        fix = f"{smaller} or train an adapter (--use_peft)"  # not --dtype: trained weights are float32 anyway
        return [f"srpo: error: out of memory{': ' * bool(text)}{text}; {fix}"]
    internal = f"srpo: internal error: {type(error).__name__}: {text}"
    return [internal, "srpo: SRPO_TRACEBACK=1 shows where; please report it"]
