"""Inputs of the small runs: a tokenizer, a base model that half knows sums, rows in every layout, and a judge's server.

Everything is a function of fixed seeds and uses no code of the library, so the inputs stay the same when it changes.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCABULARY, STEPS, BATCH = 400, 220, 24
REVISE = "\n\nHere is an example of an answer:\n\n{draft}\n\nUsing it as you see fit, write the best answer you can."
EDITOR = (
    '{% set form = "quote" %}\n{% block draft %}{{ prompt }}{% endblock %}\n'
    "{% block revision %}{{ prompt }}\n\nA colleague proposes:\n{{ draft }}\n\nYour final version:{% endblock %}\n"
)
# Judges that score one answer; the evaluation finds them in the working folder.
JUDGE = (
    "def brief(prompt, answer, gold):\n    return 1 / (1 + len(answer))\n\n\n"
    "def close(prompt, answer, gold):\n    right = sum(a == b for a, b in zip(answer, str(gold)))\n"
    "    return right / max(len(answer), 9)\n"
)


def question(a: int, b: int) -> str:
    """Returns the prompt that asks for the sum of `a` and `b`."""
    return f"What is {a}+{b}?"


def answer(total: int) -> str:
    """Returns an answer with the number `total`; answers differ in length, so that a judge's length bias shows."""
    return f"It is {total}." if total % 3 else f"It is {total}, of course."


def sums(count: int, seed: int) -> list[tuple[int, int]]:
    """Draws `count` different pairs of summands below ten."""
    every = [(a, b) for a in range(10) for b in range(10)]
    return random.Random(seed).sample(every, count)


def wrong(total: int, rng: random.Random) -> str:
    """Returns a wrong answer, whose number differs from `total` by one or two."""
    return answer(abs(total + rng.choice((-2, -1, 1, 2))))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Makes preference pairs: the right sum is chosen, a wrong one rejected."""
    rng = random.Random(seed)
    return [
        {"prompt": question(a, b), "chosen": answer(a + b), "rejected": wrong(a + b, rng)} for a, b in sums(count, seed)
    ]


def prompts(count: int, seed: int, split: str) -> list[dict[str, Any]]:
    """Makes prompts with their gold answer, an id and the name of their split."""
    return [
        {"prompt": question(a, b), "gold": answer(a + b), "split": split, "uid": f"{split}-{number}"}
        for number, (a, b) in enumerate(sums(count, seed))
    ]


def write_layouts(folder: Path) -> list[tuple[str, list[str]]]:
    """Writes the same pairs in each layout.

    Returns:
        Of each layout the file's name and the flags that reading it takes.
    """
    folder.mkdir()
    plain = pairs(8, seed=5)
    user = [[{"role": "user", "content": row["prompt"]}] for row in plain]
    said = {name: [[{"role": "assistant", "content": row[name]}] for row in plain] for name in ("chosen", "rejected")}
    both = list(zip(plain, user, said["chosen"], said["rejected"], strict=True))
    system = [{"role": "system", "content": "Be brief."}]
    head = "\n\nHuman: {prompt}\n\nAssistant: "
    layouts: dict[str, list[dict[str, Any]]] = {
        "strings": [*plain, plain[0], {**plain[1], "rejected": plain[1]["chosen"]}],
        "messages": [{"prompt": system + u, "chosen": c, "rejected": r} for _, u, c, r in both],
        "implicit_messages": [{"chosen": u + c, "rejected": u + r} for _, u, c, r in both],
        "text_to_messages": [{"prompt": p["prompt"], "chosen": u + c, "rejected": u + r} for p, u, c, r in both],
        "transcripts": [{k: head.format(**p) + p[k] for k in ("chosen", "rejected")} for p, *_ in both],
        "sharegpt": [
            {
                "conversations": [{"from": "human", "value": p["prompt"]}],
                "chosen": {"from": "gpt", "value": p["chosen"]},
                "rejected": {"from": "gpt", "value": p["rejected"]},
            }
            for p, *_ in both
        ],
        "rankings": [
            {"prompt": p["prompt"], "completions": [p["rejected"], p["chosen"], "No idea."], "scores": [3, 9, n % 4]}
            for n, (p, *_) in enumerate(both)
        ],
        "annotations": [
            {"instruction": p["prompt"], "output_1": p["chosen"], "output_2": p["rejected"], "preference": 1}
            for p, *_ in both
        ],
        "named": [{"instruction": p["prompt"], "good": p["chosen"], "bad": p["rejected"], "id": "x"} for p, *_ in both],
        "posts": [
            {**p, "prompt": f"SUBREDDIT: r/sums\nTITLE: A sum\nPOST: {p['prompt']} Please.\nTL;DR:"} for p, *_ in both
        ],
    }
    for name, rows in layouts.items():
        write_lines(folder / f"{name}.jsonl", rows)
    mapped = ["--map", "prompt=instruction,chosen=good,rejected=bad"]
    flags = {"named": [mapped], "rankings": [[], ["--rankings", "best-worst"]]}
    return [(name, extra) for name in layouts for extra in flags.get(name, [[]])]


def make_tokenizer(*, chat: bool) -> Any:
    """Byte-level BPE of some 400 tokens, with a chat template or without one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rows = pairs(100, seed=0)
    texts = [f"{row['prompt']}\n{row['chosen']}{REVISE.format(draft=row['rejected'])}" for row in rows]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    end = "<|im_end|>" if chat else "</s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token=end)
    tokenizer.chat_template = CHATML if chat else None
    return tokenizer


