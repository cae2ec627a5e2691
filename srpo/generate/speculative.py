"""Completions in this process by speculative decoding: the cache is kept from draft to revision, drafts are guesses.

A revision's context starts with the prompt and draft of the step before, so the cache is kept between calls and cropped
to the longest common prefix. A revision mostly repeats its draft, so the draft's next tokens are guesses, verified in
one forward pass. Neither changes an answer: each token is the most probable one, or the one that the row's own uniform
number selects, given the true tokens before it. Only rounding differs, as between any two batches.

Models with recurrent layers, windows that drop keys, or attention without a mask cannot be served this way. They use
transformers' own `generate`, after one warning.

Axes: N rows, Q tokens read of each, K tokens verified of each, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from srpo.generate.draft_guesses import Cost, Follower, guess_length
from srpo.generate.engine import Completion, Decoding, Keep, Watch
from srpo.generate.kv_cache import SlotCache
from srpo.generate.plain import HFEngine, contiguous_head
from srpo.generate.sampling import choose, uniforms
from srpo.model.packed.head import head_dtypes
from srpo.model.unwrap import core
from srpo.progress import remark_detail
from srpo.sequences.picture_inputs import pictures_in
from srpo.sequences.tree import common_prefix

log = logging.getLogger("srpo")

_LOGITS = 2**25  # entries of [N, K, V] at most: 128 MB in single precision
# Largest difference allowed between logits with `SlotCache` and without, as a share of the largest logit.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
_CHECKED = 32  # tokens of the comparison, the first context repeated


@dataclass
class _Row:
    """One row of a batch, in progress, or kept with its cache for the next call.

    Attributes:
        context: token ids given.
        noise: one uniform random number per new token; None for greedy decoding.
        follower: guesses the row's next tokens; None without guesses.
        written: token ids generated so far.
    """

    context: list[int]
    noise: Tensor | None
    follower: Follower | None
    written: list[int] = field(default_factory=list)
    known: int = 0  # tokens with keys and values in the cache
    finished: bool = False

    @property
    def ids(self) -> list[int]:
        return self.context + self.written

    def pending(self) -> list[int]:
        """Returns the row's tokens without cached keys and values, which the next forward pass reads; at least one."""
        if self.known >= len(self.context):
            return self.written[self.known - len(self.context) :]
        return self.context[self.known :] + self.written


