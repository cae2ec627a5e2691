"""A reward model as a judge: a sequence classifier with one output, trained by whoever made it to score answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from srpo.data.values import Prompt
from srpo.errors import LengthError, NonFiniteError
from srpo.judge.verdict import TIE, AnswerPair, OrderVerdict, Verdict, combine
from srpo.model.weights.load import inference_device, load_reward_model, load_tokenizer, model_context


class RewardModel:
    """Scores single answers, and compares two by their rewards.

    A conversation goes through the model's chat template, prompt first and answer last; without a template, prompt and
    answer are encoded as a pair of texts, which is how such classifiers are trained.

    Args:
        path: a folder or hub name; weights are read as safetensors only.
        batch_size: answers scored together.
        device: where; "" for a GPU if there is one.

    Raises:
        InputError: no reward model there.
        ConfigError: it has more than one output, or there is no such device.
    """

    def __init__(self, path: str, *, batch_size: int = 16, device: str = "") -> None:
        self.path, self.batch_size = path, batch_size
        self.tokenizer = load_tokenizer(path)
        self.model = load_reward_model(path).to(inference_device(device))
        # A classifier finds the last token of each row by the padding behind it.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side = "right"

    @property
    def identity(self) -> str:
        """What it is called in a report."""
        return f"reward model {self.path}"

    def __call__(self, prompt: Any, answer: str, gold: Any) -> float:
        """The logistic function of the reward, so that it lies between 0 and 1; the gold answer is not looked at."""
        reward = self.rewards([(prompt, answer)])[0]
        return 1 / (1 + math.exp(-reward)) if reward > -700 else 0.0

    def compare(self, comparisons: Iterable[AnswerPair]) -> Iterator[Verdict]:
        """The answer with the larger reward is better; equal rewards tie. The order shown does not matter."""
        items = list(comparisons)
        texts = list(dict.fromkeys((_key(i.prompt), text) for i in items for text in _texts(i)))
        prompts = {_key(item.prompt): item.prompt for item in items}
        rewards = dict(zip(texts, self.rewards([(prompts[key], text) for key, text in texts]), strict=True))
        for item in items:
            if item.identical:
                yield TIE
                continue
            first, second = (rewards[_key(item.prompt), text] for text in _texts(item))
            yield combine(
                [OrderVerdict(0.5 + 0.5 * ((first > second) - (first < second)), f"{first:.4f} {second:.4f}")]
            )

    def rewards(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The reward of each (prompt, answer), any finite number.

        Raises:
            LengthError: one is longer than the model's context; nothing is cut.
            NonFiniteError: a reward is none.
        """
        import torch

        encoded = [self._encode(prompt, answer) for prompt, answer in rows]
        size = self.batch_size if self.tokenizer.pad_token_id is not None else 1
        # Rows of one length together: less padding, and the same batches whatever the order.
        order = sorted(range(len(rows)), key=lambda row: len(encoded[row]["input_ids"]))
        found = [0.0] * len(rows)
        for start in range(0, len(rows), size):
            batch = order[start : start + size]
            # With one row there is nothing to pad, and a tokenizer without a padding token need not.
            inputs = self.tokenizer.pad([encoded[row] for row in batch], padding=size > 1, return_tensors="pt")
            with torch.no_grad():
                logits_B1 = self.model(**inputs.to(self.model.device)).logits
            for row, reward in zip(batch, logits_B1[:, 0].double().tolist(), strict=True):
                found[row] = reward
        for row, reward in enumerate(found, 1):
            if not math.isfinite(reward):
                raise NonFiniteError(f"the reward is {reward}", where=f"{self.path}, row {row}")
        return found

    def _encode(self, prompt: Prompt, answer: str) -> Any:
        if self.tokenizer.chat_template:
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            turns = [*before, {"role": "assistant", "content": answer}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            encoded = self.tokenizer(text, add_special_tokens=False)  # the template wrote them
        else:
            asked = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            encoded = self.tokenizer(asked, answer)
        length, most = len(encoded["input_ids"]), model_context(self.model)
        if most is not None and length > most:
            fix = "judge shorter answers, or with another model"
            raise LengthError(f"{length} tokens of prompt and answer", where=self.path, expected=f"{most}", fix=fix)
        return encoded


def _key(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)


def _texts(item: AnswerPair) -> tuple[str, str]:
    return item.first, item.second
