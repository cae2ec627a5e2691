"""An adapter and its base → one model, compared before anybody relies on it.

The comparison is of what was written, read again from its files: weights that are tied, cast or left out differ there
and not in memory.

Axes: S positions, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srpo.data.read import read_prompts
from srpo.disk import writable_folder
from srpo.errors import ConfigError, InputError, OutputError, SRPOError
from srpo.model.weights.card import CARD_FILE, MARK, Card, portable, read_card, write_card
from srpo.model.weights.load import ADAPTER_FILE, TRAINING_FILE, load_model, load_tokenizer
from srpo.sequences.render import Renderer, options_of, template_for
from srpo.sequences.templates import TEMPLATE_FILE

MERGE_FILE = "srpo_merge.json"
PROMPTS, PROMPT_TOKENS = 4, 16  # where none are given


@dataclass(frozen=True)
class Comparison:
    """A model before and after, on the same tokens.

    Attributes:
        prompts: how many.
        positions: logits compared, one for each token of the prompts and of what was greedily generated.
        generated: tokens generated greedily before.
        other_tokens: of them, those that come out otherwise after, and not for a tie that rounding may decide.
        ties: of them, those that come out otherwise for such a tie.
        difference: of logits, at most, as a share of the range of their position's.
        tolerance: the difference that rounding explains.
        effect: how far the adapter itself moves the logits, in the same measure; below the tolerance, an equal result
            shows little.
        dtype: in which both are stored.
    """

    prompts: int
    positions: int
    generated: int
    other_tokens: int
    ties: int
    difference: float
    tolerance: float
    effect: float
    dtype: str

    @property
    def same(self) -> bool:
        """Whether rounding explains all of it; a nan is never the same."""
        return self.difference <= self.tolerance and not self.other_tokens

    def __str__(self) -> str:
        return (
            f"{self.generated - self.other_tokens - self.ties} of {self.generated} greedy tokens equal"
            + (f", {self.ties} ties" if self.ties else "")
            + f"; logits differ by {self.difference:.1e} of their range at most (rounding in {self.dtype}: "
            f"{self.tolerance:.0e}; the adapter moves them by {self.effect:.1e})"
        )


def merge(
    adapter: str,
    target: str,
    *,
    prompts: str | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 16,
    trust_remote_code: bool = False,
) -> Comparison:
    """Writes the model that an adapter makes of its base, with tokenizer, revision template, record and card.

    Args:
        adapter: its folder.
        target: a folder that is not there yet, or empty.
        prompts: a file of prompts to compare on, of which the first 64 are taken; None makes some of the vocabulary.
        dtype: what both are loaded and saved in; auto is the base's own.
        max_new_tokens: generated greedily for each prompt.

    Raises:
        InputError: no adapter there.
        ConfigError: an adapter that cannot be merged, or a target that holds something.
        SRPOError: what was written is not what the adapter was; it is removed again.
    """
    folder, out = Path(adapter), Path(target)
    if not (folder / ADAPTER_FILE).is_file():
        raise InputError(f"no {ADAPTER_FILE} here", where=adapter, expected="the folder of a saved adapter")
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=target, expected="a folder", fix="name another --output_dir")
    if out.exists() and any(out.iterdir()):
        raise ConfigError("is not empty", where=target, fix="name another --output_dir")
    if max_new_tokens < 1:
        raise ConfigError(f"{max_new_tokens}", where="max_new_tokens", expected="1 or more")
    tokenizer = load_tokenizer(adapter, trust_remote_code=trust_remote_code)
    contexts = _contexts(adapter, tokenizer, prompts)  # before weights are read
    model = load_model(adapter, dtype=dtype, trust_remote_code=trust_remote_code).eval()
    [kind] = model.peft_config.values()
    if kind.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
        fix = "use the adapter as it is"
        raise ConfigError(f"a {kind.peft_type.value} adapter has no weights to merge", where=adapter, fix=fix)
    before = _greedy(model, contexts, max_new_tokens)
    with torch.no_grad(), model.disable_adapter():
        base = [_logits(model, ids) for ids, _ in before]
    base_name = str(kind.base_model_name_or_path)
    unverified = _beside(out)
    try:
        _write(model.merge_and_unload(safe_merge=True), tokenizer, folder, unverified)
        again = load_model(str(unverified), dtype=dtype, trust_remote_code=trust_remote_code).eval()
        compared = compare(before, again, base, [len(context) for context in contexts])
        if not compared.same:
            fix = "use the adapter as it is, or merge in --dtype float32"
            raise SRPOError(f"the merged model is another one: {compared}", where=adapter, fix=fix)
        record = {"format": 1, "adapter": portable(adapter), "base": portable(base_name), **asdict(compared)}
        (unverified / MERGE_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        _write_card(unverified, folder, base_name, compared)
        if out.exists():
            out.rmdir()
        unverified.rename(out)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=target) from None
    except ValueError as error:  # PEFT: a nan among the merged weights
        raise SRPOError(f"cannot be merged: {str(error).splitlines()[0]}", where=adapter) from None
    finally:
        shutil.rmtree(unverified, ignore_errors=True)
    return compared


def compare(
    before: Sequence[tuple[list[int], Tensor]], after: Any, base: Sequence[Tensor], context_lengths: Sequence[int]
) -> Comparison:
    """Compares a model with what another one said of the same tokens.

    Args:
        before: per prompt, ids (those generated greedily included) and their logits [S, V].
        after: the model in question.
        base: [S, V] of the model without its adapter, per prompt.
        context_lengths: how many of the ids were given.
    """
    dtype = next(after.parameters()).dtype
    tolerance = rounding(dtype, after.config.get_text_config().num_hidden_layers)
    generated = other = ties = positions = 0
    difference = effect = 0.0
    for (ids, was_SV), base_SV, given in zip(before, base, context_lengths, strict=True):
        now_SV = _logits(after, ids)
        range_S = (was_SV.amax(-1) - was_SV.amin(-1)).clamp_min(torch.finfo(torch.float32).tiny)
        difference = _largest(difference, (now_SV - was_SV).abs().amax(-1) / range_S)
        effect = _largest(effect, (base_SV - was_SV).abs().amax(-1) / range_S)
        chosen_S, now_S = was_SV.argmax(-1), now_SV.argmax(-1)
        lead_S = (was_SV.amax(-1) - was_SV.gather(-1, now_S[:, None])[:, 0]) / range_S
        differs_S = (chosen_S != now_S)[given - 1 : -1]
        tied_S = (lead_S <= 2 * tolerance)[given - 1 : -1]  # each of the two may be off by the tolerance
        generated += len(ids) - given
        ties += int((differs_S & tied_S).sum())
        other += int((differs_S & ~tied_S).sum())
        positions += len(ids)
    name = str(dtype).removeprefix("torch.")
    return Comparison(len(before), positions, generated, other, ties, difference, tolerance, effect, name)


def rounding(dtype: torch.dtype, layers: int) -> float:
    """The difference of logits, as a share of their range, that rounding weights and activations to a dtype explains.

    Each layer adds its own; twice what sound merges of random models show (docs/lab-book.md, "How far rounding moves a
    merged model"). In float32 the order of sums adds more than rounding a number does, hence the floor.

    Example:
        >>> rounding(torch.float32, 24), round(rounding(torch.bfloat16, 24), 3)
        (0.0001, 0.077)
    """
    return max(1e-4, 2 * torch.finfo(dtype).eps * max(layers, 4) ** 0.5)


def _largest(so_far: float, values_S: Tensor) -> float:
    """The largest of all; nan where there is one, for `max` would step over it."""
    return float(torch.cat([values_S.new_tensor([so_far]), values_S]).max())


@torch.no_grad()
def _greedy(model: Any, contexts: Sequence[list[int]], new: int) -> list[tuple[list[int], Tensor]]:
    """Each context with what the model goes on with, terminator or not, and the logits [S, V] of all of it."""
    found = []
    for context in contexts:
        ids = list(context)
        for _ in range(new):
            ids.append(int(_logits(model, ids)[-1].argmax()))
        found.append((ids, _logits(model, ids)))
    return found


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """[S, V] in float32."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
    return logits.float().cpu()


def _contexts(adapter: str, tokenizer: Any, prompts: str | None) -> list[list[int]]:
    """Ids to compare on: prompts as the model drafts from them, or words of the vocabulary in any order."""
    if prompts is not None:
        rows = read_prompts(prompts)[:64]
        renderer = Renderer(tokenizer, template_for(adapter, None))
        return renderer.drafts([row.prompt for row in rows], [options_of(row) for row in rows])
    special = {*tokenizer.all_special_ids}
    words = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    draw = random.Random(0)
    return [[draw.choice(words) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]


def _beside(out: Path) -> Path:
    """An empty folder beside the target: nothing that was not compared ever stands under its name."""
    unverified = out.with_name(out.name + ".unverified")
    shutil.rmtree(unverified, ignore_errors=True)
    return writable_folder(unverified)


def _write(model: Any, tokenizer: Any, adapter: Path, out: Path) -> None:
    """Saves the model with what `srpo revise` needs beside it."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if (adapter / TEMPLATE_FILE).is_file():
        shutil.copyfile(adapter / TEMPLATE_FILE, out / TEMPLATE_FILE)
    if (adapter / TRAINING_FILE).is_file():
        record = json.loads((adapter / TRAINING_FILE).read_text("utf-8"))
        # There is no adapter left to switch off: what it was trained from has to be named, as after full fine-tuning.
        record |= {"reference": "frozen copy", "merged": {"reference": record.get("reference")}}
        (out / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _write_card(out: Path, adapter: Path, base: str, compared: Comparison) -> None:
    """The adapter's card where we wrote it, now of a model; else a card of the merge alone."""
    said = f"Merged from an adapter by `srpo merge`: {compared}."
    theirs = read_card(adapter)
    if theirs is None or MARK.encode() not in theirs:
        if theirs is not None:
            log = logging.getLogger("srpo")
            log.info("srpo: %s is somebody's own and is not carried over", adapter / CARD_FILE)
        write_card(out, Card(base, False, {}, {"base": portable(base)}, comments=[said]), None)
        return
    text = theirs.decode("utf-8").replace("library_name: peft", "library_name: transformers", 1)
    text = re.sub(r"^# An adapter (trained.*)$", rf"# A model \1\n\n{said}", text, count=1, flags=re.MULTILINE)
    (out / CARD_FILE).write_text(text, "utf-8")
