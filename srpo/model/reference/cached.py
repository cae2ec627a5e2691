"""π_ref's log-probs computed once, ever: a reference that keeps them on disk.

A row is found by all that its numbers come from: the reference's weights and configuration, the kind of number and
device, the back-end, the layout, the libraries, and the token ids with what of them is scored. Nothing else is in the
key, so that β, α, the learning rate, the order of rows and which of them are used change nothing; and everything that
does change numbers makes a row that is not there, which is then computed. No entry can be stale.

If one row of a micro-batch is missing, all of it is scored live: a log-ratio would otherwise be the difference of two
batches' rounding for some rows and not for others.

Until training begins the policy is its own reference. What is scored until then needs no copy of it, and if that is
everything, none is ever made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srpo.errors import ConfigError
from srpo.maths.objective import SixLogps
from srpo.model.packed.backends import TOLERANCE
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.packed.layouts import LAYOUT_VERSION
from srpo.model.reference.logp_store import DIGEST, LogpStore
from srpo.model.reference.reference import Reference, kind_of, reference_fingerprint
from srpo.sequences.tree import PrefixTree

LIBRARIES = ("torch", "transformers", "peft")  # whose next version may round otherwise
log = logging.getLogger("srpo")


class CachedReference:
    """A `Reference` that looks log-probs up before it computes them.

    Args:
        policy: the model to be trained, as it is now.
        folder: where log-probs are kept; one folder serves any number of models and data sets.
        frozen: a model to use instead of the policy as it is.
        device: where it will be scored, by what numbers depend on.
        precision: what the forward computes in, where it is not what the weights are in: "bf16", "fp16" or "no".

    Attributes:
        kind, fingerprint: as of a `Reference`.
        found, scored: rows looked up and rows computed.
        unkept: why rows could not be written; empty while they could.

    Raises:
        ConfigError: as for a `Reference`, or weights that are spread over devices.
    """

    def __init__(self, policy: Any, folder: Path, frozen: Any = None, *, device: str, precision: str = "no") -> None:
        self.kind = kind_of(policy, frozen)
        self.folder, self.found, self.scored, self.unkept = folder, 0, 0, ""
        self._policy: Any = policy
        self._begun = False
        self._wrap: Callable[[Any], Any] = lambda model: model
        self.fingerprint = reference_fingerprint(self.kind, policy if frozen is None else frozen)
        self._about = {
            "reference": self.fingerprint,
            "device": device,
            "precision": precision,
            "matmul": torch.get_float32_matmul_precision(),
            "layout": LAYOUT_VERSION,
            "byteorder": sys.byteorder,
            **{library: version(library) for library in LIBRARIES},
        }
        self._stores: dict[tuple[str, int], LogpStore] = {}
        # The hash comes first: a frozen adapter puts weights of its own into the policy.
        self._live = None if self.kind == "frozen copy" else Reference(policy, frozen)
        self._allowed = TOLERANCE[{"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, _dtype(policy))]

    def six_logps(self, trees: Sequence[PrefixTree] | Forest, backend: str) -> SixLogps:
        """The reference's log-probs of these answers, float64, nats, no graph; computed only if some are not kept.

        Args:
            backend: one by its own name; what "auto" comes to has to be settled before.

        Raises:
            ConfigError: some are not kept, and the weights they would have to be computed with are gone.
        """
        planted = trees.trees if isinstance(trees, Forest) else trees
        store, digests = self._store(backend, planted[0]), [self._digest(tree.content) for tree in planted]
        if not all(digest in store for digest in digests):
            store.refresh()
        rows = [store.get(digest) for digest in digests]
        if None not in rows:
            self.found += len(rows)
            return _six(torch.tensor(rows, dtype=torch.float64, device=next(self._policy.parameters()).device))
        six = self._score(trees, backend)
        self.scored += len(planted)
        logps_BK = torch.stack(list(six)[: store.width], 1)
        if torch.isfinite(logps_BK).all():  # what is not stops the run, and should not stop the next one
            self._keep(store, digests, logps_BK.tolist())
        return six

    def missing(self, contents: Sequence[bytes], first: PrefixTree, backend: str) -> list[int]:
        """Indices of the rows, given by the content of their trees, that would have to be computed."""
        store = self._store(backend, first)
        store.refresh()
        return [i for i, content in enumerate(contents) if self._digest(content) not in store]

    def begin(self, *, complete: bool) -> None:
        """Training begins, and the policy stops being its own reference.

        Args:
            complete: every row there is has been scored; no copy of the policy is made then.
        """
        self._begun = True
        if self._live is None and not complete:
            self._live = Reference(self._policy)
            self._live.prepare(self._wrap)

    def prepare(self, wrap: Callable[[Any], Any]) -> None:
        """As of a `Reference`; a copy that is made later is placed as well."""
        self._wrap = wrap
        if self._live is not None:
            self._live.prepare(wrap)

    @property
    def model(self) -> Any:
        """The model that is scored where rows are missing; None if there is none and none is needed."""
        return self._live.model if self._live else None

    def state_dict(self) -> dict[str, Tensor]:
        """As of a `Reference` that stays where it is."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As of a `Reference` that stays where it is."""

    def recheck(self, trees: Sequence[PrefixTree], backend: str) -> bool:
        """Scores kept rows again; where one differs, sets all that is kept aside, saying so.

        Returns:
            Whether what is kept is right, as far as these rows tell.
        """
        for tree in trees:
            store = self._store(backend, tree)
            kept = store.get(self._digest(tree.content))
            if kept is None:
                continue
            now = torch.stack(list(self._score([tree], backend)))[: store.width, 0].cpu()
            off = (now - torch.tensor(kept, dtype=torch.float64)).abs().max().item()
            allowed = self._allowed * max(len(answer) for _, answer in tree.unpack()) ** 0.5
            if not off <= allowed:
                self._set_aside(store, off, allowed)
                return False
        return True

    def _set_aside(self, store: LogpStore, off: float, allowed: float) -> None:
        store.close()
        aside = store.folder.with_name(f"{store.folder.name}.wrong-{uuid.uuid4().hex[:8]}")
        os.replace(store.folder, aside)
        self._stores.clear()
        log.warning(
            "srpo: reference log-probs kept in %s are not what this reference gives now: a row is off by %.2g nats "
            "(allowed %.1g). None of them is used; they now stand in %s, and all rows are scored again. Something that "
            "is neither weight nor configuration has changed the model, or the files were changed.",
            *(store.folder, off, allowed, aside.name),
        )

    @torch.no_grad()
    def _score(self, trees: Sequence[PrefixTree] | Forest, backend: str) -> SixLogps:
        if self._live is not None:
            return self._live.six_logps(trees, backend)
        if self._begun:
            what = "new rows, and no copy of the reference to score them: all rows that were known were kept"
            raise ConfigError(what, where="reference_cache", fix="name these rows as eval_dataset from the start")
        training = [(module, module.training) for module in self._policy.modules()]
        try:
            return six_logps(self._policy.eval(), trees, backend)
        finally:
            for module, mode in training:
                module.training = mode

    def _keep(self, store: LogpStore, digests: list[bytes], rows: list[list[float]]) -> None:
        """Keeping saves time: a full disk or a folder that is read-only is no reason to stop."""
        try:
            store.add(digests, rows)
        except OSError as error:
            self.unkept = str(error.strerror)
            log.warning("srpo: reference log-probs are not kept in %s: %s", store.folder, self.unkept)

    def _store(self, backend: str, tree: PrefixTree) -> LogpStore:
        width = len(tree.answers)
        if (backend, width) not in self._stores:
            about = {**self._about, "backend": backend, "sequences": width}
            identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()
            folder = self.folder / identity.hex()[:16]
            self._stores[backend, width] = LogpStore(folder, identity, width, json.dumps(about, indent=2) + "\n")
        return self._stores[backend, width]

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=DIGEST).digest()


def _dtype(model: Any) -> torch.dtype:
    """The coarsest kind of number that may decide a log-prob."""
    kinds = {p.dtype for p in model.parameters() if p.dtype in TOLERANCE}
    return max(kinds, key=lambda kind: TOLERANCE[kind], default=torch.float32)


def _six(logps_BK: Tensor) -> SixLogps:
    columns = list(logps_BK.unbind(1))
    return SixLogps(*columns, *[torch.full_like(columns[0], float("nan"))] * (6 - len(columns)))
