"""Predicts memory and speed of a training from a model's configuration and the lengths of its pairs.

Per card, with N cards, W bytes of weights, T trained weights and R bytes of the reference's weights:

    kept      W + R + 8 T              float32 moments of AdamW; FSDP 2 divides every term by N
    gathered  two layers and the root  FSDP 2 alone: weights that a card borrows, in the dtype of the products
    gradients 4 T for DDP's buckets, and 4 T between the batches of an accumulated step, which FSDP 2 does not divide
    step      measured on fake tensors by `fake_step.peak_of_step`: activations, gradients, head, temporary tensors

Not counted: the context of CUDA, its libraries' workspaces and the fragmentation of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from srpo.errors import ConfigError
from srpo.model.packed.forest import Forest
from srpo.model.packed.tiles import Card
from srpo.model.unwrap import core
from srpo.sequences.tree import PrefixTree
from srpo.train.fake_step import Step, fake_model, peak_of_step

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

LAUNCHES = ("one", "single", "ddp", "fsdp2")
SHAPES = ("turn", "quote", "apart")
MOMENTS = 8  # bytes of AdamW per trained weight
SCALES = {True: 1 / 64 + 4 / 64 / 256, False: 4 / 64}  # bytes of scales per 4-bit weight, with nested scales or not
USABLE = 0.9  # share of a card's memory that a plan fills


@dataclass(frozen=True)
class Setup:
    """Settings of the training for which memory and speed are predicted.

    Attributes:
        launch: "one" or "single" for one card; "ddp" or "fsdp2" for several.
        cards: number of cards (GPUs).
        bf16: True if matrices are multiplied in bfloat16.
        base: dtype of frozen weights under an adapter.
        bits: 4 for a base in 4 bits, 8 for one in 8 bits, 0 for neither.
        nested: True if the scales of the 4-bit base are quantised, too.
        backend: "path", "flex" or "flat".
        device: "cuda" or "cpu".
        memory: bytes of a card.
        precomputed: True if the reference's log-probs are cached, so that its weights need no memory.
        accumulated: batches of an optimiser step on each card.
    """

    launch: str = "one"
    cards: int = 1
    bf16: bool = True
    base: torch.dtype = torch.bfloat16
    bits: int = 0
    nested: bool = False
    backend: str = "flex"
    device: str = "cuda"
    memory: int = 80 * 2**30
    precomputed: bool = False
    accumulated: int = 1


class Kept(NamedTuple):
    """Bytes that each card holds through a whole training, by kind; `Planned.step` gives those of a step.

    Attributes:
        weights: the policy's weights.
        reference: the weights of a reference with weights of its own.
        moments: moments of AdamW.
        gathered: the weights of other cards that FSDP 2 gathers for the layers that compute.
        gradients: DDP's buckets, and gradients of earlier batches of an accumulated step.
    """

    weights: int
    reference: int
    moments: int
    gathered: int
    gradients: int

    @property
    def all(self) -> int:
        """Sum of the bytes that a card keeps during a whole training."""
        return sum(self)


class Cost(NamedTuple):
    """Work of one optimiser step with one batch on each card, from which speed is predicted.

    Attributes:
        tokens: packed tokens of the batches of all cards together.
        flops: floating-point operations of each card.
        wire: bytes that each card sends.
    """

    tokens: int
    flops: float
    wire: float


class Planned:
    """Predicts the memory and the work of training a model under given settings, without its weights.

    Args:
        config: configuration of the model.
        setup: settings of the training.
        peft_config: settings of the adapter; None trains all weights.

    Raises:
        ConfigError: a quantised base without an adapter, several cards without a launch, or a launch not in `LAUNCHES`.

    Example:
        >>> from transformers import LlamaConfig
        >>> tiny = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        >>> plan = Planned(tiny, Setup(device="cpu", backend="path", bf16=False))
        >>> trees = made_pairs(20, 5, 4, "turn", count=2, vocabulary=64)
        >>> plan.kept.weights == 4 * plan.trained and plan.step(trees) > 0
        True
    """

    def __init__(self, config: PretrainedConfig, setup: Setup, peft_config: PeftConfig | None = None) -> None:
        if setup.bits and peft_config is None:
            where = f"load_in_{setup.bits}bit"
            raise ConfigError("quantised weights cannot be trained", where=where, fix="add `--use_peft`")
        if setup.launch not in LAUNCHES:
            what = "DeepSpeed's ZeRO cannot be planned" if setup.launch in ("zero2", "zero3") else "unknown launch"
            fix = "plan with one of " + ", ".join(LAUNCHES)
            raise ConfigError(f"{setup.launch!r}: {what}", where="launch", fix=fix)
        if (setup.cards > 1) is (setup.launch in ("one", "single")):
            fix = "launch ddp or fsdp2 for several cards, one for one"
            raise ConfigError(f"{setup.launch!r} with {setup.cards} cards", where="launch", fix=fix)
        self.setup, self.adapter = setup, peft_config is not None
        # FSDP gathers weights in the dtype of the products, where autocast would keep a second copy of each.
        self._gathers = setup.launch == "fsdp2"
        computed = torch.bfloat16 if setup.bf16 and self._gathers else torch.float32
        self.model = fake_model(config, setup.base if self.adapter else computed, peft_config)
        self.trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.weights = sum(p.numel() for p in self.model.parameters())

    @property
    def kept(self) -> Kept:
        """Bytes that each card holds through the whole training, by kind."""
        setup, split = self.setup, self.setup.cards if self._gathers else 1
        weights = sum(map(self._stored, self.model.parameters())) - self._saved_by_quantising()
        reference = 0 if self.adapter or setup.precomputed else weights
        gathered = _largest_gathered(self.model, 2 if setup.bf16 else 4) if self._gathers else 0
        gradients = 4 * self.trained * ((setup.launch == "ddp") + (setup.accumulated > 1))
        return Kept(weights // split, reference // split, MOMENTS * self.trained // split, gathered, gradients)

    @property
    def scoring(self) -> int:
        """Bytes of the policy on each card while reference log-probs are cached before training, under FSDP 2; else 0.

        FSDP 2 splits the policy only afterwards, so each card holds all of it until then.
        """
        whole = sum(map(self._stored, self.model.parameters())) - self._saved_by_quantising()
        return whole if self._gathers and self.setup.precomputed else 0

    def step(self, trees: Sequence[PrefixTree], *, checkpointing: bool = False) -> int:
        """Returns the largest number of bytes that a step on these pairs needs on each card, beyond `kept`."""
        setup = self.setup
        step = Step(
            card=Card(setup.device, setup.memory),
            autocast=setup.bf16 and not (self._gathers and not self.adapter),
            checkpointing=checkpointing,
            reference=not setup.precomputed,
            keeps_gradients=not self._gathers and setup.accumulated == 1,
            backend=setup.backend,
        )
        # Between accumulated batches `kept` holds whole gradients, and the batch under way adds one weight's at a time.
        gradients = 4 * self.trained // setup.cards if self._gathers and setup.accumulated == 1 else 0
        return peak_of_step(self.model, Forest.plant(trees), step) + gradients

    def cost(self, trees: Sequence[PrefixTree], *, checkpointing: bool = False) -> Cost:
        """Returns the work of a step with these pairs on each card: tokens, floating-point operations, bytes sent."""
        setup, text = self.setup, core(self.model).config.get_text_config()
        forest = Forest.plant(trees)
        head = core(self.model).get_output_embeddings().weight.numel()
        body = _multiplied(core(self.model), text) - head
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        seen = sum(int(tree.depth.sum()) + len(tree) for tree in forest.packed)  # pairs of query and visible key
        tokens, width = forest.ids_1S.shape[1], text.num_attention_heads * size
        forward = 2 * body * tokens + 4 * text.num_hidden_layers * width * seen
        passes = (2 if self.adapter else 3) + checkpointing + (not setup.precomputed)
        scored = 2 * head * len(forest.parents_P) * ((2 if self.adapter else 3) + (not setup.precomputed))
        sent = 0.0
        if setup.cards > 1:
            share, bytes_each = (setup.cards - 1) / setup.cards, 2 if setup.bf16 else 4
            gathers = 2 + (not setup.precomputed) if self._gathers else 0
            reduces = 1 if self._gathers else 2
            reduced = bytes_each if self._gathers else 4
            sent = share * (gathers * bytes_each * self.weights + reduces * reduced * self.trained)
        return Cost(tokens * setup.cards, forward * passes + scored, sent)

    def fitting(self, step: Callable[[int], float], memory: float, most: int) -> int:
        """Returns the largest number of pairs per card, at most `most`, that fits into `USABLE` of a card's memory.

        It doubles the number until one does not fit, then halves the gap; so `step` was called for the number returned.
        If more pairs can take fewer bytes, a larger number that fits may be missed.

        Args:
            step: function from a number of pairs to the bytes, beyond `kept`, of a step of so many pairs.
            memory: bytes of a card.
            most: number of pairs at which the search ends, at least 1.

        Returns:
            The number of pairs; 0 if not even one fits.
        """
        room, fits, fails = USABLE * memory - self.kept.all, 0, 1
        if self.scoring > USABLE * memory:
            return 0
        while step(fails) <= room:
            if fails == most:
                return most
            fits, fails = fails, min(2 * fails, most)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if step(middle) <= room else (fits, middle)
        return fits

    def _stored(self, weight: nn.Parameter) -> int:
        """Returns the bytes of one weight in memory; a weight that is trained counts as float32, whatever its dtype."""
        return weight.numel() * (4 if weight.requires_grad or not self.adapter else weight.element_size())

    def _saved_by_quantising(self) -> int:
        """Returns the bytes that quantising the base's linear layers, all but the head, saves; 0 without quantising."""
        bits, width = self.setup.bits, self.setup.base.itemsize
        if not bits:
            return 0
        head = core(self.model).get_output_embeddings()
        layers = (m for m in self.model.modules() if isinstance(m, nn.Linear) and m is not head)
        count = sum(m.weight.numel() for m in layers if not m.weight.requires_grad)
        each = 0.5 + SCALES[self.setup.nested] if bits == 4 else 1.0
        return int(count * (width - each))


