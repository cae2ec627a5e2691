"""Servers that refuse a judge's requests: the server's reason is reported, and no verdict at all is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srpo.cli.main import run
from srpo.errors import ConfigError, DataError, InputError, SRPOError
from srpo.judge.verdict import AnswerPair, Verdict
from srpo.judge.verdict_cache import CachingJudge, VerdictCache
from srpo.revise.trail import Answer, Trail
from tests.judge import judge_server as js
from tests.judge.judge_server import judge_server, llm_judge
from tests.scripted_server import Say

ASKED = [AnswerPair(f"question {n}", "good", "bad") for n in range(40)]
REFUSALS = {
    "no credit": (Say({"error": {"message": "no credit left on this account"}}, 402), InputError, "no credit left"),
    "unknown field": (Say({"detail": "unknown field 'max_tokens'"}, 400), InputError, "unknown field 'max_tokens'"),
    "validation": (Say({"message": "temperature must be 1"}, 422), InputError, "temperature must be 1"),
    "overload": (Say({"error": "slow down"}, 429, {"Retry-After": "0"}), InputError, "slow down"),
    "key": (Say({"error": {"message": "bad key"}}, 401), ConfigError, "bad key"),
    "model": (Say({"error": {"message": "no model m"}}, 404), ConfigError, "no model m"),
    "page": (Say("<html>not JSON</html>", 200), InputError, "torn JSON"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("count", [2, 40])
def test_a_server_that_refuses_every_call_ends_the_run_with_its_reason(name: str, count: int) -> None:
    say, error, reason = REFUSALS[name]
    with judge_server(js.honest, fails=lambda seen, before: say) as server:
        with pytest.raises(error, match=reason):
            list(llm_judge(server).compare(ASKED[:count]))
        with pytest.raises(error, match=reason):
            list(CachingJudge(llm_judge(server), None).compare(ASKED[:count]))
        assert len(server.bodies) <= 2 * 2 * (8 + 4 * 4)  # two runs of two tries: far from all 160 calls


def test_some_refused_calls_are_counted_and_the_other_verdicts_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = Say({"error": {"message": "the prompt is too long"}}, 400)

    def fails(seen: js.Seen, before: int) -> Say | None:
        return refused if seen.prompt in ("question 0", "question 1") else None

    with judge_server(js.honest, fails=fails) as server:
        verdicts = list(llm_judge(server, tmp_path / "kept.jsonl").compare(ASKED))
    assert [verdict.score for verdict in verdicts] == [None, None, *[1.0] * 38]
    assert "4 calls failed: HTTP 400: the prompt is too long (4 times)" in caplog.text
    assert len(VerdictCache(tmp_path / "kept.jsonl")) == 76


def test_credit_that_runs_out_midway_ends_the_run_and_keeps_its_verdicts(tmp_path: Path) -> None:
    pairs = [AnswerPair(f"question {n}", "good", "bad") for n in range(200)]
    answered = 30

    def fails(seen: js.Seen, before: int) -> Say | None:
        return None if int(seen.prompt.split()[1]) < answered else Say({"error": "no credit left"}, 402)

    done: list[Verdict] = []
    with (
        judge_server(js.honest, fails=fails) as server,
        pytest.raises(InputError, match="65 calls in a row failed"),
    ):
        done.extend(llm_judge(server, tmp_path / "kept.jsonl").compare(pairs))
    assert [verdict.score for verdict in done[:answered]] == [1.0] * answered
    assert len(VerdictCache(tmp_path / "kept.jsonl")) == 2 * answered
    # Control: refusals for different reasons leave the run alone, since each belongs to its own prompt.

    def differently(seen: js.Seen, before: int) -> Say | None:
        return fails(seen, before) and Say({"error": f"{seen.prompt} is too long"}, 400)

    with judge_server(js.honest, fails=differently) as server:
        verdicts = list(llm_judge(server).compare(pairs))
    assert [verdict.score for verdict in verdicts] == [1.0] * answered + [None] * (200 - answered)


def test_a_resumed_run_that_is_refused_keeps_earlier_verdicts(tmp_path: Path) -> None:
    with judge_server(js.honest) as server:
        list(llm_judge(server, tmp_path / "kept.jsonl").compare(ASKED[:1]))
        url = server.url
    with judge_server(js.honest, fails=lambda seen, before: Say("over quota", 402)) as server:
        judge = llm_judge(server, tmp_path / "kept.jsonl")
        judge.endpoint.url = url  # the cache is keyed by the server's address
        assert [verdict.score for verdict in judge.compare(ASKED[:2])] == [1.0, None]


# ---------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("f", "good"), ("s", "bad")):
        rows = [{"instruction": f"Q{n}", "output": f"{text} {n}", "generator": name} for n in range(3)]
        Path(f"{name}.json").write_text(json.dumps(rows))
    pairs = [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    trails = [Trail(f"Q{n}", (Answer("bad", 1), Answer(f"good {n}", 1)), meta={"gold": "good"}) for n in range(3)]
    Path("trails.jsonl").write_text("".join(trail.to_json() + "\n" for trail in trails))
    return tmp_path


COMMANDS = {
    "compare": "judge compare --first f.json --second s.json --output a.json",
    "check": "judge check --pairs pairs.jsonl",
    "label": "label --trails trails.jsonl --output labels.jsonl",
    "evaluate": "evaluate --trails trails.jsonl --output_dir out --against draft",
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_reports_the_refusal_and_fails(verb: str, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    def call(url: str) -> int:
        return run([*COMMANDS[verb].split(), "--judge", "llm", "--judge_base_url", url, "--judge_model", "m"])

    say, _, reason = REFUSALS["no credit"]
    with judge_server(js.honest, fails=lambda seen, before: say) as server, pytest.raises(SRPOError) as error:
        call(server.url)
    assert error.value.exit_code == 66
    assert reason in str(error.value)
    # Replies without a verdict are an error too; the same command with an honest judge ends with 0.
    with judge_server(js.refusing) as server, pytest.raises(DataError, match=r"no verdict|no preference"):
        call(server.url)
    with judge_server(js.honest) as server:
        assert call(server.url) == 0
