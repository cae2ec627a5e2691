"""`srpo sample`: several trails a prompt, from a model in this process or on a server, and a judge of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from srpo import read_pairs
from srpo.cli.main import run
from srpo.errors import SRPOError
from srpo.revise.trail_files import read_trails
from srpo.tasks.carry import BaseConfig, untrained_base
from tests.generate.served import OTHER, completion, spoken
from tests.revise.tiny import saved
from tests.scripted_server import JSON, Say, serve


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+0=", "gold": f"0{n}"}) + "\n" for n in (1, 2, 3)), "utf-8")
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a client needs of a model: tokenizer and template."""
    return saved(tmp_path_factory.mktemp("model"))


def command(model: Path, prompts: Path, *more: str) -> list[str]:
    given = {"model_name_or_path": model, "input": prompts, "output": prompts.with_name("trails.jsonl")}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["sample", *words, "--samples", "2", "--revisions", "1", "--max_new_tokens", "4", *more]


def test_a_server_writes_every_sample(model: Path, prompts: Path) -> None:
    def script(body: JSON, before: int) -> Say:
        """Another draft for every seed, and a revision that mends one digit of it."""
        draft = spoken(body).partition("=")[2].rstrip("?")
        return Say(completion(body, "0" + draft[1:] if draft else str(10 + body["seed"] % 89)))

    with serve(script, models=OTHER) as server:
        flags = ("--engine", "openai", "--base_url", server.url)
        assert run(command(model, prompts, *flags)) == 0
        asked = len(server.bodies)
        assert run(command(model, prompts, *flags)) == 0  # everything is there
        assert len(server.bodies) == asked == 2 * 2 * 3
    trails = read_trails(prompts.with_name("trails.jsonl"))
    assert Counter(trail.prompt for trail in trails) == {"1+0=": 2, "2+0=": 2, "3+0=": 2}
    drafts = [trail.answers[0].text for trail in trails]
    assert all(one != other for one, other in zip(drafts[::2], drafts[1::2], strict=True))
    assert not prompts.with_name("trails.jsonl.answers.jsonl").exists()

    pairs = prompts.with_name("pairs.jsonl")
    label = ["label", "--trails", str(prompts.with_name("trails.jsonl")), "--judge", "per_character"]
    assert run([*label, "--output", str(pairs)]) == 0
    made = [pair.meta["made_by"] for pair in read_pairs(pairs)]
    assert {each["kind"] for each in made} >= {"draft-revision"}
    assert all(each["later_better"] for each in made if each["kind"] == "draft-revision")


def test_sampling_keeps_every_revision(tmp_path: Path, prompts: Path) -> None:
    for name, seed in (("base", 0), ("trained", 1)):
        saved(tmp_path / name, untrained_base(BaseConfig(hidden=24, layers=1, heads=2, seed=seed)))
    (tmp_path / "trained" / "srpo_training.json").write_text(json.dumps({"beta": 0.1, "logps_reduction": "sum"}))
    assert run(command(tmp_path / "trained", prompts, "--reference", str(tmp_path / "base"))) == 0
    answers = [answer for trail in read_trails(prompts.with_name("trails.jsonl")) for answer in trail.answers[1:]]
    assert all(answer.kept and answer.preferred is not None for answer in answers)
    assert any(answer.preferred < 0.5 for answer in answers)  # the model itself would not have kept this


@pytest.mark.parametrize(
    ("flags", "code"),
    [(("--engine", "openai"), 78), (("--engine", "vlm"), 78), (("--served_model", "tiny"), 78)],
)
def test_invalid_engines_are_rejected(model: Path, prompts: Path, flags: tuple[str, ...], code: int) -> None:
    with pytest.raises(SRPOError) as found:
        run(command(model, prompts, *flags))
    assert found.value.exit_code == code
    assert not prompts.with_name("trails.jsonl").exists()
