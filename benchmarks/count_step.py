"""Counts of one training step: operators, bytes of elementwise passes, operations of matrix products, waits.

    python -m benchmarks.count_step                         the 1.2B shape, both lengths, every way
    python -m benchmarks.count_step --shapes 350,40 --ways srpo,dpo --layers 4

Nothing is measured: forward, backward and clipping run on tensors without values, as for a GPU with bfloat16 by
autocast over float32 weights, the reference scored live; a mode sees every operator below autograd and autocast. AdamW
adds 28 bytes a weight in one operator. Ways:

    srpo    SRPO's step, packed
    dpo     srpo's DPO step, packed
    rows    the plain DPO step: two padded rows a pair, logits of every position in float32, as stock trainers have it

Bytes are those of each operator's inputs and outputs, each read or written once; products, attention and views are left
out of elementwise bytes. `head_GB` are the elementwise bytes of the head: its logits, its weight's casts, and the sum
of its weight's gradient and that of the embedding, which share their weight. Attention is one fused kernel a layer.
Waits are counted in a training of a small model (`waits.py`); for `rows`, which is no trainer, they are null.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from benchmarks.card import SHAPE, VOCABULARY
from benchmarks.shapes import trees_of
from srpo.maths.objective import SixLogps, dpo_loss, srpo_loss
from srpo.model.packed.attention import serving
from srpo.model.packed.forest import Forest
from srpo.model.packed.layouts import packed_logps
from srpo.model.packed.spread import watched
from srpo.model.packed.tiles import Card, computing_for, one_cast
from srpo.sequences.tree import PrefixTree
from srpo.train.fake_step import ON_PAPER, fake_model

CARD = Card("cuda", 139 * 2**30)
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "head_product": 0}  # → place of the left matrix
WITHOUT_TRAFFIC = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
WRITES = {"zeros", "zeros_like", "new_zeros", "fill_", "zero_", "full", "full_like", "ones", "ones_like", "arange"}
GATHERS = {"embedding", "index", "index_select", "gather"}
EMBEDDING = "embedding_dense_backward"  # has the shape of the head's weight


class Counts(TorchDispatchMode):
    """A mode that adds up what each operator would move and compute.

    Args:
        words: size of the vocabulary, by which tensors of the head are recognised.

    Attributes:
        operators: number of operators that launch a kernel.
        bytes: elementwise bytes by operator.
        head: elementwise bytes of operators on logits or on the head's weight.
        flops: operations of matrix products.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self._words = words
        self.operators = 0
        self.bytes: Counter[str] = Counter()
        self.head: Counter[str] = Counter()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        ins, outs = (_tensors(each) for each in ((args, kwargs), out))
        if not outs and name.startswith("_foreach"):
            outs = _tensors(args[0])  # written in place
        if not outs or _is_view(func) or name in WITHOUT_TRAFFIC:
            return out
        self.operators += 1
        if name in PRODUCTS:
            left, right = args[PRODUCTS[name] : PRODUCTS[name] + 2]
            self.flops += 2 * left.numel() * right.shape[-1]
        elif "scaled_dot_product" not in name:
            self._add(name, ins, outs)
        return out

    def _add(self, name: str, ins: list[Tensor], outs: list[Tensor]) -> None:
        written = sum(map(_size, outs))
        read = 0 if name in WRITES else written if name in GATHERS else sum(map(_size, ins))
        self.bytes[name] += read + written
        wide = any(self._words in t.shape and t.numel() > 16 * self._words for t in (*ins, *outs))
        if wide and name not in {*GATHERS, EMBEDDING} and not name.startswith("_foreach"):
            self.head[name] += read + written


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_view(func: Any) -> bool:
    """Whether the operator's results are views of its inputs that it does not write to."""
    returned = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


# ---------------------------------------------------------------------- steps on tensors without values


def counted(way: str, trees: Sequence[PrefixTree], config: LlamaConfig) -> Counts:
    """Counts one step of a way on pairs, with the model of a configuration."""
    policy, reference = (fake_model(config, torch.float32) for _ in range(2))
    reference.eval().requires_grad_(False)
    counts = Counts(config.vocab_size)
    with computing_for(CARD), one_cast(), serving(policy, ON_PAPER), serving(reference, ON_PAPER), counts:
        with torch.autocast("cpu", torch.bfloat16):
            loss = _LOSSES[way](policy, reference, trees)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, foreach=True)
    weights = sum(p.numel() for p in policy.parameters())
    counts.operators += 1
    counts.bytes["_fused_adamw_"] += 28 * weights  # reads weight, gradient and two moments, writes all but the gradient
    return counts