class SpeculativeEngine(HFEngine):
    """An engine that generates by speculative decoding with a transformers model, on the model's device.

    Attributes:
        forwards, read: Number of forward passes so far, and of the tokens they read, padding included.
        watch: Called after every step with index and tokens so far of each unfinished row; None calls nothing.
        serves: True if speculative decoding is exact for the model; None before the first call.
    """

    def __init__(self, model: nn.Module, *, pad_id: int, batch_size: int = 32) -> None:
        super().__init__(model, pad_id=pad_id, batch_size=batch_size)
        self.forwards = self.read = 0
        self.serves: bool | None = None
        self.watch: Watch | None = None
        self._kept: tuple[list[_Row], SlotCache] | None = None

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = next(self.model.parameters())
        return weight

    def complete(
        self,
        contexts: Sequence[Sequence[int]],
        keys: Sequence[str],
        decoding: Decoding,
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        keep: Keep | None = None,
    ) -> list[Completion]:
        """Returns one completion per context, in order; equal (seed, key) draw equal random numbers.

        The arguments are those of `Engine.complete`.

        Without guesses the cache starts empty, so a batch does not depend on the batch before it, to the last bit.
        """
        pictured = any(map(pictures_in, contexts))  # the cache holds text alone
        if not contexts or pictured or not self._settle(contexts[0]):
            return super().complete(contexts, keys, decoding, keep=keep)
        done: dict[int, Completion] = {}
        for some in self._batches(contexts):
            began = time.perf_counter()
            rows = [
                _Row(
                    list(contexts[i]),
                    uniforms(decoding.seed, keys[i], decoding.max_new_tokens) if decoding.temperature > 0 else None,
                    Follower(guesses[i]) if guesses is not None else None,
                )
                for i in some
            ]
            cache = self._recall(rows) if guesses is not None else self._new_cache()
            self._kept = None  # after `_recall` copied its rows: generation then holds one cache only
            with self.folded.active(contexts[0]):
                for finished in self._write(rows, cache, decoding):
                    seconds = (time.perf_counter() - began) / len(rows)
                    for place in finished:
                        row = rows[place]
                        done[some[place]] = Completion(tuple(row.written), row.finished, seconds)
                        if keep is not None:
                            keep(some[place], done[some[place]])
            self._kept = (rows, cache)
        return [done[i] for i in range(len(contexts))]

    def _batches(self, contexts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yields batches of indices of contexts.

        Several batches are sorted by length of context. A single batch is not: its rows then have the order of the
        cache that the last call left, which need not be copied.
        """
        order = list(range(len(contexts)))
        if len(order) > self.batch_size:
            order.sort(key=lambda i: len(contexts[i]))
        for at in range(0, len(order), self.batch_size):
            yield order[at : at + self.batch_size]

    # ------------------------------------------------------------------ the cache between calls

    def _new_cache(self) -> SlotCache:
        return SlotCache(len(DynamicCache(config=self.model.config).layers))

    def _recall(self, rows: list[_Row]) -> SlotCache:
        """Returns the cache of the last call, its rows chosen and cropped to the longest prefix of each new row.

        Each row's follower goes on from the counts of correct and wrong guesses of the old row with that prefix.
        """
        if self._kept is None:
            return self._new_cache()
        old, cache = self._kept
        ids = [row.ids[: row.known] for row in old]
        order = sorted(range(len(old)), key=ids.__getitem__)
        in_order = [ids[i] for i in order]
        sources = []
        for row in rows:
            # In a sorted list a neighbour has the longest common prefix.
            at = bisect_left(in_order, row.context)
            near = order[max(0, at - 1) : at + 1]
            source = max(near, key=lambda i: common_prefix(ids[i], row.context))
            row.known = min(common_prefix(ids[source], row.context), len(row.context) - 1)
            if row.follower is not None:
                row.follower = Follower.after(old[source].follower, row.follower.draft)
            sources.append(source)
        return cache if sources == list(range(len(old))) else cache.select(sources)

    # ------------------------------------------------------------------ one batch

    @torch.no_grad()
    def _write(self, rows: list[_Row], cache: SlotCache, decoding: Decoding) -> Iterator[list[int]]:
        """Generates until all rows are finished or full; yields the rows that each step completes."""
        most = decoding.max_new_tokens
        open_rows, part, places = rows, cache, list(range(len(rows)))
        waiting = set(places)
        while open_rows:
            self._step(open_rows, part, decoding)
            remark_detail(f"{max(len(row.written) for row in open_rows)} of at most {most} tokens")
            if self.watch is not None:
                for place, row in zip(places, open_rows, strict=True):
                    self.watch(place, row.written)
            completed = [i for i in sorted(waiting) if rows[i].finished or len(rows[i].written) >= most]
            waiting -= {*completed}
            yield completed
            still = [i for i, row in enumerate(open_rows) if not row.finished and len(row.written) < most]
            if 2 * len(still) <= len(open_rows) and len(open_rows) > 1:  # drop finished rows
                if part is not cache:
                    cache.put_back(places, part)
                places, open_rows = [places[i] for i in still], [open_rows[i] for i in still]
                if still:
                    part = cache.select(places)
            elif not still:
                break
        if part is not cache and open_rows:
            cache.put_back(places, part)

    def _step(self, rows: list[_Row], cache: SlotCache, decoding: Decoding) -> None:
        """Reads each row's pending and guessed tokens in one forward pass.

        Appends the accepted guesses of each row and the one token that the model chooses after them.
        """
        most = decoding.max_new_tokens
        guesses = self._guesses(rows, most)
        blocks = [row.pending() + guess for row, guess in zip(rows, guesses, strict=True)]
        verified = 1 + max(map(len, guesses))
        logits_NKV = self._forward(rows, blocks, cache, verified)
        chosen_NK = self._choose(rows, logits_NKV, guesses, decoding.temperature)
        for row, guess, block, chosen in zip(rows, guesses, blocks, chosen_NK.tolist(), strict=True):
            if row.finished or len(row.written) >= most:
                continue  # finished; waits for the others
            agreed = 0
            mine = chosen[verified - 1 - len(guess) :]
            while agreed < len(guess) and guess[agreed] == mine[agreed]:
                agreed += 1
            new = mine[: agreed + 1]
            if (end := next((i for i, token in enumerate(new) if token in decoding.stop_ids), None)) is not None:
                new, row.finished = new[: end + 1], True
            row.known += len(block) - len(guess) + min(agreed, len(new))
            row.written += new
            if row.follower is not None:
                row.follower.see(new)

    def _guesses(self, rows: list[_Row], most: int) -> list[list[int]]:
        followers = [row.follower for row in rows if row.follower is not None and not row.finished]
        if not followers:
            return [[]] * len(rows)
        config = self.model.config.get_text_config()
        room = _LOGITS // (len(rows) * config.vocab_size) - 1
        cost = Cost.of(
            on_cpu=self._weight.device.type == "cpu",
            weights=self._weights,
            cached=max(len(row.context) + len(row.written) for row in rows) * self._cached_per_token,
        )
        length = guess_length([follower.acceptance for follower in followers], cost, room)
        return [
            row.follower.ahead(min(length, most - len(row.written) - 1)) if row.follower and not row.finished else []
            for row in rows
        ]

    def _forward(self, rows: list[_Row], blocks: list[list[int]], cache: SlotCache, verified: int) -> Tensor:
        """Runs the model on N rows; returns logits [N, K, V] after the last K = `verified` tokens of each row's block.

        A block holds the token ids that a row adds to its cache; shorter blocks are padded at the front.
        """
        width = max(map(len, blocks))
        ids = [[self.pad_id] * (width - len(block)) + block for block in blocks]
        slots = [
            [0] * (width - len(block)) + list(range(row.known + 1, row.known + 1 + len(block)))
            for row, block in zip(rows, blocks, strict=True)
        ]
        device, dtype = self._weight.device, self._weight.dtype
        mask_N1QW = cache.place(slots, device, dtype)
        slots_NQ = cache.where.slots_NQ
        self.forwards, self.read = self.forwards + 1, self.read + len(rows) * width
        with contiguous_head(self.model):
            logits_NKV: Tensor = self.model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=mask_N1QW.expand(len(rows), -1, -1, -1),
                position_ids=(slots_NQ - 1).clamp(min=0).expand(len(rows), -1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=verified,
            ).logits
        return logits_NKV

    def _choose(self, rows: list[_Row], logits_NKV: Tensor, guesses: list[list[int]], temperature: float) -> Tensor:
        """Returns the token, [N, K], that the model itself chooses at each of K positions, to compare with guesses.

        At temperature 0 it is the most probable token, otherwise the one that the row's random number selects.
        """
        n, verified, vocabulary = logits_NKV.shape
        flat_RV = logits_NKV.float().reshape(-1, vocabulary) if logits_NKV.dtype != torch.float64 else logits_NKV
        if temperature == 0:
            return choose(flat_RV.reshape(-1, vocabulary), None, 0.0).view(n, verified)
        numbers = []
        for row, guess in zip(rows, guesses, strict=True):
            assert row.noise is not None
            mine = row.noise[len(row.written) : len(row.written) + 1 + len(guess)]
            spare = mine.new_zeros(verified - len(mine))  # unread positions: shorter guesses, finished rows
            numbers.append(torch.cat([spare, mine]))
        uniform_R = torch.cat(numbers).to(flat_RV.device)
        return choose(flat_RV.reshape(-1, vocabulary), uniform_R, temperature).view(n, verified)

    # ------------------------------------------------------------------ the check of the model

    def _settle(self, context: Sequence[int]) -> bool:
        """Returns whether speculative decoding is exact for the model.

        The first call checks it on tokens of `context`, and logs a warning if it is not.
        """
        if self.serves is None:
            config = self.model.config.get_text_config()
            why = why_not_speculative(self.model)
            if not why:
                head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
                kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
                self._cached_per_token = 2 * config.num_hidden_layers * kv_heads * head
                self._weights = sum(weight.numel() for weight in self.model.parameters())
                why = self._check((list(context) * _CHECKED)[:_CHECKED])
            self.serves = not why
            if why:
                log.warning("srpo: plain decoding, one token at a time: %s", why)
        return self.serves

    @torch.no_grad()
    def _check(self, context: list[int]) -> str:
        """Compares logits of a context that is read into the cache in two blocks with those without a cache.

        Returns the reason not to decode speculatively, such as too large a difference; "" if they agree.
        """
        pair = [_Row(context, None, None), _Row(context[: _CHECKED // 2], None, None)]
        cache = self._new_cache()
        for size in (_CHECKED // 4, _CHECKED):  # once without and once with padding
            blocks = [row.context[row.known : size] for row in pair]
            logits_NKV = self._forward(pair, blocks, cache, 1)
            if logits_NKV.shape[1] != 1:
                return "the model ignores logits_to_keep"
            for row, block in zip(pair, blocks, strict=True):
                row.known += len(block)
        for row, through_slots_V in zip(pair, logits_NKV[:, -1], strict=True):
            with head_dtypes(self.model) as dtypes:
                plain_V = self.model(input_ids=torch.tensor([row.context], device=self._weight.device)).logits[0, -1]
            off, largest = (through_slots_V - plain_V).abs().max().item(), plain_V.abs().max().item()
            if not off <= _TOLERANCE[dtypes[0]] * max(1.0, largest):
                return f"its logits with a cropped and padded cache differ from plain ones by {off:.2g}"
        return ""


def why_not_speculative(model: nn.Module) -> str:
    """Returns the reason why a model cannot be decoded speculatively; "" if it can."""
    config = core(model).config.get_text_config()
    if "position_ids" not in inspect.signature(core(model).forward).parameters:
        return "it computes positions from a mask of its own"  # Bloom's ALiBi
    prompts = getattr(model, "active_peft_config", None)
    if prompts is not None and prompts.is_prompt_learning:
        return "the adapter adds tokens of its own before the input"
    others = {type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) is not DynamicLayer}
    if others:
        return f"its cache cannot be rolled back ({', '.join(sorted(others))})"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"{config._attn_implementation} accepts no mask from outside"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"{rope['rope_type']} rotates keys by the total length"
    return ""
