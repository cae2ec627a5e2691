"""Writes a model as a GGUF file for llama.cpp and Ollama, and compares the file with the model before it is kept.

The file is read back through transformers and, where the package `cyllama` is installed, answers in llama.cpp itself.

Axes: B contexts, S positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srpo.data.read import read_prompts
from srpo.disk import writable_folder, write_file
from srpo.errors import ConfigError, SRPOError
from srpo.export.gguf_write import CONVERTER, TYPES, write_gguf
from srpo.export.llama_cpp import INSTALL, QUANTISED, LlamaCpp, installed, quantise
from srpo.model.unwrap import adapted, device_of
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.model.weights.merge import Tally, contexts_of, logits_of
from srpo.progress import counted
from srpo.sequences.render import Renderer, options_of, template_for
from srpo.sequences.templates import RevisionTemplate

BATCH = 8  # contexts that are answered together
_SHARE = {"f32": 1e-4, "f16": 0.02, "bf16": 0.1, "q8_0": 0.1}  # difference of logits allowed, as a share of their range


class Opened(NamedTuple):
    """Result of running a GGUF file in llama.cpp: how many greedy drafts and revisions equal those of the model.

    Attributes:
        lead: among answers that differ, the largest lead of the model's token over llama.cpp's at the first difference,
            in nats of the model's log-probabilities; 0 if all answers are equal.
    """

    equal_drafts: int
    drafts: int
    equal_revisions: int
    revisions: int
    lead: float

    def __str__(self) -> str:
        revised = f" and {self.equal_revisions} of {self.revisions} revisions" if self.revisions else ""
        equal = f"{self.equal_drafts} of {self.drafts} drafts{revised} equal"
        if self.equal_drafts + self.equal_revisions == self.drafts + self.revisions:
            return equal
        return f"{equal}; where the others part, the model prefers its own token by {self.lead:.2g} nats at most"


@dataclass(frozen=True)
class Exported:
    """An exported GGUF file, and how its logits and greedy tokens differ from the model's.

    Attributes:
        file: the GGUF file.
        generated: greedy tokens compared.
        other_tokens: greedy tokens that the file decodes differently.
        difference: largest difference of logits, as a share of their range at its position.
        opened: comparison of the file's greedy answers in llama.cpp with the model's; None if that is not installed.
    """

    file: Path
    generated: int
    other_tokens: int
    difference: float
    opened: Opened | None

    def __str__(self) -> str:
        equal = self.generated - self.other_tokens
        logits = f"logits differ by {self.difference:.1e} of their range at most"
        opened = f"not tried, {INSTALL}" if self.opened is None else str(self.opened)
        return f"{equal} of {self.generated} greedy tokens equal; {logits}; in llama.cpp: {opened}"


def export(
    path: str,
    target: str,
    *,
    kind: str = "f16",
    prompts: str | None = None,
    max_new_tokens: int = 16,
    trust_remote_code: bool = False,
) -> Exported:
    """Writes a model as GGUF with an Ollama Modelfile and a README, and compares the file with the model.

    Args:
        path: folder of the model; an adapter must be merged first.
        target: folder to write into.
        kind: type of the weights, one of `TYPES` or `QUANTISED`; vectors stay float32.
        prompts: file of prompts to compare drafts and revisions on, of which the first 64 are used; None draws tokens
            of the vocabulary and compares what follows them.
        max_new_tokens: tokens decoded greedily for each prompt.

    Raises:
        ConfigError: an adapter, or a model or tokenizer that this file cannot write.
        OutputError: the folder cannot be written.
        SRPOError: the file differs from the model by more than its type explains; it is removed.
    """
    if kind not in (*TYPES, *QUANTISED):
        raise ConfigError(f"{kind!r}", where="type", expected="one of " + ", ".join((*TYPES, *QUANTISED)))
    if max_new_tokens < 1:
        raise ConfigError(f"{max_new_tokens}", where="max_new_tokens", expected="1 or more")
    if kind in QUANTISED and not installed():
        fix = f"{INSTALL}, or export f16, then `llama-quantize FILE {kind}` of llama.cpp"
        raise ConfigError(f"{kind!r} is written by llama.cpp, which is not installed", where="type", fix=fix)
    out = writable_folder(Path(target))
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    drafts = contexts_of(path, tokenizer, prompts)
    model = load_model(path, dtype="float32", trust_remote_code=trust_remote_code).eval()
    if adapted(model) is not None:
        raise ConfigError("an adapter", where=path, fix="merge it first: `srpo merge`")
    template = template_for(path, None) or Renderer(tokenizer).template
    name = Path(path).name
    file, unchecked, small = (out / f"{start}.gguf" for start in (f"{name}-{kind}", f".{name}", f".{name}-{kind}"))
    answers = _answers(model, drafts, max_new_tokens, "drafts")
    if prompts is not None:
        revisions = _revision_contexts(path, tokenizer, prompts, [answer.added for answer in answers])
        answers += _answers(model, revisions, max_new_tokens, "revisions")
    try:
        written = kind if kind in TYPES else "f16"
        write_gguf(unchecked, model, tokenizer, kind=written, name=name)
        compared = _compared(model, unchecked, answers, _SHARE[written])
        if kind in QUANTISED:
            quantise(unchecked, small, kind)
            small.replace(unchecked)
            compared = _compared(model, unchecked, answers, math.inf)
        opened = _opened(unchecked, model, tokenizer, answers, len(drafts), _SHARE.get(kind, math.inf))
        unchecked.replace(file)
    finally:
        unchecked.unlink(missing_ok=True)
        small.unlink(missing_ok=True)
    other = compared.other_tokens + compared.ties
    found = Exported(file, compared.generated, other, compared.difference, opened)
    template.save(out)
    write_file(out / "Modelfile", modelfile(file.name, tokenizer).encode())
    write_file(out / "README.md", readme(file.name, template, found).encode())
    return found


class Answer(NamedTuple):
    """Token ids of a context, and the model's greedy tokens after it."""

    context: list[int]
    added: list[int]


