"""Turns preference pairs into prefix trees (merged token sequences), from which a trainer draws batches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import Dataset

from srpo.check.suspicious import Suspicious
from srpo.data.picture import Picture
from srpo.data.pictures import pictures_of
from srpo.data.read import Pair, Refused, Reject, TooLong, Undecided, listed, read, reasons
from srpo.data.source import AnySource, Source
from srpo.errors import DataError, LengthError, SRPOError, TemplateError
from srpo.model.packed.forest import Forest
from srpo.progress import counted
from srpo.sequences.fit import StoredPairs
from srpo.sequences.picture_processor import PictureProcessor
from srpo.sequences.render import Renderer
from srpo.sequences.tree import PrefixTree
from srpo.sequences.tree_store import TreeStore, tree_of
from srpo.train.config import SRPOConfig

log = logging.getLogger("srpo")
T = TypeVar("T")


def first_rows(rows: T, most: int) -> T | list[Any]:
    """Returns the first `most` rows if `rows` is a stream of unknown length, which may never end.

    Anything else, such as a list or a path, is returned unchanged; for `most` below 1 a stream is, too.
    """
    if most < 1 or not isinstance(rows, Iterable) or isinstance(rows, str) or hasattr(rows, "__len__"):
        return rows
    return list(islice(rows, most))


@dataclass
class TreeDataset(Dataset[tuple[int, str, PrefixTree]]):
    """Torch data set with one prefix tree (the merged sequences of a pair) per usable preference pair.

    Attributes:
        trees: the trees, in the order of the rows.
        where: `file:line` or `row n` of each tree's pair.
        rejects: rows left out, with their reasons.
        cut: `file:line` or `row n` of each pair whose prompt was cut → tokens cut.
        tokenised: pairs rendered for this data set; 0 if all came from the store of an earlier run or `srpo check`.
        content: sha256 of the pairs as read, in order.
        prompts: hashes of the prompts, to find prompts that training and evaluation share.
        pictures: index of a tree → its pictures, for trees that have some.
        processor: makes the tensors of a tree's pictures when the tree is read.
    """

    trees: TreeStore
    where: list[str]
    rejects: list[Reject]
    cut: dict[str, int]
    tokenised: int
    content: str
    prompts: set[bytes] = field(default_factory=set)
    pictures: dict[int, tuple[Picture, ...]] = field(default_factory=dict)
    processor: PictureProcessor = field(default_factory=lambda: PictureProcessor(None))

    @classmethod
    def build(
        cls,
        source: AnySource,
        renderer: Renderer,
        *,
        max_length: int | None,
        bad_rows: str = "error",
        drafts_only: bool = False,
        truncate: str = "none",
        num_proc: int | None = None,
        cache: str | Path | None = None,
    ) -> TreeDataset:
        """Reads preference pairs, tokenises them, and merges the six sequences of each pair into a tree.

        Args:
            source: path of a file, rows, or a `Source`.
            max_length: longest sequence allowed, tokens; None allows any.
            bad_rows: "error" stops at unusable or overlong rows, "skip" leaves them out and counts them. Rows without
                a preference are left out either way.
            drafts_only: True packs the two draft sequences alone, for an objective that reads no revisions.
            truncate: "none", or "prompt", which cuts the oldest part of a prompt that is too long.
            num_proc: processes to render in; None takes one per core and at most eight, if there are enough rows.
            cache: folder that stores the trees of a thousand pairs or more for the next run; None stores nothing.

        Raises:
            DataError: unusable rows, or no row left.
            LengthError: overlong rows; the first ten are named with their lengths.
            TemplateError: the chat template rejects rows.
        """
        reading = read(source, rejects=[] if bad_rows == "skip" else None)
        pairs, content = reading.pairs, _content(reading.pairs)
        suspicious = Suspicious(renderer)
        for each in pairs:
            suspicious.add(each)
        for sentence in suspicious.sentences():
            log.warning("srpo: %s: %s", Source.of(source).name, sentence)
        stored = StoredPairs(renderer, max_length=max_length, truncate=truncate, cache=cache)
        made = cls(TreeStore(), [], reading.rejects, {}, 0, content, suspicious.prompts, {}, renderer.pictures)
        bad: list[Reject] = []
        rendered = counted(stored.all(pairs, num_proc), "pairs tokenised", len(pairs))
        for read_pair, (where, pair, reject) in zip(pairs, rendered, strict=True):
            if reject:
                bad.append(reject)
                continue
            if drafts_only:
                drafts = PrefixTree.pack(tree_of(pair.ids, pair.marks).unpack()[:2])
                made.trees.add(drafts.ids, drafts.marks)
            else:
                made.trees.add(pair.ids, pair.marks)
            if pictures := pictures_of(read_pair.prompt):
                made.pictures[len(made.where)] = pictures
            made.where.append(where)
            if pair.cut:
                made.cut[where] = pair.cut
        made.tokenised = stored.tokenised
        _report_store(stored, len(pairs))
        stops = [each for each in bad if not isinstance(each, Undecided)]
        if (stops and bad_rows == "error") or len(bad) == len(pairs):
            raise _unfit(stops or bad, len(pairs), truncate)
        made.rejects = [*reading.rejects, *bad]
        if bad or (made.rejects and bad_rows == "skip"):
            left_out = len(made.rejects)
            log.warning("srpo: %d of %d rows left out: %s", left_out, len(made) + left_out, reasons(made.rejects))
        if made.cut:
            message = "srpo: the prompts of %d of %d pairs cut to fit %d tokens, by %d tokens at most"
            log.warning(message, len(made.cut), len(pairs), max_length, max(made.cut.values()))
        return made

    def digest(self) -> str:
        """Returns the sha256, in hex, of all trees and pictures in order, which identifies data of any source."""
        trees = self.trees.digest()
        keys = [(index, *map(bytes.hex, self.picture_keys(index))) for index in self.pictures]
        return hashlib.sha256(json.dumps([trees, keys]).encode()).hexdigest() if keys else trees

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> tuple[int, str, PrefixTree]:
        return index, self.where[index], self.tree(index)

    def tree(self, index: int) -> PrefixTree:
        """Returns the tree of the pair at `index`; opens its pictures, if any, and makes their tensors."""
        pictures = self.pictures.get(range(len(self))[index], ())
        made = tuple(each.made() for each in self.processor.inputs(pictures)) if pictures else ()
        return replace(self.trees[index], pictures=made) if made else self.trees[index]

    def picture_keys(self, index: int) -> list[bytes]:
        """Returns a digest of each picture of the pair at `index`, which identifies it; [] for a pair of text."""
        pictures = self.pictures.get(index, ())
        return self.processor.keys(pictures) if pictures else []

    def row_content(self, index: int) -> bytes:
        """Returns bytes that identify the token sequences and pictures of the pair at `index`."""
        return self.trees.content(index, self.picture_keys(index))

    def size(self, index: int) -> int:
        """Returns the number of packed tokens of the pair at `index`; shared prefixes count once."""
        return self.trees.size(index)

    @property
    def largest_id(self) -> int:
        """Largest token id in all trees."""
        return int(np.frombuffer(self.trees.ids, dtype=np.int32).max())

    @property
    def sharing(self) -> float:
        """Ratio, 1 or more, of tokens in separate sequences (six per pair) to packed tokens, over all pairs."""
        return self.trees.flat_tokens / self.trees.packed_tokens


def warn_of_shared_prompts(
    data: TreeDataset | None, evaluation: TreeDataset | dict[str, TreeDataset | None] | None
) -> None:
    """Logs a warning if prompts of the evaluation sets are also in the training data."""
    for name, each in (evaluation if isinstance(evaluation, dict) else {"evaluation": evaluation}).items():
        if data is not None and each is not None and (shared := len(data.prompts & each.prompts)):
            log.warning("srpo: %s: %d of %d prompts are trained on", name, shared, len(each.prompts))


def _report_store(stored: StoredPairs, pairs: int) -> None:
    path = stored.store.path
    if path and not stored.tokenised:
        log.info("srpo: %d pairs tokenised before, read from %s", pairs, path)
    if path and stored.store.failed:
        log.warning("srpo: tokenised pairs are not stored in %s: %s", path.parent, stored.store.failed)


def _content(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        rendered = (pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.chat_template_kwargs)
        digest.update(json.dumps(rendered, sort_keys=True).encode())
    return digest.hexdigest()


FOREST = "forest"  # key in a batch: its trees as tensors


def collate(
    rows: Sequence[tuple[int, str, PrefixTree]], *, planned: bool = True, multiple: int | None = None
) -> dict[str, Any]:
    """Makes a batch from B items of a `TreeDataset`: `row` [B] indices, `where` their places, and `trees`.

    `planned` True also adds `forest`, the trees as tensors, so that a worker of the loader makes them and not the
    process that trains. It is padded to multiples of `multiple`, if given (`Forest.plant`).
    """
    index, where, trees = zip(*rows, strict=True)
    forest = {FOREST: Forest.plant(trees, multiple=multiple)} if planned else {}
    return {"row": np.array(index), "where": list(where), "trees": list(trees), **forest}


def collator(args: SRPOConfig) -> Callable[..., dict[str, Any]]:
    """Returns `collate` with the padding and the back-end of a run's settings."""
    return partial(collate, planned=args.backend != "flat", multiple=args.pad_to_multiple_of)


def _unfit(bad: list[Reject], total: int, truncate: str) -> SRPOError:
    if all(isinstance(each, TooLong) for each in bad):
        cut = "" if truncate == "prompt" else "cut the oldest part of their prompts with truncate=prompt, "
        fix = (
            "shorten them, raise max_length as far as the model's context goes, "
            f"{cut}or leave them out with bad_rows=skip"
        )
        return LengthError(f"{len(bad)} of {total} rows are too long:\n{listed(bad)}\n", fix=fix)
    kind = TemplateError if any(isinstance(each, Refused) for each in bad) else DataError
    fix = "mend these rows, or go on without them with `--bad_rows skip`"
    return kind(f"{len(bad)} of {total} rows cannot be rendered:\n{listed(bad)}\n", fix=fix)
