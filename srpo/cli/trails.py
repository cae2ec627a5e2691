"""Settings and steps shared by the verbs `revise` and `sample`, which write a file of drafts and revisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.errors import UsageError
from srpo.revise.settings import ANSWERS, EngineSettings
from srpo.settings import part, setting, shared

if TYPE_CHECKING:
    from srpo.data.source import AnySource
    from srpo.revise.reviser import Reviser


@dataclass(kw_only=True)
class ModelArguments:
    """Settings of a model that drafts and revises: its path, template, reference and engine."""

    model_name_or_path: str = setting("", "Folder or hub name of a trained model or adapter.")
    batch_size: int = shared("batch_size")
    revision_template: str | None = shared("revision_template")
    chat_template_kwargs: dict[str, Any] | None = shared("chat_template_kwargs")
    no_chat_template: bool = shared("no_chat_template")
    base_model: str | None = shared("base_model")
    reference: str | None = shared("reference")
    beta: float | None = setting(
        None, "β that the model was trained with, for its confidence; unset: the value saved with the model.", above=0
    )
    trust_remote_code: bool = shared("trust_remote_code")
    engine: EngineSettings = part(EngineSettings, group="engine that writes the answers")

    @property
    def journal(self) -> Path | None:
        """Path of the file that records finished answers, so that a stopped command can continue; None: no file."""
        return None

    def reviser(self) -> Reviser:
        """Makes the `Reviser`, the model that drafts and revises: loads the weights, or connects to a server."""
        from srpo.revise.engines import make_reviser

        return make_reviser(
            self.engine,
            self.model_name_or_path,
            template=self.revision_template,
            reference=self.reference,
            batch_size=self.batch_size,
            journal=self.journal,
            trust_remote_code=self.trust_remote_code,
            beta=self.beta,
            chat_template_kwargs=self.chat_template_kwargs,
            no_chat_template=self.no_chat_template,
            base_model=self.base_model,
        )

    def expect_model(self, verb: str) -> None:
        """Checks that the command names a model, which only `--engine chat`, a chat server, can do without.

        Raises:
            UsageError: no model is named.
        """
        if not self.model_name_or_path and self.engine.engine != "chat":
            message = "the following arguments are required: --model_name_or_path"
            raise UsageError(message, where=f"srpo {verb}", fix=f"`srpo {verb} --help` lists the options")


@dataclass(kw_only=True)
class TrailArguments(ModelArguments):
    """Settings that `srpo revise` and `srpo sample` share: prompts, model, engine and output."""

    input: str = setting(help="File of prompts: a `prompt` in each row; JSONL, JSON, CSV or Parquet.")
    map: str | None = shared("map", help="Columns under other names, as ours=theirs: prompt=instruction.")
    output: str = setting(help="JSONL file of trails to write; rows that it already holds are not drawn again.")
    bad_rows: str = shared("bad_rows")

    @property
    def answers(self) -> Path:
        """Path of the file beside --output that records finished answers until all prompts are complete."""
        return Path(self.output + ANSWERS)

    @property
    def journal(self) -> Path | None:
        """Path of the file that records finished answers; None without --output."""
        return self.answers if self.output else None

    def prompts(self) -> AnySource:
        """Returns the source of prompts: the file in --input, its columns renamed by --map."""
        from srpo.data.source import Source, columns_of

        return Source(self.input, columns_of(self.map))

    def made_with(self) -> dict[str, str]:
        """Returns setting → value for all settings that affect the answers, to be saved beside the output."""
        options = self.chat_template_kwargs
        return {
            "model": self.model_name_or_path,
            "revision_template": self.revision_template or "saved",
            "reference": self.reference or "",
            **({} if self.beta is None else {"beta": f"{self.beta:g}"}),
            **({"no_chat_template": "true"} if self.no_chat_template else {}),
            **({"base_model": self.base_model} if self.base_model else {}),
            **({"chat_template_kwargs": json.dumps(options, sort_keys=True)} if options else {}),
            **self.engine.made_with(),
        }

    def finish(self, done: int, skipped: int) -> None:
        """Deletes the file of finished answers, no longer needed, and prints the number of completed prompts.

        Args:
            done: number of prompts in the output.
            skipped: how many of them an earlier run had completed.
        """
        self.answers.unlink(missing_ok=True)
        print(f"{self.output}: {done} trails" + (f" ({skipped} were already there)" if skipped else ""))


T = TypeVar("T", bound=TrailArguments)


def parse_trails(verb: str, description: str, kind: type[T], argv: list[str]) -> T:
    """Parses the command line of `revise` or `sample`, and checks that its output files can be written.

    Args:
        verb: "revise" or "sample".
        kind: dataclass of the verb's settings.
        argv: command-line words after the verb.

    Raises:
        UsageError: an unknown or missing flag, or a value that is no number.
        ConfigError: a value out of range, or an output that is the same file as an input or another output.
        OutputError: an output cannot be written.
    """
    args = parse(verb, description, kind, argv)
    args.expect_model(verb)

    from srpo.data.rejected import REJECTED_FILE
    from srpo.disk import expect_writable
    from srpo.revise.trail_files import SETTINGS

    outputs: dict[str, str | Path | None] = {"--output": args.output or None, "--html": getattr(args, "html", None)}
    if args.output:
        for suffix in (SETTINGS, ANSWERS, f".{REJECTED_FILE}"):
            outputs[f"file beside --output ({suffix})"] = args.output + suffix
    expect_writable(outputs, {"--input": args.input, "--revision_template": args.revision_template})
    quiet_transformers()
    return args