def _answers(model: Any, contexts: Sequence[list[int]], new: int, name: str) -> list[Answer]:
    return list(counted(_answered(model, contexts, new), f"{name} of the model", len(contexts)))


def _answered(model: Any, contexts: Sequence[list[int]], new: int) -> Iterator[Answer]:
    for start in range(0, len(contexts), BATCH):
        batch = contexts[start : start + BATCH]
        yield from map(Answer, batch, continued_together(model, batch, new))


@torch.no_grad()
def continued_together(model: Any, contexts: Sequence[list[int]], new: int) -> list[list[int]]:
    """Returns the `new` greedy tokens after each context, past any terminator, decoded in one batch.

    Args:
        model: a decoder with attention in all layers, as all models that can be exported; contexts are padded in front.
        contexts: token ids of B contexts, of any lengths.
    """
    width = max(map(len, contexts))
    device = device_of(model)
    ids_BS = torch.tensor([[0] * (width - len(context)) + context for context in contexts], device=device)
    read = [[0] * (width - len(context)) + [1] * len(context) for context in contexts]
    mask_BS = torch.tensor(read, device=device)
    places_BS = (mask_BS.cumsum(-1) - 1).clamp_min(0)
    found, cache = [], None
    for _ in range(new):
        given = {"attention_mask": mask_BS, "position_ids": places_BS, "past_key_values": cache}
        out = model(input_ids=ids_BS, **given, use_cache=True, logits_to_keep=1)
        ids_BS, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        found.append(ids_BS)
        mask_BS = torch.cat([mask_BS, torch.ones_like(ids_BS)], -1)
        places_BS = places_BS[:, -1:] + 1
    rows: list[list[int]] = torch.cat(found, -1).tolist()
    return rows


def _revision_contexts(path: str, tokenizer: Any, prompts: str, drafts: Sequence[list[int]]) -> list[list[int]]:
    """Returns the token ids of the contexts from which the model revises its drafts.

    Args:
        path: folder of the model, for its revision template.
        prompts: file of the prompts that the drafts answer.
        drafts: token ids of the drafts.
    """
    rows = read_prompts(prompts)[: len(drafts)]
    texts = [tokenizer.decode(draft, skip_special_tokens=True) for draft in drafts]
    renderer = Renderer(tokenizer, template_for(path, None))
    return renderer.revisions([row.prompt for row in rows], texts, [options_of(row) for row in rows])


def _compared(model: Any, file: Path, answers: Sequence[Answer], allowed: float) -> Tally:
    """Compares the logits of a model with those of its GGUF file, loaded by transformers, on contexts and answers.

    Raises:
        SRPOError: they differ by more than the share `allowed` of their range.
    """
    again = load_model(str(file), dtype="float32").eval()
    tally = Tally(allowed)
    for answer in counted(answers, "answers compared", len(answers)):
        ids = [*answer.context, *answer.added]
        was_SV = logits_of(model, ids)
        tally.add(was_SV, logits_of(again, ids), was_SV, len(answer.context))
    if not tally.difference <= allowed:
        found = f"its logits differ from the model's by {tally.difference:.1e} of their range"
        raise SRPOError(f"the written file differs from the model: {found}", where=str(file), fix=CONVERTER)
    return tally


