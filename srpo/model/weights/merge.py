"""Merges an adapter into its base, and compares the result with the adapter before it gets its final name.

The check loads the merged model from its files again: weights that are tied, cast or left out differ in the files and
not in memory.

Axes: S positions, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from srpo.data.pictures import refuse_pictures
from srpo.data.read import read_prompts
from srpo.disk import writable_folder
from srpo.errors import ConfigError, InputError, OutputError, SRPOError
from srpo.model.unwrap import core, device_of
from srpo.model.weights.adapter import ADAPTER_FILE, find_adapter
from srpo.model.weights.card import portable
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.model.weights.merged_files import write_merged, write_merged_card
from srpo.model.weights.precision import has_fast_bfloat16
from srpo.model.weights.quantised import recorded_quantisation
from srpo.progress import Progress, counted
from srpo.sequences.render import Renderer, options_of, template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("srpo")
MERGE_FILE = "srpo_merge.json"
PROMPTS, PROMPT_TOKENS = 4, 16  # size of the check without a file of prompts
LOGITS = 2**31  # bytes of logits that the check keeps: float32, of the adapter and of its base


@dataclass(frozen=True)
class MergeCheck:
    """Comparison of a merged model with its adapter on the same tokens.

    Attributes:
        prompts: number of prompts.
        positions: compared positions: all tokens of the prompts and of the greedy answers.
        generated: tokens of the adapter's greedy answers.
        other_tokens: generated tokens that the merged model decodes differently, without `ties`.
        ties: generated tokens that differ where rounding alone can decide between two tokens.
        difference: largest difference of logits, as a share of the range of logits at its position.
        tolerance: the difference that rounding explains.
        effect: largest difference of logits, as such a share, that the adapter makes to its base; below `tolerance` the
            check shows little.
        dtype: dtype in which both models are stored.
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
        """True if rounding explains every difference of merged model and adapter; False if a logit is nan."""
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
    base_model: str | None = None,
) -> MergeCheck:
    """Merges an adapter into its base; writes model, tokenizer, template, record and card; returns the comparison.

    Args:
        adapter: folder of the adapter.
        target: a folder that is empty or does not exist.
        prompts: file of prompts for the check, of which the first 64 are used; None draws tokens from the vocabulary.
        dtype: dtype in which the model is loaded and saved; "auto" is the base's own.
        max_new_tokens: tokens to decode greedily for each prompt.
        base_model: base model of the adapter, instead of the one in its `adapter_config.json`.

    Raises:
        InputError: no adapter there, or no base model.
        ConfigError: an adapter that cannot be merged, or a target that is not empty.
        SRPOError: the merged model differs from the adapter; the written files are removed.
    """
    found, out = find_adapter(adapter, base_model), Path(target)
    if found is None:
        raise InputError(f"no {ADAPTER_FILE} here", where=adapter, expected="the folder of a saved adapter")
    folder = found.folder
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=target, expected="a folder", fix="name another --output_dir")
    if out.exists() and any(out.iterdir()):
        raise ConfigError("is not empty", where=target, fix="name another --output_dir")
    if max_new_tokens < 1:
        raise ConfigError(f"{max_new_tokens}", where="max_new_tokens", expected="1 or more")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "base_model": base_model}
    tokenizer = load_tokenizer(adapter, **options)
    contexts = contexts_of(adapter, tokenizer, prompts)  # a mistake in the prompts ends here, before weights are read
    trained = recorded_quantisation(folder)
    if trained:
        options |= {"quantization_config": trained}
    # The 8-bit kernels round activations, too, so that no merged model gives their numbers.
    model = load_model(adapter, dtype=dtype, **options, dequantised=bool(trained.get("load_in_8bit"))).eval()
    _expect_mergeable(model, adapter)
    contexts = _that_fit(contexts, max_new_tokens, model.config.get_text_config().vocab_size)
    stored = next(model.get_base_model().parameters()).dtype
    half = stored in (torch.bfloat16, torch.float16)
    emulated = half and not has_fast_bfloat16(str(device_of(model)))  # slower than float32, and less exact
    measured = None if emulated else measure(model, contexts, max_new_tokens)
    base_name = found.base
    unverified = _beside(out)
    try:
        if trained.get("load_in_4bit"):  # merged weights would be rounded to 4 bits again
            model = load_model(adapter, dtype=dtype, **options, dequantised=True)
        with Progress("merging the adapter and writing the model"):
            write_merged(model.merge_and_unload(safe_merge=True), tokenizer, folder, unverified, found.base)
        del model
        compared = None
        if measured is not None:
            again = load_model(str(unverified), dtype=dtype, trust_remote_code=trust_remote_code).eval()
            compared = compare(measured.answered, again, measured.base, measured.given)
            del measured, again
        if compared is None or (half and not compared.same):
            compared = _compare_in_float32(adapter, unverified, contexts, max_new_tokens, stored, options)
        if not compared.same:
            fix = "use the adapter as it is, or merge in --dtype float32"
            raise SRPOError(f"the merged model is another one: {compared}", where=adapter, fix=fix)
        record = {"format": 1, "adapter": portable(adapter), "base": portable(base_name), **asdict(compared)}
        (unverified / MERGE_FILE).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        write_merged_card(unverified, folder, base_name, str(compared))
        if out.exists():
            out.rmdir()
        unverified.rename(out)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=target) from None
    except ValueError as error:  # PEFT found a nan among the merged weights
        raise SRPOError(f"cannot be merged: {str(error).splitlines()[0]}", where=adapter) from None
    finally:
        shutil.rmtree(unverified, ignore_errors=True)
    return compared


