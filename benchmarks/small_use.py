"""Numbers of the library as Python code gets them, by its public names alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LAYOUTS = ("strings", "messages", "sharegpt", "rankings", "transcripts")
BETA, ALPHA = 0.1, 0.8


def library(folder: Path) -> dict[str, Any]:
    """Token ids, trees, six log-probs by back-end, losses, gradients, confidences and trails.

    Args:
        folder: where the small runs have left models and rows.
    """
    found = {**ids_and_trees(folder), **log_probs(folder), **trails(folder)}
    found["defaults"] = defaults()
    return found


def ids_and_trees(folder: Path) -> dict[str, Any]:
    """Six sequences of each pair, by layout and template, and the tree they are packed into."""
    from transformers import AutoTokenizer

    from srpo import PrefixTree, Renderer, RevisionTemplate, read_pairs

    found: dict[str, Any] = {}
    cases = [(name, "base", template) for name in LAYOUTS for template in ("quote", "turn")]
    cases += [("posts", "plain", template) for template in ("plain", "paper-tldr", "paper-xsum")]
    for name, model, template in cases:
        renderer = Renderer(AutoTokenizer.from_pretrained(folder / model), RevisionTemplate.preset(template))
        rows: list[Any] = []
        pairs = read_pairs(str(folder / "layouts" / f"{name}.jsonl"), rejects=[])
        for pair, six in zip(pairs, renderer.sixes(pairs), strict=True):
            tree = PrefixTree.pack(six)
            nodes = {"ids": tree.ids, "depth": tree.depth.tolist(), "end": tree.subtree_end.tolist()}
            texts = [pair.prompt, pair.chosen, pair.rejected]
            sequences = [spaced(ids) for each in six for ids in each]
            rows.append([texts, sequences, {key: spaced(each) for key, each in nodes.items()}])
        found[f"ids of {name} by {template}"] = rows
    return found


def spaced(ids: Iterable[int]) -> str:
    """Integers as one text."""
    return " ".join(map(str, ids))


def log_probs(folder: Path) -> dict[str, Any]:
    """Six log-probs under trained models and the base, and the three losses with their gradients."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import srpo

    found: dict[str, Any] = {}
    renderer = srpo.Renderer(AutoTokenizer.from_pretrained(folder / "base"))
    pairs = srpo.read_pairs(str(folder / "pairs.jsonl"))[:6]
    trees = [srpo.PrefixTree.pack(six) for six in renderer.sixes(pairs)]
    policy, base = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("whole", "base"))
    for backend in ("path", "flat", "cache", "auto"):
        with torch.no_grad():
            for name, model in (("policy", policy), ("base", base)):
                six = srpo.six_logps(model, trees, backend)
                found[f"six of {name} by {backend}"] = {key: value.tolist() for key, value in six._asdict().items()}
    with torch.no_grad():
        reference = srpo.six_logps(base, trees, "path")
    for backend in ("path", "flat"):
        for name in ("srpo_loss", "dpo_loss", "ipo_loss"):
            policy.zero_grad()
            output = getattr(srpo, name)(srpo.six_logps(policy, trees, backend), reference, beta=BETA, alpha=ALPHA)
            output.loss.mean().backward()
            fields = {key: getattr(output, key).tolist() for key in ("loss", "generation", "improvement")}
            found[f"{name} by {backend}"] = {**fields, "gradients": gradients(policy)}
    six = srpo.six_logps(policy, trees, "path").detach().minus(reference)
    found["eq9"] = srpo.preference_eq9(six.w_given_l, six.l_given_l, beta=BETA).tolist()
    found["eq14"] = srpo.preference_eq14(six.w_given_l, six.w, six.l_given_w, six.l, beta=BETA).tolist()
    return found


def gradients(model: Any) -> dict[str, Any]:
    """Digest of all gradients, and the norm of each."""
    digest = hashlib.sha256()
    norms: dict[str, Any] = {}
    for name, weight in model.named_parameters():
        gradient = weight.grad
        if gradient is not None:
            digest.update(name.encode() + gradient.contiguous().numpy().tobytes())
            norms[name] = float(gradient.double().norm())
    return {"sha256": digest.hexdigest(), **norms}


def trails(folder: Path) -> dict[str, Any]:
    """Trails of a `Reviser` by equation and back-end, written and read again."""
    from srpo import Reviser, Trail

    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text("utf-8").splitlines()[:12]]
    found: dict[str, Any] = {}
    for equation in ("eq9", "eq14"):
        for backend in ("path", "flat", "cache"):
            reviser = Reviser(str(folder / "whole"), reference=str(folder / "base"), equation=equation, backend=backend)
            drawn = reviser.revise(rows, revisions=2, temperature=1.0, max_new_tokens=10, policy="if_preferred", seed=5)
            lines = [trail.to_json() for trail in drawn]
            again = [Trail.from_json(line).after(1).text for line in lines]
            found[f"trails by {equation}, {backend}"] = [[json.loads(line) for line in lines], again]
    return found


def defaults() -> dict[str, Any]:
    """Default settings of training that are plain values."""
    from srpo import SRPOConfig

    config = SRPOConfig(output_dir="defaults", use_cpu=True, report_to=[])
    plain = {key: value for key, value in vars(config).items() if isinstance(value, bool | int | float | str | None)}
    return {key: value for key, value in sorted(plain.items()) if not key.startswith("_")}
