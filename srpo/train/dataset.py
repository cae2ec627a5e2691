"""Preference rows → the trees a trainer draws batches from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from srpo.errors import LengthError
from srpo.pairs.read import Reject, read_pairs
from srpo.pairs.render import Renderer
from srpo.pairs.tree import PrefixTree

log = logging.getLogger("srpo")


@dataclass
class TreeDataset(Dataset[tuple[int, str, PrefixTree]]):
    """One prefix tree per usable pair.

    Attributes:
        trees: what is scored.
        where: `file:line` or `row n` of each.
        rejects: rows left out, with their reasons.
    """

    trees: list[PrefixTree]
    where: list[str]
    rejects: list[Reject]

    @classmethod
    def build(
        cls,
        source: str | Iterable[Mapping[str, Any]],
        renderer: Renderer,
        *,
        max_length: int | None,
        bad_rows: str = "error",
        drafts_only: bool = False,
    ) -> TreeDataset:
        """Reads, renders and packs.

        Args:
            source: path of a JSONL file, or rows.
            max_length: longest sequence allowed, tokens; None allows any.
            bad_rows: "error" stops at unusable or overlong rows, "skip" leaves them out and says how many.
            drafts_only: pack the two draft sequences alone.

        Raises:
            DataError: unusable rows, or none left.
            LengthError: overlong rows; the first ten are named with their lengths.
        """
        rejects: list[Reject] = []
        pairs = read_pairs(source, rejects=rejects if bad_rows == "skip" else None)
        kept, trees, overlong = [], [], []
        for pair, six in zip(pairs, renderer.sixes(pairs), strict=True):
            lengths = [len(context) + len(answer) for context, answer in six]
            if max_length is not None and max(lengths) > max_length:
                overlong.append(Reject(pair.where, _lengths(lengths, max_length)))
            else:
                kept.append(pair)
                trees.append(PrefixTree.pack(six[:2] if drafts_only else six))
        if overlong and (bad_rows == "error" or not kept):
            raise _too_long(overlong, len(pairs))
        rejects += overlong
        if rejects:
            log.warning("srpo: %d of %d rows left out", len(rejects), len(kept) + len(rejects))
        return cls(trees, [pair.where for pair in kept], rejects)

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> tuple[int, str, PrefixTree]:
        return index, self.where[index], self.trees[index]

    @property
    def sharing(self) -> float:
        """Flat tokens per packed token: how often the same prefix would have been computed."""
        return sum(tree.flat_tokens for tree in self.trees) / sum(map(len, self.trees))


def collate(rows: Sequence[tuple[int, str, PrefixTree]]) -> dict[str, Any]:
    """A batch: `row` [B] indices into the data set, where each row stands, and the trees."""
    index, where, trees = zip(*rows, strict=True)
    return {"row": torch.tensor(index), "where": list(where), "trees": list(trees)}


def _lengths(lengths: list[int], limit: int) -> str:
    drafts, revisions = lengths[:2], lengths[2:]
    return f"{max(lengths)} tokens, over the limit of {limit} (as drafts {drafts}, as revisions {revisions})"


def _too_long(overlong: list[Reject], total: int) -> LengthError:
    listed = "\n".join(f"  {where}: {reason}" for where, reason in overlong[:10])
    more = f"\n  … and {len(overlong) - 10} more" if len(overlong) > 10 else ""
    fix = "shorten them, raise max_length as far as the model's context goes, or leave them out with bad_rows=skip"
    return LengthError(f"{len(overlong)} of {total} rows are too long:\n{listed}{more}\n", fix=fix)