def _opened(
    file: Path, model: Any, tokenizer: Any, answers: Sequence[Answer], drafts: int, allowed: float
) -> Opened | None:
    """Compares the greedy answers of a model with those of its file in llama.cpp; None if that is not installed.

    Args:
        drafts: number of answers that are drafts; the others are revisions.
        allowed: difference of logits that the file's type explains, as a share of their range.

    Raises:
        SRPOError: llama.cpp splits a prompt into other tokens, or prefers a token by more than its type explains.
    """
    if not installed():
        return None
    llama = LlamaCpp(file, max(len(answer.context) + len(answer.added) for answer in answers))
    equal, widest = [], 0.0
    try:
        for answer in counted(answers, "answers in llama.cpp", len(answers)):
            _expect_equal_split(llama, tokenizer, answer.context, file)
            found = llama.choices(answer.context, answer.added)
            equal.append(found == answer.added)
            if not equal[-1]:
                lead, share = _lead(model, answer, found)
                widest = max(widest, lead)
                if share > 2 * allowed:
                    said = f"llama.cpp answers differently where the model is sure, by {share:.1e} of its logits' range"
                    raise SRPOError(said, where=str(file), fix=CONVERTER)
    finally:
        llama.close()
    return Opened(sum(equal[:drafts]), drafts, sum(equal[drafts:]), len(equal) - drafts, widest)


def _lead(model: Any, answer: Answer, found: Sequence[int]) -> tuple[float, float]:
    """Returns how sure the model is of its own token at the first place where llama.cpp's answer `found` has another.

    It is the difference of the model's logits of the two tokens, which is that of their log-probabilities in nats; and
    the same as a share of the range of its logits there.
    """
    place = next(i for i, (own, other) in enumerate(zip(answer.added, found, strict=True)) if own != other)
    logits_V = logits_of(model, [*answer.context, *answer.added[:place]])[-1]
    lead = float(logits_V[answer.added[place]] - logits_V[found[place]])
    return lead, lead / float(logits_V.max() - logits_V.min())


def _expect_equal_split(llama: LlamaCpp, tokenizer: Any, context: list[int], file: Path) -> None:
    text = tokenizer.decode(context, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    wanted, found = tokenizer(text, add_special_tokens=False).input_ids, llama.split(text)
    if wanted != found:
        pairs = enumerate(zip(wanted, found, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(found)))
        said = f"llama.cpp splits {tokenizer.decode(wanted[place : place + 4])!r} into other tokens"
        raise SRPOError(said, where=str(file), fix=CONVERTER)


# ---------------------------------------------------------------------- beside the file


def modelfile(file: str, tokenizer: Any) -> str:
    """Returns the text of an Ollama Modelfile for a GGUF file; Ollama takes the chat template from that file."""
    lines = [f"FROM ./{file}", "PARAMETER temperature 0"]
    stops = [tokenizer.eos_token] if tokenizer.eos_token else []
    return "\n".join([*lines, *(f"PARAMETER stop {json.dumps(stop)}" for stop in stops)]) + "\n"


def readme(file: str, template: RevisionTemplate, compared: Exported) -> str:
    """Returns a README for a GGUF file: how to serve it, and the texts that ask it for a draft and for a revision.

    Args:
        file: name of the GGUF file.
        template: texts that ask for a draft and a revision.
        compared: the file's comparison with the model, which the README quotes.
    """
    prompt = "Why is the sky blue?"
    draft = "THE DRAFT"
    bodies: list[dict[str, Any]]
    if template.form == "text":
        path, bodies = "completions", [{"prompt": template.fill(prompt)}, {"prompt": template.fill(prompt, draft)}]
    else:
        path = "chat/completions"
        user = [{"role": "user", "content": prompt}]
        bodies = [{"messages": template.asking(user)}, {"messages": template.asking(user, draft)}]
    commands = "\n\n".join(
        f"```sh\ncurl http://localhost:8080/v1/{path} -H 'Content-Type: application/json' -d "
        f"{_quoted(json.dumps({**body, 'temperature': 0}, ensure_ascii=False))}\n```"
        for body in bodies
    )
    return f"""# {file}

Written by `srpo export` and compared with the model through transformers: {compared}.

    llama-server -m {file}                  # llama.cpp
    ollama create my-model -f Modelfile      # Ollama, at http://localhost:11434/v1

The model drafts, and revises a draft that its prompt shows. The first request asks for a draft, the second for a
revision of it; put the draft in place of `{draft}`.

{commands}

`srpo serve` in front of that server does both, with policies and trails:

    srpo serve --engine chat --base_url http://localhost:8080/v1 --revision_template revision_template.json

Smaller files: `srpo export --type q4_k_m`, or `llama-quantize {file} q4_k_m.gguf Q4_K_M` of llama.cpp.
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