def _packed(objective: Callable[..., Any], kept: int) -> Callable[..., Tensor]:
    """The loss of an objective on the first `kept` sequences of each pair, as the trainer computes it."""

    def loss(policy: nn.Module, reference: nn.Module, trees: Sequence[PrefixTree]) -> Tensor:
        forest = Forest.plant([PrefixTree.pack(tree.unpack()[:kept]) for tree in trees])
        with watched() as ours:
            policy_BK = packed_logps(policy, forest, backend=ON_PAPER)
        with torch.no_grad(), watched() as theirs:
            reference_BK = packed_logps(reference, forest, backend=ON_PAPER)
        ours.divergence(theirs, (len(trees), kept))
        six = [SixLogps(*(list(each.unbind(1)) * 3)[:6]) for each in (policy_BK, reference_BK)]
        result: Tensor = objective(*six, beta=0.1, alpha=0.5).loss.float()
        return result

    return loss


def _rows(policy: nn.Module, reference: nn.Module, trees: Sequence[PrefixTree]) -> Tensor:
    """DPO's loss from two rows a pair, padded to the longest, by logits of all positions."""
    rows = [sequence for tree in trees for sequence in tree.unpack()[:2]]
    length = max(len(context) + len(answer) for context, answer in rows)
    ids_NL, scored_NL = torch.zeros(2, len(rows), length, dtype=torch.long)
    for n, (context, answer) in enumerate(rows):
        ids_NL[n, : len(context) + len(answer)] = torch.tensor([*context, *answer])
        scored_NL[n, len(context) : len(context) + len(answer)] = 1

    def logps(model: Any) -> Tensor:
        logits_NLV = model(input_ids=ids_NL, use_cache=False).logits[:, :-1]
        logps_NL = F.log_softmax(logits_NLV.float(), -1).gather(2, ids_NL[:, 1:, None])[..., 0]
        return (logps_NL * scored_NL[:, 1:]).sum(1).view(-1, 2)

    policy_BK = logps(policy)
    with torch.no_grad():
        reference_BK = logps(reference)
    six = [SixLogps(*(list(each.unbind(1)) * 3)) for each in (policy_BK, reference_BK)]
    return dpo_loss(*six, beta=0.1).loss


_LOSSES = {"srpo": _packed(srpo_loss, 6), "dpo": _packed(dpo_loss, 2), "rows": _rows}


def waits_of(objective: str) -> int:
    """Waits of a step of SRPO's trainer, the second of a run of a tiny model."""
    from benchmarks.waits import steps_on_the_stand_in
    from srpo.tasks.carry import BaseConfig, carry_tokenizer, untrained_base
    from srpo.train.config import SRPOConfig
    from srpo.train.trainer import SRPOTrainer

    quiet: dict[str, Any] = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        args = SRPOConfig(
            output_dir=folder, max_steps=2, optim="adamw_torch", logging_steps=9, objective=objective, **quiet
        )
        rows = [{"prompt": f"{n}+2=", "chosen": f"{n + 2}3", "rejected": "13"} for n in range(16)]
        base = untrained_base(BaseConfig(hidden=24))
        trainer = SRPOTrainer(base, args=args, train_dataset=rows, processing_class=carry_tokenizer())
        return steps_on_the_stand_in(trainer)[1][0].total()


# ---------------------------------------------------------------------- the command


def main() -> None:
    """Prints a line of JSON for each shape, template and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="350,40 1024,128", help="prompt,answer in tokens; several by spaces")
    parser.add_argument("--templates", default="turn,quote")
    parser.add_argument("--ways", default=",".join(_LOSSES))
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--top", type=int, default=0, help="also print so many operators with the most bytes")
    args = parser.parse_args()
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": args.layers}, vocab_size=VOCABULARY, tie_word_embeddings=True)
    waits = {way: waits_of(way) for way in args.ways.split(",") if way != "rows"}
    for shape in args.shapes.split():
        x, y = map(int, shape.split(","))
        for template in args.templates.split(","):
            instruction = 16 if x < 1000 and y < 200 else 32
            trees = trees_of([(x, y, y)] * args.batch, template, instruction=instruction, vocabulary=VOCABULARY)
            for way in args.ways.split(","):
                row = {"shape": shape, "template": template, "way": way}
                row |= row_of(counted(way, trees, config), args.top) | {"waits": waits.get(way)}
                print(json.dumps(row), flush=True)


def row_of(counts: Counts, top: int = 0) -> dict[str, Any]:
    """The counts in words; `top` operators with the most bytes are listed."""
    row: dict[str, Any] = {
        "operators": counts.operators,
        "elementwise_GB": round(counts.bytes.total() / 1e9, 2),
        "head_GB": round(counts.head.total() / 1e9, 2),
        "products_TFLOP": round(counts.flops / 1e12, 2),
    }
    if top:
        row["most"] = {name: round(size / 1e9, 2) for name, size in counts.bytes.most_common(top)}
        row["head"] = {name: round(size / 1e9, 2) for name, size in counts.head.most_common(top)}
    return row


if __name__ == "__main__":
    main()