def made_pairs(
    prompt: int, answer: int, instruction: int, shape: str, *, count: int, vocabulary: int
) -> list[PrefixTree]:
    """Makes trees of `count` pairs with arbitrary token ids and given lengths, to plan without data.

    Args:
        prompt, answer, instruction: numbers of tokens of the prompt, of each answer, and of the request to revise.
        shape: the text that drafts and revisions share. "turn": prompt and draft, as in a conversation; "quote": the
            prompt alone; "apart": nothing.
        vocabulary: number of different token ids.
    """
    trees = []
    for pair in range(count):
        start = iter(range(pair * 7919, 10**12))

        def tokens(n: int, start: Any = start) -> list[int]:
            return [next(start) % vocabulary for _ in range(n)]

        first, asked = tokens(prompt), tokens(instruction)
        first[:1] = [pair % vocabulary]  # prompts differ, so that they are not merged
        answers = [tokens(answer), tokens(answer)]
        answers[1][:1] = [(answers[0][0] + 1) % vocabulary]
        before = {"turn": first, "quote": first + asked, "apart": [(first[0] + 1) % vocabulary, *first[1:]]}[shape]
        after = [] if shape == "quote" else asked
        drafts = [(first, each) for each in answers]
        trees.append(
            PrefixTree.pack(drafts + [(before + draft + after, each) for draft in answers for each in answers])
        )
    return trees


def _largest_gathered(model: nn.Module, width: int) -> int:
    """Returns the bytes of weights that FSDP 2 gathers at once: two of the largest layers, and those outside layers.

    `width` is the number of bytes of a weight.
    """
    names = set(getattr(core(model), "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    root = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    largest = max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0)
    return width * (root + 2 * largest)


def _multiplied(model: Any, config: Any) -> int:
    """Returns the number of weights that multiply each token in a forward pass.

    Input embeddings are only looked up and do not count. Of experts, those count that a token is routed to.
    """
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    routed = (getattr(config, "num_experts_per_tok", None) or 1) / experts
    embeddings = {id(model.get_input_embeddings().weight)} - {id(model.get_output_embeddings().weight)}
    count = 0.0
    for name, p in model.named_parameters():
        if p.ndim > 1 and id(p) not in embeddings:
            count += p.numel() * (routed if ".experts" in name else 1)
    return int(count)
