"""Model + trees → log-probs: the one door from hidden states to numbers.

Every answer token is scored at its parent node, so the language-model head runs on parents of answer tokens only, and
logits over all positions never exist. Two back-ends give the same numbers: "path" computes each shared prefix once
(attention.py), "flat" computes each sequence in a row of its own and is always right.

Axes: B pairs, K sequences of a tree (six for SRPO), S packed tokens, P scored parents, T answer tokens, V vocabulary,
N flat rows, L row length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from srpo.errors import BackendError, DataError
from srpo.maths.objective import SixLogps
from srpo.model.attention import core, following_paths, why_not_path
from srpo.model.forest import Forest
from srpo.pairs.tree import PrefixTree

BACKENDS = ("auto", "path", "flat")
LAYOUT = (
    1  # of the numbers: goes up whenever a back-end may round otherwise than before, so that kept ones are not read
)
log = logging.getLogger("srpo")

# What two exact layouts of one sequence may differ by, in nats per square root of answer token. Rounding grows like a
# random walk; a single wrong mask bit costs whole nats.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
CHECKED_TREES = 4


def six_logps(model: nn.Module, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> SixLogps:
    """Log-probs of the six answers of each pair; differentiable.

    Args:
        model: a causal language model; a PEFT model is scored with whatever adapter is active.
        trees: one per pair, packed from six sequences, or from the first two, which leaves the other fields nan; or
            a forest planted from them, to be scored more than once.
        backend: "path", "flat", or "auto": path where the model can serve it, flat otherwise, saying so once. The
            first call for a model compares the two on its longest trees.

    Returns:
        Six [B] tensors, float64, nats, summed over answer tokens.

    Raises:
        BackendError: the named back-end cannot serve this model exactly.
        DataError: an answer has no token, or nothing stands before its first.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                    num_attention_heads=2)
        >>> tree = PrefixTree.pack([([1], [2]), ([1], [3]), *[([1, 2, 9], [2]), ([1, 2, 9], [3])] * 2])
        >>> six_logps(LlamaForCausalLM(tiny), [tree]).w.shape
        torch.Size([1])
    """
    logps_BK = sequence_logps(model, trees, backend)
    columns = list(logps_BK.unbind(1))
    missing = [torch.full_like(columns[0], float("nan"))] * (6 - len(columns))
    return SixLogps(*columns, *missing)


def sequence_logps(model: nn.Module, trees: Sequence[PrefixTree] | Forest, backend: str = "auto") -> Tensor:
    """[B, K] summed log-probs of the K answers of each tree, float64, nats; `six_logps` without the names."""
    forest = trees if isinstance(trees, Forest) else Forest.plant(trees, next(model.parameters()).device)
    return _BACKENDS[settle_backend(model, forest.trees, backend)](model, forest)


# ---------------------------------------------------------------------- choosing a back-end

_settled: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def settle_backend(model: nn.Module, trees: Sequence[PrefixTree], backend: str = "auto") -> str:
    """The back-end that serves this model: settled by comparing numbers the first time a model is seen.

    Raises:
        BackendError: a back-end asked for by name cannot serve the model exactly, or there is none of that name.
    """
    if backend not in BACKENDS:
        raise BackendError(f"no back-end {backend!r}", where="backend", expected="one of " + ", ".join(BACKENDS))
    _refuse_virtual_tokens(model)
    known = _settled.setdefault(model, {})
    if backend not in known:
        known[backend] = "flat" if backend == "flat" else _path_or_flat(model, trees, named=backend == "path")
        known[known[backend]] = known[backend]  # what auto settled on needs no second check under its own name
    return known[backend]


def _refuse_virtual_tokens(model: nn.Module) -> None:
    """Prompt tuning puts tokens of its own before the input, and every answer would be scored that far too early."""
    config = getattr(getattr(model, "module", model), "active_peft_config", None)
    if config is not None and config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
        raise BackendError(f"no back-end scores a model under {config.peft_type.value}", where="model", fix="use LoRA")


def _path_or_flat(model: nn.Module, trees: Sequence[PrefixTree], *, named: bool) -> str:
    try:
        if why := why_not_path(model):
            raise BackendError(why)
        off, allowed = self_check(model, trees)
        if not off <= allowed:
            raise BackendError(f"its packed log-probs differ from flat ones by {off:.2g} nats (allowed {allowed:.1g})")
    except BackendError as problem:
        if named:
            fix = "use --backend flat, or auto to fall back by itself"
            raise BackendError(f"path attention cannot serve this model: {problem.what}", fix=fix) from None
        log.warning("srpo: backend flat: path attention cannot serve this model: %s", problem.what)
        return "flat"
    log.info("srpo: backend path: packed log-probs within %.1g nats of flat ones on the first batch", off)
    return "path"


@torch.no_grad()
def self_check(model: nn.Module, trees: Sequence[PrefixTree]) -> tuple[float, float]:
    """Largest difference between packed and flat log-probs on the longest trees, and what is allowed, in nats."""
    longest = Forest.plant(sorted(trees, key=len)[-CHECKED_TREES:], next(model.parameters()).device)
    training = {module: module.training for module in model.modules()}
    model.eval()  # dropout would draw differently in the two layouts
    dtypes: list[torch.dtype] = []  # what the head really computes in; under autocast not what its weights are
    watch = core(model).get_output_embeddings().register_forward_hook(lambda _m, _i, out: dtypes.append(out.dtype))
    try:
        packed_BK, flat_BK = _packed_logps(model, longest), _flat_logps(model, longest)
    finally:
        watch.remove()
        for module, mode in training.items():
            module.training = mode
    tokens = max(len(answer) for tree in longest.trees for _, answer in tree.unpack())
    return (packed_BK - flat_BK).abs().max().item(), TOLERANCE[dtypes[0]] * tokens**0.5


@contextmanager
def serving(model: nn.Module, backend: str) -> Iterator[None]:
    """Holds the model's attention in place over a forward *and* its backward, as activation checkpointing needs."""
    if backend == "path":
        with following_paths(model):
            _held.add(id(model))
            try:
                yield
            finally:
                _held.discard(id(model))
    else:
        yield