def _that_fit(contexts: list[list[int]], new: int, words: int) -> list[list[int]]:
    """Returns as many of the first contexts as have logits that fit in `LOGITS` bytes together; at least one.

    Args:
        new: tokens that will be added to each context.
        words: size of the vocabulary.
    """
    sizes = accumulate(8 * words * (len(context) + new) for context in contexts)
    count = max(1, sum(size <= LOGITS for size in sizes))
    if count < len(contexts):
        log.info("srpo: the check takes %d of %d prompts, whose logits fit in memory", count, len(contexts))
    return contexts[:count]


def _expect_mergeable(model: Any, adapter: str) -> None:
    """Raises ConfigError for an adapter that changes no weights of its base, such as prompt tuning."""
    [kind] = model.peft_config.values()
    if kind.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
        fix = "use the adapter as it is"
        raise ConfigError(f"a {kind.peft_type.value} adapter has no weights to merge", where=adapter, fix=fix)


class Measured(NamedTuple):
    """Greedy answers of an adapter to several prompts, with logits [S positions, V vocabulary] of adapter and base.

    Attributes:
        given: number of tokens of each prompt.
        answered: ids of each prompt with its greedy answer, and the adapter's logits of them.
        base: logits of the base without the adapter.
    """

    given: list[int]
    answered: list[tuple[list[int], Tensor]]
    base: list[Tensor]


def measure(model: Any, contexts: Sequence[list[int]], new: int) -> Measured:
    """Continues each context greedily by `new` tokens with an adapter; returns answers and logits of both models.

    Args:
        model: the adapter on its base.
        contexts: token ids of each prompt.
    """
    answered = greedy(model, contexts, new)
    with torch.no_grad(), model.disable_adapter():
        base = [logits_of(model, ids) for ids, _ in answered]
    return Measured([len(context) for context in contexts], answered, base)


def _compare_in_float32(
    adapter: str, merged: Path, contexts: Sequence[list[int]], new: int, stored: torch.dtype, options: Mapping[str, Any]
) -> MergeCheck:
    """Compares an adapter with its merged model, both with 16-bit weights and float32 activations.

    So only the weights are rounded. With activations in 16 bits some models differ by more than `rounding` explains.

    Args:
        adapter, merged: folders of the two models.
        contexts: token ids of each prompt.
        new: tokens that the adapter adds to each prompt greedily.
        stored: dtype in which the merged weights are stored; decides the tolerance.
        options: keywords of `load_model` for the adapter.
    """
    log.info("srpo: adapter and merged model are compared in float32")
    dequantised = "quantization_config" in options
    model = load_model(adapter, dtype=stored, **options, dequantised=dequantised).eval().float()
    given, answered, base = measure(model, contexts, new)
    del model
    again = load_model(str(merged), dtype="float32", trust_remote_code=bool(options["trust_remote_code"])).eval()
    return compare(answered, again, base, given, stored=stored)


def compare(
    before: Sequence[tuple[list[int], Tensor]],
    after: nn.Module,
    base: Sequence[Tensor],
    context_lengths: Sequence[int],
    *,
    stored: torch.dtype | None = None,
) -> MergeCheck:
    """Returns the comparison of a merged model's logits with those of the adapter on the same tokens.

    Args:
        before: for each prompt, the ids of prompt and greedy answer, and the adapter's logits [S, V] of them.
        after: the merged model.
        base: for each prompt, the base's logits [S, V] of the same ids.
        context_lengths: number of prompt tokens among the ids.
        stored: dtype of the merged weights in the file; None if it is the dtype of `after`.
    """
    dtype = stored or next(after.parameters()).dtype
    tally = Tally(rounding(dtype, core(after).config.get_text_config().num_hidden_layers))
    rows = list(zip(before, base, context_lengths, strict=True))
    for (ids, was_SV), base_SV, given in counted(rows, "prompts compared", len(rows)):
        tally.add(was_SV, logits_of(after, ids), base_SV, given)
    return tally.check(str(dtype).removeprefix("torch."))


