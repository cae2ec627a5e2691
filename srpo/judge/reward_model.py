"""A reward model as a judge: a sequence classifier with one output, trained to score answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from srpo.data.pictures import refuse_pictures
from srpo.data.values import Prompt
from srpo.errors import LengthError, NonFiniteError
from srpo.judge.verdict import AnswerPair, Verdict, prefer_higher
from srpo.model.weights.load import inference_device, load_reward_model, load_tokenizer, model_context

if TYPE_CHECKING:
    from transformers import BatchEncoding


class RewardModel:
    """A reward model as a judge of single answers (called as a function) and of two answers (`PairJudge`).

    A tokenizer with a chat template renders the conversation, prompt first and answer last. Without a template, prompt
    and answer are encoded as a pair of texts, the format in which such classifiers are trained.

    Args:
        path: a folder or hub name; only safetensors weights are read.
        batch_size: number of answers scored together.
        device: the device's name; "" selects a GPU if there is one.

    Raises:
        InputError: the path holds no reward model.
        ConfigError: the model has more than one output, or the device does not exist.
    """

    def __init__(self, path: str, *, batch_size: int = 16, device: str = "") -> None:
        self.path, self.batch_size = path, batch_size
        self.tokenizer = load_tokenizer(path)
        self.model = load_reward_model(path).to(inference_device(device))
        # The classifier finds the last token of each row by the padding that follows it.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"

    @property
    def identity(self) -> str:
        """Name of the judge in reports: "reward model" and the model's path."""
        return f"reward model {self.path}"

    def __call__(self, prompt: Prompt, answer: str, gold: object, /) -> float:
        """Score of one answer: σ(reward of the answer), in (0, 1); the gold answer is not used."""
        reward = self.rewards([(prompt, answer)])[0]
        return 1 / (1 + math.exp(-reward)) if reward > -700 else 0.0

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """Yields a verdict for each pair of answers, in order: the answer with the larger reward wins."""
        pairs = list(comparisons)
        rows = {(repr(pair.prompt), text): (pair.prompt, text) for pair in pairs for text in (pair.first, pair.second)}
        rewards = dict(zip(rows, self.rewards(list(rows.values())), strict=True))
        for pair in pairs:
            first, second = (rewards[repr(pair.prompt), text] for text in (pair.first, pair.second))
            yield prefer_higher(pair, first, second, ".4f")

    def rewards(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Returns the reward of the answer in each row (prompt, answer): the classifier's output, any finite number.

        Raises:
            LengthError: a row is longer than the model's context; nothing is cut.
            NonFiniteError: a reward is nan or infinite.
        """
        import torch

        encoded = [self._encode(prompt, answer) for prompt, answer in rows]
        size = self.batch_size if self.tokenizer.pad_token_id is not None else 1
        # Sorting by length reduces padding, and makes the batches independent of the order of the rows.
        order = sorted(range(len(rows)), key=lambda row: len(encoded[row]["input_ids"]))
        found = [0.0] * len(rows)
        for start in range(0, len(rows), size):
            batch = order[start : start + size]
            # A single row needs no padding, so a tokenizer without a padding token works too.
            inputs = self.tokenizer.pad([encoded[row] for row in batch], padding=size > 1, return_tensors="pt")
            with torch.no_grad():
                logits_B1 = self.model(**inputs.to(self.model.device)).logits
            for row, reward in zip(batch, logits_B1[:, 0].double().tolist(), strict=True):
                found[row] = reward
        for row, reward in enumerate(found, 1):
            if not math.isfinite(reward):
                raise NonFiniteError(f"the reward is {reward}", where=f"{self.path}, row {row}")
        return found

    def _encode(self, prompt: Prompt, answer: str) -> BatchEncoding:
        refuse_pictures(prompt, "the reward model")
        if self.tokenizer.chat_template:
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            turns = [*before, {"role": "assistant", "content": answer}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)  # the chat template wrote the special tokens
        else:
            asked = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            encoded = self.tokenizer(asked, answer)
        length, most = len(encoded["input_ids"]), model_context(self.model)
        if most is not None and length > most:
            fix = "judge shorter answers, or with another model"
            raise LengthError(f"{length} tokens of prompt and answer", where=self.path, expected=f"{most}", fix=fix)
        return encoded
