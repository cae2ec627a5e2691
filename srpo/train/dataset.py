"""Preference rows → the trees a trainer draws batches from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from srpo.data.read import Pair, Reject, Source, read, reasons
from srpo.errors import DataError, LengthError, SRPOError, TemplateError
from srpo.sequences.fit import SAME_TOKENS, fitted
from srpo.sequences.parallel import mapped
from srpo.sequences.render import Renderer
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import KEPT_FROM, TreeStore

VERSION = 1  # of what is kept; another one is not read
log = logging.getLogger("srpo")


@dataclass
class TreeDataset(Dataset[tuple[int, str, PrefixTree]]):
    """One prefix tree per usable pair.

    Attributes:
        trees: what is scored.
        where: `file:line` or `row n` of each.
        rejects: rows left out, with their reasons.
        cut: `file:line` or `row n` of each pair whose prompt was cut → tokens cut.
        tokenised: pairs that were rendered to make this; 0 when all of it was kept from an earlier time.
        content: sha256 of the pairs as they were read, in their order.
    """

    trees: Sequence[PrefixTree]
    where: list[str]
    rejects: list[Reject]
    cut: dict[str, int]
    tokenised: int
    content: str

    @classmethod
    def build(
        cls,
        source: str | Path | Source | Iterable[Mapping[str, Any]],
        renderer: Renderer,
        *,
        max_length: int | None,
        bad_rows: str = "error",
        drafts_only: bool = False,
        truncate: str = "none",
        num_proc: int | None = None,
        cache: str | Path | None = None,
    ) -> TreeDataset:
        """Reads, renders and packs.

        Args:
            source: path of a file, rows, or a `Source`.
            max_length: longest sequence allowed, tokens; None allows any.
            bad_rows: "error" stops at unusable or overlong rows, "skip" leaves them out and says how many. Rows that
                prefer nothing are left out either way.
            drafts_only: pack the two draft sequences alone.
            truncate: "none", or "prompt", which cuts the oldest part of a prompt that is too long.
            num_proc: processes to render in; None takes one per core, eight at most, when there are enough rows.
            cache: folder that keeps what became of a thousand pairs or more, for the same pairs, tokenizer, template
                and lengths; None keeps nothing.

        Raises:
            DataError: unusable rows, or none left.
            LengthError: overlong rows; the first ten are named with their lengths.
            TemplateError: the chat template refuses rows.
        """
        reading = read(source, rejects=[] if bad_rows == "skip" else None)
        pairs, rejects = reading.pairs, reading.rejects
        packing = _Packing(renderer, max_length, truncate, drafts_only)
        content = _content(pairs)
        file = Path(cache) / f"{packing.key(content)}.trees" if cache and len(pairs) >= KEPT_FROM else None
        kept = TreeStore.load(file) if file else None
        if kept:
            store, note = kept
            found = _Packed(store, *json.loads(note))
            log.info("srpo: %d pairs tokenised before, kept in %s", len(pairs), file)
        else:
            found = packing.all(pairs, num_proc)
            if file:
                _keep(found, file)
        same = {i for i, reason in found.bad if reason == SAME_TOKENS}  # neither is preferred, which stops nothing
        bad = {i: Reject(pairs[i].where, reason) for i, reason in found.bad}
        stops = [each for i, each in bad.items() if i not in same]
        if (stops and bad_rows == "error") or len(bad) == len(pairs):
            raise _unfit(stops or list(bad.values()), len(pairs), truncate)
        rejects = [*rejects, *bad.values()]
        if bad or (rejects and bad_rows == "skip"):
            left = len(pairs) - len(bad)
            log.warning("srpo: %d of %d rows left out: %s", len(rejects), left + len(rejects), reasons(rejects))
        cut = {pairs[i].where: tokens for i, tokens in found.cut}
        if cut:
            said = "srpo: the prompts of %d of %d pairs cut to fit %d tokens, by %d tokens at most"
            log.warning(said, len(cut), len(pairs), max_length, max(cut.values()))
        where = [pair.where for i, pair in enumerate(pairs) if i not in bad]
        return cls(found.trees, where, rejects, cut, 0 if kept else len(pairs), content)

    def digest(self) -> str:
        """sha256 of the trees, in their order: of what is trained on, wherever it came from."""
        return (self.trees if isinstance(self.trees, TreeStore) else TreeStore.of(self.trees)).digest()

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> tuple[int, str, PrefixTree]:
        return index, self.where[index], self.trees[index]

    def row_content(self, index: int) -> bytes:
        """What tells the tree of a row from every other."""
        return self.trees.content(index) if isinstance(self.trees, TreeStore) else self.trees[index].content

    def size(self, index: int) -> int:
        """Packed tokens of a row."""
        return self.trees.size(index) if isinstance(self.trees, TreeStore) else len(self.trees[index])

    @property
    def largest_id(self) -> int:
        """The largest token id of all trees."""
        store = self.trees if isinstance(self.trees, TreeStore) else TreeStore.of(self.trees)
        return int(np.frombuffer(store.ids, dtype=np.int32).max())

    @property
    def sharing(self) -> float:
        """Flat tokens per packed token: how often the same prefix would have been computed."""
        return sum(tree.flat_tokens for tree in self.trees) / sum(map(len, self.trees))


class _Packed(NamedTuple):
    """Trees in order, and what happened to the pairs they are of: index and reason, index and tokens cut."""

    trees: TreeStore
    bad: list[tuple[int, str]]
    cut: list[tuple[int, int]]


class _Packing(NamedTuple):
    """How pairs become trees."""

    renderer: Renderer
    max_length: int | None
    truncate: str
    drafts_only: bool

    def key(self, content: str) -> str:
        """sha256 over everything that decides what comes out."""
        said = f"{VERSION} {self.renderer.fingerprint} {self[1:]} {content}"
        return hashlib.sha256(said.encode()).hexdigest()

    def all(self, pairs: list[Pair], num_proc: int | None) -> _Packed:
        whole = _Packed(TreeStore(), [], [])
        done = 0
        for chunk, part in mapped(self.chunk, pairs, num_proc=num_proc):
            whole.trees.extend(part.trees)
            whole.bad.extend((done + i, reason) for i, reason in part.bad)
            whole.cut.extend((done + i, tokens) for i, tokens in part.cut)
            done += chunk
        return whole

    def chunk(self, pairs: list[Pair]) -> tuple[int, _Packed]:
        """How many these were, and what they are packed."""
        trees: list[PrefixTree] = []
        packed = _Packed(TreeStore(), [], [])
        rows = fitted(self.renderer, pairs, max_length=self.max_length, truncate=self.truncate)
        for i, (_, six, _, cut) in enumerate(rows):
            if isinstance(six, Reject):
                packed.bad.append((i, six.reason))
                continue
            trees.append(PrefixTree.pack(six[:2] if self.drafts_only else six))
            if cut:
                packed.cut.append((i, cut))
        packed.trees.extend(TreeStore.of(trees))
        return len(pairs), packed


def _content(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        said = (pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.chat_template_kwargs)
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def _keep(found: _Packed, file: Path) -> None:
    """Keeping saves time and nothing else: a full disk or a read-only home is no reason to stop."""
    try:
        found.trees.save(file, json.dumps(found[1:]))
    except OSError as error:
        log.warning("srpo: tokenised pairs are not kept in %s: %s", file.parent, error.strerror)


def collate(rows: Sequence[tuple[int, str, PrefixTree]]) -> dict[str, Any]:
    """A batch: `row` [B] indices into the data set, where each row stands, and the trees."""
    index, where, trees = zip(*rows, strict=True)
    return {"row": torch.tensor(index), "where": list(where), "trees": list(trees)}


def _unfit(bad: list[Reject], total: int, truncate: str) -> SRPOError:
    listed = "\n".join(f"  {where}: {reason}" for where, reason in bad[:10])
    more = f"\n  … and {len(bad) - 10} more" if len(bad) > 10 else ""
    if all("over the limit of" in reason for _, reason in bad):
        cut = "" if truncate == "prompt" else "cut the oldest part of their prompts with truncate=prompt, "
        fix = (
            "shorten them, raise max_length as far as the model's context goes, "
            f"{cut}or leave them out with bad_rows=skip"
        )
        return LengthError(f"{len(bad)} of {total} rows are too long:\n{listed}{more}\n", fix=fix)
    kind = TemplateError if any("chat template" in reason for _, reason in bad) else DataError
    fix = "mend these rows, or go on without them with `--bad_rows skip`"
    return kind(f"{len(bad)} of {total} rows cannot be rendered:\n{listed}{more}\n", fix=fix)
