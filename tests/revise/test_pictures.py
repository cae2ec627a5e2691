"""Drafts and revisions of prompts with pictures: greedy answers, confidence and trails, against plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.data.read import read_prompts
from srpo.errors import ConfigError, DataError
from srpo.generate.speculative import SpeculativeEngine
from srpo.revise.reviser import Reviser
from srpo.revise.settings import RevisionSettings
from srpo.revise.trail import Trail
from srpo.sequences.picture_inputs import pictures_in
from srpo.sequences.tree import PrefixTree
from tests.model.pictured import MARKS, plain_logps
from tests.sequences.pictured import gemma_processor, idefics_processor, model_for, picture, png, qwen_processor
from tests.sequences.test_pictures import renderer_for

ASK = "What?"


def prompts(folder: Path) -> list[dict[str, Any]]:
    """Two prompts of equal text, one of text alone, and one of two pictures."""
    (folder / "red.png").write_bytes(png(picture("red")))
    parts = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]
    both = {"prompt": [{"role": "user", "content": parts}], "images": [picture("green", (16, 8)), picture("black")]}
    red, white = {"prompt": ASK, "image": str(folder / "red.png")}, {"prompt": ASK, "image": picture("white")}
    return [red, white, {"prompt": [{"role": "user", "content": ASK}]}, both]


def reviser_for(processor: Any, **options: Any) -> Reviser:
    model = model_for(processor)
    return Reviser(model, renderer=renderer_for(processor), **options)


def greedy(model: Any, context: list[int], stops: tuple[int, ...], most: int) -> list[int]:
    """The second implementation: the whole sequence again for every token, with the model's own inputs."""
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in stops):
        ids = torch.tensor([[*context, *written]])
        inputs: dict[str, Any] = {}
        for each in pictures_in(context)[:1]:
            tiled = model.config.model_type == "idefics3"
            for name in each.tensors:
                inputs[name] = torch.cat([one.tensors[name] for one in pictures_in(context)], int(tiled))
            if not tiled:
                inputs[MARKS[model.config.model_type]] = (ids == each.token).int()
        with torch.no_grad():
            written.append(int(model(input_ids=ids, use_cache=False, **inputs).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("make", [idefics_processor, qwen_processor, gemma_processor])
def test_greedy_drafts_and_revisions_equal_a_plain_loop(make: Any, tmp_path: Path) -> None:
    reviser = reviser_for(make())
    rows = read_prompts(prompts(tmp_path))
    trails = list(reviser.trails(rows, RevisionSettings(revisions=1, max_new_tokens=5, temperature=0)))
    for row, trail in zip(rows, trails, strict=True):
        draft, revision = trail.answers
        for answer, context in (
            (draft, reviser.renderer.drafts([row.prompt])[0]),
            (revision, reviser.renderer.revisions([row.prompt], [draft.text])[0]),
        ):
            ids = greedy(reviser.model, context, reviser.renderer.stop_ids, 5)
            assert reviser.renderer.decode(ids) == answer.text
            assert answer.tokens == len(ids)
    assert len({trail.answers[0].text for trail in trails}) > 1


def test_confidence_sees_the_pictures(tmp_path: Path) -> None:
    processor = qwen_processor()
    other = model_for(processor)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.01)
    reviser = reviser_for(processor, reference=other, beta=0.1)
    rows = read_prompts(prompts(tmp_path))
    assert reviser.confidence is not None
    found = reviser.confidence.compare(rows, ["red"] * 4, ["blue"] * 4)
    sequences = reviser.confidence._sequences(rows, ["red"] * 4, ["blue"] * 4)
    trees = [PrefixTree.pack(each) for each in sequences]
    with torch.no_grad():
        ratio_BK = plain_logps(reviser.model, trees) - plain_logps(other, trees)
    wanted = 0.5 + 0.1 * (ratio_BK[:, 0] - ratio_BK[:, 1])
    assert [value for value, _ in found] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert found[0][0] != pytest.approx(found[1][0], abs=1e-4)  # equal text, another picture


def test_trails_hold_hash_and_path_and_no_bytes(tmp_path: Path) -> None:
    reviser = reviser_for(idefics_processor())
    rows = read_prompts(prompts(tmp_path))
    trails = list(reviser.trails(rows, RevisionSettings(revisions=0, max_new_tokens=2, temperature=0)))
    lines = [trail.to_json() for trail in trails]
    [record] = json.loads(lines[0])["prompt"][0]["pictures"]
    assert record["path"] == str(tmp_path / "red.png")
    assert len(record["sha256"]) == 64
    assert all(len(line) < 1500 and "PNG" not in line and "base64" not in line for line in lines)
    [again] = read_prompts([{"prompt": Trail.from_json(lines[0]).prompt}])
    assert again.prompt.pictures == rows[0].prompt.pictures


def test_sampled_draws_depend_on_the_picture_and_repeat(tmp_path: Path) -> None:
    reviser = reviser_for(idefics_processor())
    rows = read_prompts(prompts(tmp_path))
    settings = RevisionSettings(revisions=1, max_new_tokens=4, temperature=1.0, seed=3)
    first, again = (list(reviser.trails(rows, settings)) for _ in range(2))
    texts = [[answer.text for answer in trail.answers] for trail in first]
    assert texts == [[answer.text for answer in trail.answers] for trail in again]
    assert texts[0] != texts[1]
    alone = list(reviser.trails(rows[1:2], settings))
    assert [answer.text for answer in alone[0].answers] == texts[1]


def test_the_speculative_cache_is_not_used_for_pictures(tmp_path: Path) -> None:
    reviser = reviser_for(idefics_processor())
    assert isinstance(reviser.engine, SpeculativeEngine)
    rows = read_prompts(prompts(tmp_path))
    list(reviser.trails(rows, RevisionSettings(revisions=1, max_new_tokens=2, temperature=0)))
    assert reviser.engine.forwards == 0
    list(reviser.trails(rows[2:3], RevisionSettings(revisions=0, max_new_tokens=2, temperature=0)))
    assert reviser.engine.forwards > 0


def test_engines_on_servers_refuse_pictures(tmp_path: Path) -> None:
    from srpo.sequences.render_messages import MessageRenderer

    [row, *_] = read_prompts(prompts(tmp_path))
    with pytest.raises(DataError, match="pictures are not sent"):
        MessageRenderer().expect_shown(row)
    reviser = reviser_for(idefics_processor())

    class Elsewhere:
        batch_size, same_batch_same_bits, max_length = 1, False, None

        def complete(self, *args: Any, **options: Any) -> Any:
            raise AssertionError("no request is sent")

    reviser.engine = Elsewhere()
    with pytest.raises(ConfigError, match="this engine is not sent pictures"):
        list(reviser.trails([row], RevisionSettings(revisions=0)))


def test_a_processor_can_be_given_as_tokenizer_of_a_model_in_memory(tmp_path: Path) -> None:
    processor = idefics_processor()
    rows, settings = read_prompts(prompts(tmp_path)[:1]), RevisionSettings(revisions=0, max_new_tokens=2, temperature=0)
    model = model_for(processor)
    given = Reviser(model, template="quote", tokenizer=processor)
    [found], [wanted] = ([*each.trails(rows, settings)] for each in (given, reviser_for(processor)))
    assert (found.prompt, found.answers[0].text) == (wanted.prompt, wanted.answers[0].text)
    with pytest.raises(DataError, match="with its processor"):
        [*Reviser(model, template="quote", tokenizer=processor.tokenizer).trails(rows, settings)]