def make_base(tokenizer: Any) -> Any:
    """A two-layer Llama trained for a few seconds to draft sums and to revise wrong ones; it is right at times."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    for _ in range(STEPS):
        texts = [_example(tokenizer, rng) for _ in range(BATCH)]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _example(tokenizer: Any, rng: random.Random) -> str:
    a, b = rng.randrange(10), rng.randrange(10)
    asked = question(a, b)
    if rng.random() < 0.5:
        asked += REVISE.format(draft=answer(a + b) if rng.random() < 0.5 else wrong(a + b, rng))
    said = answer(a + b) if rng.random() < 0.8 else wrong(a + b, rng)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def write_models(folder: Path) -> None:
    """Writes `base` with a chat template, `plain` without one, and the reward model `reward`."""
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer = make_tokenizer(chat=True)
    model = make_base(tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    shutil.copytree(folder / "base", folder / "plain")
    (folder / "plain" / "chat_template.jinja").unlink()
    make_tokenizer(chat=False).save_pretrained(folder / "plain")
    torch.manual_seed(1)
    config = model.config.__class__(**{**model.config.to_dict(), "num_labels": 1})
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    pickled = folder / "pickled"
    shutil.copytree(folder / "base", pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")


class ScriptedJudge(BaseHTTPRequestHandler):
    """A language model's server whose verdict is a function of the texts shown and of their order.

    It likes the longer answer, likes the first place now and then, calls some pairs equal, and refuses a few.
    """

    def do_POST(self) -> None:
        """Answers one chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = "\n".join(message["content"] for message in body["messages"])
        mark = re.search(r"a line <<<(\w+) and a line \1>>>", said)
        nonce = mark[1] if mark else ""
        fences = re.findall(rf"<<<{nonce}\n(.*?)\n{nonce}>>>", body["messages"][-1]["content"], re.DOTALL)
        number = int(hashlib.sha256("\n".join(fences).encode()).hexdigest()[:8], 16)
        words = ("A", "B") if len(fences[1]) >= len(fences[2]) else ("B", "A")
        word = words[number % 8 == 1] if number % 5 else "A"
        reply = "I cannot say." if number % 16 == 2 else f"One is better.\nVERDICT {nonce}: {word}"
        self._send(
            {
                "model": "scripted",
                "choices": [{"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": len(said) - 20 * said.count(nonce), "completion_tokens": 9},
            }
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def _send(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def judge_server() -> ThreadingHTTPServer:
    """The server on a free port of the loopback interface, not serving yet."""
    return ThreadingHTTPServer(("127.0.0.1", 0), ScriptedJudge)
