"""`srpo calibrate`: labelled prompts → whether to revise with a model, and how far to trust its confidence."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers, show_progress
from srpo.errors import ConfigError
from srpo.revise.settings import ReviserSettings, RevisionSettings
from srpo.settings import part, setting, shared

DESCRIPTION = "Measure on labelled prompts whether revising helps; keep the chosen policy with the model."


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo calibrate`."""

    model_name_or_path: str = setting(help="Folder or hub name of a trained model or adapter.")
    input: str = setting(help="File of prompts: a `prompt` and a gold answer in each row.")
    gold_key: str = shared("gold_key")
    judge: str = setting("exact_match", "Judge of single answers: exact_match, per_character or module:function.")
    revision: RevisionSettings = part(RevisionSettings, without=["policy"])
    batch_size: int = shared("batch_size")
    reference: str | None = shared("reference")
    equation: str = setting("eq9", "Equation of the confidence: eq9, or eq14 for twice the forward tokens.")
    revision_template: str | None = shared("revision_template")
    chat_template_kwargs: dict[str, Any] | None = shared("chat_template_kwargs")
    no_chat_template: bool = shared("no_chat_template")
    base_model: str | None = shared("base_model")
    output_dir: str | None = setting(None, "Folder for the chosen policy; unset: the folder of the model.")
    dtype: str = shared("dtype")
    device: str = shared("device")
    trust_remote_code: bool = shared("trust_remote_code")

    def folder(self) -> Path:
        """The folder to store the chosen policy in, checked before any answer is drawn.

        Raises:
            ConfigError: the policy's file would replace the input, or the model has no folder and no option names one.
            OutputError: the folder cannot be written.
        """
        from srpo.disk import expect_writable, writable_folder
        from srpo.model.weights.load import load_tokenizer
        from srpo.revise.stored_calibration import CALIBRATION_FILE

        folder = Path(self.output_dir or self.model_name_or_path)
        if not self.output_dir and not folder.is_dir():
            load_tokenizer(self.model_name_or_path)  # raises InputError for an unknown model
            fix = "name a folder for the chosen policy"
            raise ConfigError("the model is in no folder here", where="output_dir", fix=fix)
        expect_writable({"--output_dir": writable_folder(folder) / CALIBRATION_FILE}, {"--input": self.input})
        return folder


def main(argv: list[str]) -> int:
    """Measures confidence and revisions, prints the table and the chosen policy, and stores the policy."""
    args = parse("calibrate", DESCRIPTION, Arguments, argv)

    from rich.console import Console
    from rich.table import Table

    from srpo.data.read import read_prompts
    from srpo.evaluate.cache import models_in
    from srpo.evaluate.calibrate import calibrate, lines
    from srpo.judge.single import load_judge
    from srpo.revise.reviser import Reviser

    folder = args.folder()
    quiet_transformers()
    show_progress()
    judge, rows = load_judge(args.judge), read_prompts(args.input)
    settings = ReviserSettings(
        equation=args.equation,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        chat_template_kwargs=args.chat_template_kwargs,
        no_chat_template=args.no_chat_template,
        base_model=args.base_model,
    )
    reviser = Reviser(
        args.model_name_or_path, template=args.revision_template, reference=args.reference, settings=settings
    )
    models = models_in(args.model_name_or_path, args.reference, args.revision_template)
    made_with = {**models, "equation": args.equation, "dtype": args.dtype}
    (trails := folder / "calibration_trails").mkdir(exist_ok=True)
    found = calibrate(reviser, rows, judge, args.revision, gold_key=args.gold_key, folder=trails, made_with=made_with)
    path = found.save(folder)
    shutil.rmtree(trails)  # only an interrupted calibration needs them
    console = Console(highlight=False)
    if found.table:
        head, *body = lines(found)
        table = Table(*head)
        for row in body:
            table.add_row(*map(str, row))
        console.print(table)
    for sentence in found.sentences():
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"{found.choice.sentence()}\nwritten to {path}", markup=False, soft_wrap=True)
    return 0