class Tally:
    """Compares the logits of two models, one sequence at a time.

    Args:
        tolerance: difference of logits that rounding explains, as a share of their range at its position.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.prompts = self.positions = self.generated = self.other_tokens = self.ties = 0
        self.difference = self.effect = 0.0

    def add(self, was_SV: Tensor, now_SV: Tensor, base_SV: Tensor, given: int) -> None:
        """Adds one sequence of S tokens: the largest differences of logits, and how often the likeliest tokens differ.

        Args:
            was_SV: [S, V] logits of the first model.
            now_SV: [S, V] logits of the second, on the same tokens.
            base_SV: [S, V] logits of the base; their distance from `was_SV` is the adapter's effect.
            given: tokens of the prompt, at the start of the sequence; likeliest tokens are compared after them.
        """
        range_S = (was_SV.amax(-1) - was_SV.amin(-1)).clamp_min(torch.finfo(torch.float32).tiny)
        self.difference = _largest(self.difference, (now_SV - was_SV).abs().amax(-1) / range_S)
        self.effect = _largest(self.effect, (base_SV - was_SV).abs().amax(-1) / range_S)
        chosen_S, now_S = was_SV.argmax(-1), now_SV.argmax(-1)
        lead_S = (was_SV.amax(-1) - was_SV.gather(-1, now_S[:, None])[:, 0]) / range_S
        differs_S = (chosen_S != now_S)[given - 1 : -1]
        tied_S = (lead_S <= 2 * self.tolerance)[given - 1 : -1]  # each model may be off by the tolerance
        self.generated += len(was_SV) - given
        self.ties += int((differs_S & tied_S).sum())
        self.other_tokens += int((differs_S & ~tied_S).sum())
        self.positions += len(was_SV)
        self.prompts += 1

    def check(self, dtype: str) -> MergeCheck:
        """Returns the comparison so far; `dtype` is the stored precision of the second model."""
        return MergeCheck(**vars(self), dtype=dtype)


def rounding(dtype: torch.dtype, layers: int) -> float:
    """Returns the largest difference of two models' logits, as a share of their range, that rounding explains.

    It is twice the difference measured on correct merges of random models, and grows with the number of layers
    (docs/lab-book/06-rounding-of-merged-models.md). It is at least 1e-4, since in float32 the order of sums matters
    more than the rounding of numbers.

    Args:
        dtype: dtype of the weights.
        layers: number of layers.

    Example:
        >>> rounding(torch.float32, 24), round(rounding(torch.bfloat16, 24), 3)
        (0.0001, 0.077)
    """
    return max(1e-4, 2 * torch.finfo(dtype).eps * max(layers, 4) ** 0.5)


def _largest(so_far: float, values_S: Tensor) -> float:
    """Returns the largest of `so_far` and `values_S`; nan if any of them is nan, unlike Python's `max`."""
    return float(torch.cat([values_S.new_tensor([so_far]), values_S]).max())


def greedy(model: nn.Module, contexts: Sequence[list[int]], new: int) -> list[tuple[list[int], Tensor]]:
    """Continues each context greedily by exactly `new` tokens, past any terminator, and computes the logits of all.

    Returns for each context the ids with the new ones, and their logits [S positions, V vocabulary].
    """
    counted_contexts = counted(contexts, "prompts answered with the adapter", len(contexts))
    answered = (continued(model, context, new) for context in counted_contexts)
    return [(ids, logits_of(model, ids)) for ids in answered]


@torch.no_grad()
def continued(model: nn.Module, context: Sequence[int], new: int) -> list[int]:
    """Returns the ids of a context and of the `new` greedy tokens after it, past any terminator."""
    ids, feed, cache = list(context), list(context), None
    for _ in range(new):
        rows = torch.tensor([feed], device=device_of(model))
        out = model(input_ids=rows, past_key_values=cache, use_cache=True)
        ids.append(int(out.logits[0, -1].argmax()))
        cache = out.get("past_key_values")
        feed = ids if cache is None else ids[-1:]  # a model without a cache reads everything again
    return ids


@torch.no_grad()
def logits_of(model: nn.Module, ids: Sequence[int]) -> Tensor:
    """Returns a model's logits [S positions, V vocabulary] for one sequence of token ids, as float32 on the CPU."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids)], device=device_of(model)), use_cache=False).logits[0]
    return logits.float().cpu()


def contexts_of(adapter: str, tokenizer: PreTrainedTokenizerBase, prompts: str | None) -> list[list[int]]:
    """Returns token ids to compare models on, one list per prompt.

    Args:
        adapter: folder with the revision template.
        prompts: file of prompts, of which the first 64 are rendered; None draws random tokens.
    """
    if prompts is not None:
        rows = read_prompts(prompts)[:64]
        for row in rows:
            refuse_pictures(row.prompt, "the comparison")
        renderer = Renderer(tokenizer, template_for(adapter, None))
        return renderer.drafts([row.prompt for row in rows], [options_of(row) for row in rows])
    special = {*tokenizer.all_special_ids}
    words = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    draw = random.Random(0)
    return [[draw.choice(words) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]


def _beside(out: Path) -> Path:
    """Makes an empty folder beside the target `out`; it is renamed to `out` once the merged model passes the check."""
    unverified = out.with_name(out.name + ".unverified")
    shutil.rmtree(unverified, ignore_errors=True)
    return writable_folder(unverified)
