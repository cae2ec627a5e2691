"""A reference model whose log-probs are stored on disk, so that each row is computed once.

A row's key holds everything that its log-probs depend on: the reference's weights and configuration, dtype and device,
back-end, layout, library versions, token ids and the spans that are scored. Nothing else is in the key: β, α, the
learning rate and the choice and order of rows change nothing. So no entry can be stale.

If one row of a micro-batch is missing, the whole micro-batch is scored live. Otherwise the log-ratios of some rows
would mix the rounding of two batches.

Until training begins the policy is its own reference. Rows scored before then need no copy of the policy; if they are
all the rows, no copy is made.
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

import torch
from torch import Tensor, nn

from srpo.errors import ConfigError
from srpo.maths.objective import SixLogps
from srpo.model.packed.backends import TOLERANCE
from srpo.model.packed.forest import Forest
from srpo.model.packed.forward import six_logps
from srpo.model.packed.layouts import LAYOUT_VERSION
from srpo.model.packed.sums import device_of_sums
from srpo.model.reference.logp_store import DIGEST, LogpStore
from srpo.model.reference.reference import Reference, kind_of, reference_fingerprint
from srpo.model.transfer import to_device
from srpo.model.unwrap import device_of
from srpo.sequences.tree import PrefixTree

LIBRARIES = ("torch", "transformers", "peft")  # other versions of these libraries may round differently
log = logging.getLogger("srpo")


class CachedReference:
    """A reference model that looks log-probs up on disk before it computes them; replaces `Reference`.

    Args:
        policy: the model to be trained, before its first step; the reference is computed from its weights as they are.
        folder: folder of the stored log-probs; any number of models and data sets can share it.
        frozen: the caller's own reference model, used instead of the policy.
        device: name of the device that the reference is scored on; part of the key.
        precision: autocast dtype of the forward: "bf16", "fp16", or "no" for the dtype of the weights.

    Attributes:
        kind: kind of the reference, such as "frozen copy" or "adapter off".
        fingerprint: sha256 of the reference's weights and configuration.
        found, scored: numbers of rows read from the disk and of rows computed.
        unkept: reason why rows cannot be written to disk; "" if they can.

    Raises:
        ConfigError: the policy is its own reference or trains weights outside its adapter, or weights are sharded.
    """

    def __init__(
        self,
        policy: nn.Module,
        folder: Path,
        frozen: nn.Module | None = None,
        *,
        device: str,
        precision: str = "no",
        multiple: int | None = None,
    ) -> None:
        self.kind = kind_of(policy, frozen)
        self.folder, self.found, self.scored, self.unkept = folder, 0, 0, ""
        self._policy, self._multiple = policy, multiple
        self._begun = False
        self._wrap: Callable[[nn.Module], nn.Module] = lambda model: model
        self.fingerprint = reference_fingerprint(self.kind, policy if frozen is None else frozen)
        self._about = {
            "reference": self.fingerprint,
            "device": device,
            "precision": precision,
            "matmul": torch.get_float32_matmul_precision(),
            "layout": LAYOUT_VERSION,
            "byteorder": sys.byteorder,
            **({"padded_to": multiple} if multiple else {}),
            **{library: version(library) for library in LIBRARIES},
        }
        self._stores: dict[tuple[str, int], LogpStore] = {}
        # After the fingerprint: the copy of a frozen adapter adds weights to the policy.
        self._live = None if self.kind == "frozen copy" else Reference(policy, frozen)
        self._allowed = TOLERANCE[{"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, _dtype(policy))]

    def six_logps(self, trees: Sequence[PrefixTree] | Forest, backend: str) -> SixLogps:
        """Returns the log-probs of the six answers of each pair under the reference: [B] each, float64, nats.

        If one tree's row is not stored, all rows of the call are computed, and then stored.

        Args:
            backend: name of a back-end, such as "path"; not "auto", since each has stored log-probs of its own.

        Raises:
            ConfigError: a row is not stored, and the reference's weights are gone.
        """
        planted = trees.trees if isinstance(trees, Forest) else trees
        store, digests = self._store(backend, planted[0]), [self._digest(tree.content) for tree in planted]
        if not all(digest in store for digest in digests):
            store.refresh()
        rows = [store.get(digest) for digest in digests]
        if None not in rows:
            self.found += len(rows)
            stored_BK = torch.tensor(rows, dtype=torch.float64)
            return _six(to_device(stored_BK, device_of_sums(device_of(self._policy))))
        six = self._score(trees, backend)
        self.scored += len(planted)
        logps_BK = torch.stack(list(six)[: store.width], 1)
        if torch.isfinite(logps_BK).all():  # a nan stops this run and must not stop the next one
            self._keep(store, digests, logps_BK.tolist())
        return six

    def missing(self, contents: Sequence[bytes], first: PrefixTree, backend: str) -> list[int]:
        """Returns the indices of the rows whose log-probs are not stored.

        Args:
            contents: each row's `PrefixTree.content`.
            first: a tree of any row, for its number of sequences.
            backend: name of a back-end.
        """
        store = self._store(backend, first)
        store.refresh()
        return [i for i, content in enumerate(contents) if self._digest(content) not in store]

    def begin(self, *, complete: bool) -> None:
        """Marks the start of training; the trainer calls it before the first step, which changes the policy.

        If the policy has been its own reference, a frozen copy of it is made here.

        Args:
            complete: True if the log-probs of all rows are stored, so that no copy is needed and none is made.
        """
        self._begun = True
        if self._live is None and not complete:
            self._live = Reference(self._policy)
            self._live.prepare(self._wrap)

    def prepare(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Applies `wrap`, by which a trainer places a model on devices, to the reference's model, also to a later copy.

        A reference that shares its weights with the policy is not wrapped.
        """
        self._wrap = wrap
        if self._live is not None:
            self._live.prepare(wrap)

    @property
    def model(self) -> nn.Module | None:
        """The model that computes rows that are not stored.

        None before training begins if the policy itself computes them, and later if all rows were stored by then.
        """
        return self._live.model if self._live else None

    def state_dict(self) -> dict[str, Tensor]:
        """Returns no tensors: the weights of a cached reference never change, so checkpoints need not hold them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: the weights of a cached reference never change, so checkpoints do not hold them."""

    def recheck(self, trees: Sequence[PrefixTree], backend: str) -> bool:
        """Computes stored log-probs of some pairs again, to find out whether the stored files are of another model.

        At the first pair that differs by more than rounding, the folder of these files is renamed, with a warning, so
        that they are not used.

        Args:
            backend: way of scoring, such as "path"; each has its own stored log-probs.

        Returns:
            True if all stored rows of these trees agree.
        """
        for tree in trees:
            store = self._store(backend, tree)
            stored = store.get(self._digest(tree.content))
            if stored is None:
                continue
            now = torch.stack(list(self._score([tree], backend)))[: store.width, 0].cpu()
            off = (now - torch.tensor(stored, dtype=torch.float64)).abs().max().item()
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
            "srpo: reference log-probs stored in %s differ from those of this reference: a row is off by %.2g nats "
            "(allowed %.1g). The folder is renamed to %s, and all rows are scored again. Either its files were "
            "changed, or something other than weights and configuration has changed the model.",
            *(store.folder, off, allowed, aside.name),
        )

    @torch.no_grad()
    def _score(self, trees: Sequence[PrefixTree] | Forest, backend: str) -> SixLogps:
        if not isinstance(trees, Forest):
            trees = Forest.plant(trees, device_of(self._policy), self._multiple)
        if self._live is not None:
            return self._live.six_logps(trees, backend)
        if self._begun:
            problem = "new rows, and no copy of the reference to score them: all rows known at the start were stored"
            raise ConfigError(problem, where="reference_cache", fix="name these rows as eval_dataset from the start")
        training = [(module, module.training) for module in self._policy.modules()]
        try:
            return six_logps(self._policy.eval(), trees, backend)
        finally:
            for module, mode in training:
                module.training = mode

    def _keep(self, store: LogpStore, digests: list[bytes], rows: list[list[float]]) -> None:
        """Writes rows of log-probs to the disk; a write error is only a warning, since a run needs no stored rows."""
        try:
            store.add(digests, rows)
        except OSError as error:
            self.unkept = str(error.strerror)
            log.warning("srpo: reference log-probs cannot be stored in %s: %s", store.folder, self.unkept)

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


def _dtype(model: nn.Module) -> torch.dtype:
    """Returns the dtype of a model's weights; of several, the one that rounds most."""
    kinds = {p.dtype for p in model.parameters() if p.dtype in TOLERANCE}
    return max(kinds, key=lambda kind: TOLERANCE[kind], default=torch.float32)


def _six(logps_BK: Tensor) -> SixLogps:
    columns = list(logps_BK.unbind(1))
    return SixLogps(*columns, *[torch.full_like(columns[0], float("nan"))] * (6 - len(columns)))