_held: set[int] = set()

# ---------------------------------------------------------------------- packed


def _packed_logps(model: nn.Module, forest: Forest) -> Tensor:
    _refuse_unheld_checkpointing(model)
    with nullcontext() if id(model) in _held else following_paths(model):
        logits_PV = model(
            input_ids=forest.ids_1S,
            position_ids=forest.positions_1S,
            use_cache=False,
            logits_to_keep=forest.parents_P,
            srpo_forest=forest,
        ).logits.squeeze(0)
    logits_PV = logits_PV.float() if logits_PV.dtype != torch.float64 else logits_PV
    norm_P = logits_PV.logsumexp(-1)
    logp_T = logits_PV[forest.row_T, forest.token_T].double() - norm_P[forest.row_T].double()
    pairs, sequences = len(forest.trees), len(forest.trees[0].answers)
    return logp_T.new_zeros(pairs * sequences).index_add(0, forest.owner_T, logp_T).view(pairs, sequences)


def _refuse_unheld_checkpointing(model: nn.Module) -> None:
    """Layers recomputed after the forward would attend in a plain row, silently wrong: refuse instead."""
    checkpointing = any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules())
    if checkpointing and torch.is_grad_enabled() and id(model) not in _held:
        fix = "wrap forward and backward in `with srpo.model.forward.serving(model, 'path')`, as SRPOTrainer does"
        raise BackendError(
            "activation checkpointing recomputes layers after path attention has been taken down", fix=fix
        )


# ---------------------------------------------------------------------- flat


def _flat_logps(model: nn.Module, forest: Forest) -> Tensor:
    """Each sequence in a row of its own, padded on the right; drafts and revisions in a batch each, to pad little."""
    sequences = [tree.unpack() for tree in forest.trees]
    logps_KB: list[Tensor | None] = [None] * len(sequences[0])
    drafts, revisions = (0, 1), tuple(range(2, len(sequences[0])))
    for columns in filter(None, (drafts, revisions) if len(sequences[0]) == 6 else (tuple(range(len(logps_KB))),)):
        rows = [pair[k] for k in columns for pair in sequences]
        for k, logps_B in zip(columns, _row_logps(model, rows).split(len(forest.trees)), strict=True):
            logps_KB[k] = logps_B
    return torch.stack([logps_B for logps_B in logps_KB if logps_B is not None], 1)


def _row_logps(model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """[N] summed log-probs of the answers of flat rows."""
    device = next(model.parameters()).device
    length = max(len(context) + len(answer) for context, answer in rows)
    ids_NL = torch.zeros(len(rows), length, dtype=torch.long)
    mask_NL = torch.zeros_like(ids_NL)
    scored_NL = torch.zeros_like(ids_NL, dtype=torch.bool)
    for n, (context, answer) in enumerate(rows):
        if not context or not answer:
            raise DataError("an answer without tokens, or with nothing before it")
        ids_NL[n, : len(context) + len(answer)] = torch.tensor([*context, *answer])
        mask_NL[n, : len(context) + len(answer)] = 1
        scored_NL[n, len(context) - 1 : len(context) + len(answer) - 1] = True  # the token before each answer token
    first = int(scored_NL.any(0).nonzero()[0])
    kept_P = torch.arange(first, length - 1, device=device)
    inputs = {"input_ids": ids_NL.to(device), "attention_mask": mask_NL.to(device)}
    logits_NPV = model(**inputs, use_cache=False, logits_to_keep=kept_P).logits
    if logits_NPV.shape[1] != len(kept_P):
        raise BackendError("the model does not heed logits_to_keep", where=type(core(model)).__name__)
    logits_NPV = logits_NPV.float() if logits_NPV.dtype != torch.float64 else logits_NPV
    target_NP1 = ids_NL[:, first + 1 :, None].to(device)
    logp_NP = logits_NPV.gather(-1, target_NP1)[..., 0].double() - logits_NPV.logsumexp(-1).double()
    return logp_NP.masked_fill(~scored_NL[:, first:-1].to(device), 0.0).sum(1)


_BACKENDS: dict[str, Callable[[Any, Forest], Tensor]] = {"path": _packed_logps, "flat": _flat_logps}
