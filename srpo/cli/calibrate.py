"""`srpo calibrate`: measures on prompts with gold answers whether revising helps and confidence is reliable."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo.cli.flags import parse
from srpo.cli.output import quiet_transformers
from srpo.errors import ConfigError
from srpo.revise.settings import ReviserSettings, RevisionSettings
from srpo.settings import part, setting, shared

DESCRIPTION = """Measure on labelled prompts whether revising helps; keep the chosen policy with the model.

srpo calibrate --model_name_or_path my-srpo-model --reference my-sft-model --input labelled.jsonl
srpo calibrate --before --model_name_or_path my-sft-model --revision_template turn --input labelled.jsonl

With --before the model is the reference, not yet trained: the command predicts whether training it to revise pays.
"""


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo calibrate`, which chooses a number of revisions and the policy that keeps or refuses them."""

    model_name_or_path: str = setting(
        help="Folder or hub name of a trained model or adapter; of a reference (--before)."
    )
    before: bool = setting(False, "Measure a model before training: is it worth training it to revise?")
    gate_beta: list[float] = setting([0.1, 0.2], "With --before: values of beta to predict for.", metavar="BETA")
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
        """Creates, checks and returns the folder for the chosen revision policy: --output_dir, or the model's own.

        Raises:
            ConfigError: the policy's file would replace the input, or the model has no folder and no option names one.
            OutputError: the folder cannot be written.
        """
        from srpo.disk import expect_writable, writable_folder
        from srpo.model.weights.load import load_tokenizer
        from srpo.revise.stored_calibration import CALIBRATION_FILE, GATE_FILE

        folder = Path(self.output_dir or self.model_name_or_path)
        if not self.output_dir and not folder.is_dir():
            load_tokenizer(self.model_name_or_path)  # raises InputError for an unknown model
            fix = "name a folder for the chosen policy"
            raise ConfigError("the model is in no folder here", where="output_dir", fix=fix)
        file = GATE_FILE if self.before else CALIBRATION_FILE
        expect_writable({"--output_dir": writable_folder(folder) / file}, {"--input": self.input})
        return folder


def main(argv: list[str]) -> int:
    """Runs `srpo calibrate`: answers labelled prompts, prints and stores the chosen revision policy; returns 0.

    With --before, it stores a prediction instead: whether training the model to revise will pay.
    """
    args = parse("calibrate", DESCRIPTION, Arguments, argv)
    if args.before and args.reference:
        fix = "leave it out: with --before the model itself is the reference"
        raise ConfigError("has no use with --before", where="reference", fix=fix)

    from srpo.data.read import read_prompts
    from srpo.evaluate.cache import models_in
    from srpo.evaluate.calibrate import calibrate, lines
    from srpo.evaluate.gate import measure_gate
    from srpo.judge.single import load_judge
    from srpo.revise.reviser import Reviser

    folder = args.folder()
    quiet_transformers()
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
    keywords: dict[str, Any] = {"gold_key": args.gold_key, "folder": trails, "made_with": made_with}
    if args.before:
        gate = measure_gate(reviser, rows, judge, args.revision, betas=args.gate_beta, **keywords)
        table, sentences, path = gate.lines(), [f"{gate.verdict}: {gate.why}"], gate.save(folder)
    else:
        found = calibrate(reviser, rows, judge, args.revision, **keywords)
        table, path = lines(found) if found.table else [], found.save(folder)
        sentences = [*found.sentences(), found.choice.sentence()]
    shutil.rmtree(trails)  # only an interrupted calibration needs them
    _show(table, [*sentences, f"written to {path}"])
    return 0


def _show(cells: list[list[str]], sentences: list[str]) -> None:
    """Prints a table, its header line first, and sentences."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if cells:
        table = Table(*cells[0])
        for row in cells[1:]:
            table.add_row(*map(str, row))
        console.print(table)
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)
