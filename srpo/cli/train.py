"""`srpo train`: settings file and flags → a trained model."""

from __future__ import annotations

import logging
import sys

from srpo.cli.parser import Mistakes
from srpo.errors import Interrupted, UsageError

DESCRIPTION = """Train a model to draft and to revise from preference pairs.

srpo train --model_name_or_path my-sft-model --dataset_name pairs.jsonl --output_dir run
srpo train --config settings.yaml --beta 0.1
"""


def main(argv: list[str]) -> int:
    """Runs the verb; flags win over the settings file, the file over a preset."""
    from transformers import HfArgumentParser
    from transformers.utils import logging as hf_logging

    from srpo.train.launch import GROUPS, read_settings, settings_of_preset, train

    class Parser(Mistakes, HfArgumentParser):
        """transformers' argument parser with our errors."""

    hf_logging.set_verbosity_error()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = Parser(GROUPS, prog="srpo train", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", help="A flat YAML file of settings; its keys are the flags below.")
    file = _value_of("--config", argv)
    settings = read_settings(file) if file else {}
    parser.set_defaults(**settings_of_preset(_value_of("--preset", argv) or settings.get("preset")))
    parser.set_defaults(**parser.converted(settings, where=str(file)))
    parsed = parser.parse_args(argv)
    vars(parsed).pop("config")
    config, model, data, run = parser.parse_dict(vars(parsed))
    try:
        final = train(config, model, data, run, command=["srpo", "train", *argv])
    except KeyboardInterrupt:
        what = f"interrupted; checkpoints so far are in {config.output_dir}"
        raise Interrupted(what, fix="the same command with --resume goes on from the newest") from None
    print(f"saved {config.output_dir} (train loss {final['train_loss']:.4f})")
    return 0


def _value_of(flag: str, argv: list[str]) -> str | None:
    """A flag's value before the parser runs: it decides the parser's own defaults."""
    for i, word in enumerate(argv):
        if word == flag:
            if i + 1 == len(argv):
                raise UsageError(f"{flag} needs a value", where="srpo train")
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return None
