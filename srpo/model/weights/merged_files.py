"""The files of a model that an adapter was merged into: weights, tokenizer, processor, template, record and card."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.errors import ConfigError, InputError
from srpo.model.weights.architecture import TOWERS
from srpo.model.weights.card import CARD_FILE, MARK, Card, portable, read_card, write_card
from srpo.model.weights.load import load_processor
from srpo.model.weights.quantised import QUANTISATION, TRAINING_FILE
from srpo.model.weights.stopping import stop_at
from srpo.sequences.render import Renderer, template_for
from srpo.sequences.templates import TEMPLATE_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("srpo")


def write_merged(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Path,
    out: Path,
    base: str,
) -> None:
    """Saves a merged model with its tokenizer, processor of pictures, revision template and record of training.

    Args:
        adapter: folder of the adapter, from which template and record are copied.
        out: folder to write.
        base: base model of the adapter; its processor is saved if the adapter's folder has none.
    """
    if (adapter / TRAINING_FILE).is_file():  # trained by srpo, which taught the model the template's terminator
        stop_at(model, Renderer(tokenizer, template_for(str(adapter), None)).stop_ids)
    model.save_pretrained(out)
    if getattr(model.config, TOWERS[0], None) is not None:
        try:
            processor = load_processor(str(adapter), base_model=base)
            processor.save_pretrained(out)  # before the tokenizer that was trained with
        except (InputError, ConfigError) as error:
            log.warning("srpo: the merged model cannot be shown pictures, for its processor is not saved: %s", error)
    tokenizer.save_pretrained(out)
    if (adapter / TEMPLATE_FILE).is_file():
        shutil.copyfile(adapter / TEMPLATE_FILE, out / TEMPLATE_FILE)
    if (adapter / TRAINING_FILE).is_file():
        record = json.loads((adapter / TRAINING_FILE).read_text("utf-8"))
        record.pop(QUANTISATION, None)
        # A merged model has no adapter to switch off: `srpo revise` needs the reference's path, as for full tuning.
        record |= {"reference": "frozen copy", "merged": {"reference": record.get("reference")}}
        (out / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def write_merged_card(out: Path, adapter: Path, base: str, compared: str) -> None:
    """Writes the merged model's card: the adapter's card, adapted, if srpo wrote it; else a card of the merge alone."""
    note = f"Merged from an adapter by `srpo merge`: {compared}."
    theirs = read_card(adapter)
    if theirs is None or MARK.encode() not in theirs:
        if theirs is not None:
            log.info("srpo: %s is not srpo's and is not copied", adapter / CARD_FILE)
        write_card(out, Card(base, False, {}, {"base": portable(base)}, comments=[note]), None)
        return
    text = theirs.decode("utf-8").replace("library_name: peft", "library_name: transformers", 1)
    text = re.sub(r"^# An adapter (trained.*)$", rf"# A model \1\n\n{note}", text, count=1, flags=re.MULTILINE)
    (out / CARD_FILE).write_text(text, "utf-8")
