"""The orders task and its command: answers that follow from prompts, a strict judge, rows for both formats, gates."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import orders as command
from benchmarks.orders_stages import GATES, PAIRS, READY, Sizes, Stage
from benchmarks.orders_tables import against_before, chain, is_choice, is_same_model, plain
from benchmarks.tasks import pruned
from benchmarks.tasks.orders import (
    BASE_SIZES,
    LETTERS,
    SIZES,
    SLIPS,
    SPLITS,
    WORDS,
    OrdersConfig,
    Wording,
    answer_of,
    base_batch,
    first_total,
    last_total,
    orders,
    orders_tokenizer,
    pretrained_batches,
    roles_in_turn,
    total,
    total_moved_first,
    train_base,
    with_total,
)
from benchmarks.tasks.pruned import cut, prune_vocabulary
from srpo import Pair, Renderer
from srpo.errors import ConfigError, DataError
from srpo.model.weights.load import load_model, load_tokenizer
from srpo.score.results import Difference, Side, SystemComparison
from tests.export.test_gguf_export import folder


def worked_out(prompt: str) -> tuple[int, list[int]]:
    """The total and the running totals of a prompt, read without the generator's help."""
    amounts = [int(each) for each in re.findall(r"[0-9]+", prompt)]
    return sum(amounts), [sum(amounts[: n + 1]) for n in range(len(amounts))]


@pytest.mark.parametrize("wording", [LETTERS, WORDS], ids=["letters", "words"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_alone_decides_the_answer(wording: Wording, split: str) -> None:
    for row in orders(200, split, seed=1, wording=wording):
        value, running = worked_out(row["prompt"])
        gold = row["gold"]
        assert len(running) in SIZES[split]
        ends = set(row["prompt"][at.end() - 1] for at in re.finditer("[0-9]{2}", row["prompt"]))
        assert split != "out" or ends <= set("6789")
        assert first_total(gold) == last_total(gold) == value
        lines = gold.partition(":")[2]
        assert [int(each) for each in re.findall(r"[0-9]{3}(?=,|$|[a-z])", lines.replace(" ", ""))][-1] == value
        assert all(f"{each:03}" in lines for each in running)


def test_rows_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    assert orders(30, "in", seed=4) == orders(30, "in", seed=4)
    assert orders(30, "in", seed=4) != orders(30, "in", seed=5)
    with pytest.raises(ConfigError, match="no split 'inn'; expected in or out or longer"):
        orders(1, "inn")


@pytest.mark.parametrize("wording", [LETTERS, WORDS], ids=["letters", "words"])
def test_a_wrong_total_leaves_the_lines_right(wording: Wording) -> None:
    right, wrong = (orders(300, "in", seed=6, wording=wording, wrong=rate) for rate in (0.0, 1.0))
    half = orders(300, "in", seed=6, wording=wording, wrong=0.5)
    for row in wrong:
        value, _ = worked_out(row["prompt"])
        assert last_total(row["gold"]) == value
        assert (first_total(row["gold"]) or 0) - value in SLIPS
        assert first_total(with_total(row["gold"], value)) == value
    assert all(first_total(row["gold"]) == worked_out(row["prompt"])[0] for row in right)
    share = sum(first_total(row["gold"]) != worked_out(row["prompt"])[0] for row in half) / 300
    assert share == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("117:m31031b44075r42117", 1),
        (" total 117: map 31 so 031", 1),
        ("117:", 1),
        ("118:m31031b44075r42117", 0),
        ("m31031b44075r42117:117", 0),  # the other format
        ("1117:", 0),
        ("117", 0),
        ("17:", 0),
        ("", 0),
    ],
)
def test_the_judge_reads_the_total_at_the_start_alone(answer: str, score: float) -> None:
    assert total("", answer, "117:m31031b44075r42117") == score
    with pytest.raises(DataError, match="no total in the gold answer"):
        total("", answer, "m31031:031")


def test_the_total_of_lines_first_moves_to_the_start() -> None:
    items = [("m", 31), ("b", 44)]
    for wording in (LETTERS, WORDS):
        moved = total_moved_first(answer_of(items, wording, lines_first=True))
        assert moved == answer_of(items, wording)
    assert total_moved_first("m31031b44075:999") == "075:m31031b44075"  # the last line counts
    assert first_total(total_moved_first("no colon")) is None
    assert last_total("no total:m31031") is None


def test_the_base_is_trained_on_what_it_is_asked_for_later() -> None:
    tokenizer = orders_tokenizer()
    renderer = Renderer(tokenizer, LETTERS.template)
    config, source, seen = OrdersConfig(batch=8), random.Random(0), set()
    for _ in range(20):
        for ids, right, mistaken in zip(*base_batch(config, tokenizer, source)[:3], strict=True):
            assert torch.equal(right, mistaken)
            prompt = re.match(r".*?[=>]", tokenizer.decode(ids[1:]))
            assert prompt
            context = renderer.draft(prompt[0])
            scored = right[len(context) - 1 :]
            assert ids[: len(context)].tolist() == context
            assert (right[: len(context) - 1] == -100).all()
            assert scored[-1] == tokenizer.eos_token_id
            assert scored[:-1].tolist() == ids[len(context) :].tolist()
            answer = tokenizer.decode(scored[:-1])
            value, running = worked_out(prompt[0])
            seen.add((len(running), prompt[0][-1], (first_total(answer) or value) == value))
            assert total_moved_first(answer) == f"{value:03}:{answer[:-4]}" or prompt[0][-1] == "="
    ways = {("=", True), ("=", False), (">", True)}
    assert seen == {(size, *way) for size in BASE_SIZES for way in ways}
    assert all(len(renderer.answer(row["gold"])) <= LETTERS.tokens for row in orders(50, "longer", seed=2))


def test_training_lowers_the_loss_and_depends_on_its_seed_alone() -> None:
    tiny = OrdersConfig(hidden=24, layers=1, heads=2, steps=12, batch=8, seed=3)
    losses = [loss for _, loss, _ in train_base(tiny)]
    torch.manual_seed(12345)  # whatever was drawn before
    assert [loss for _, loss, _ in train_base(tiny)] == losses
    assert losses[-1] < losses[0]


def test_training_goes_on_from_a_model() -> None:
    tiny = OrdersConfig(hidden=24, layers=1, heads=2, steps=40, batch=8, seed=3)
    *_, (_, _, model) = train_base(tiny)
    further = OrdersConfig(**{**asdict(tiny), "seed": 4})
    begun, anew = (next(iter(train_base(further, start)))[1] for start in (model, None))
    assert begun < anew - 0.3


# ---------------------------------------------------------------------- the command


class Scripted(Stage):
    """A stage whose drafts are given: by number of the seed, then by row."""

    given: list[list[str]]
    off = 7  # error of the last running total of the fourth order

    def drafts(
        self, name: str, rows: Sequence[Mapping[str, str]], heat: float, *, seeds: Sequence[int] = (0,), tokens: int = 0
    ) -> list[list[str]]:
        """The given drafts, cut to `tokens`; the rest of a begun answer is one line with the right total, or `off`."""
        if rows and ":" in rows[0]["prompt"]:
            right = [first_total(each["gold"]) or 0 for each in orders(4, "in", seed=PAIRS)]
            place = {each["prompt"]: at for at, each in enumerate(orders(4, "in", seed=PAIRS))}
            at = [place[row["prompt"].partition("=")[0] + "="] for row in rows]
            return [[f"x11{right[each] + self.off * (each == 3):03}" for each in at]]
        return [[text[: tokens or None] for text in self.given[seed]] for seed in seeds]


def scripted(run: Path, given: list[list[str]], **sizes: int) -> Scripted:
    stage = Scripted(run, 0, "", Sizes(**sizes))
    object.__setattr__(stage, "given", given)
    return stage


def written(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").open(encoding="utf-8")]


def test_the_second_role_writes_thebase_batch_own_last_total(tmp_path: Path) -> None:
    drafts = ["100:m31031b44075", "075:m31031b44075", "no total", "090:m31031b44080"]
    command.role_rows(scripted(tmp_path, [[], drafts], role_prompts=4), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open(encoding="utf-8")]
    assert [row["draft"] for row in rows] == [drafts[0], drafts[1], drafts[3]]
    # The last one is the draft's own last total, although that is wrong.
    assert [row["revision"] for row in rows] == ["075:m31031b44075", drafts[1], "080:m31031b44080"]


@pytest.mark.parametrize("wording", [LETTERS, WORDS], ids=["letters", "words"])
def test_roles_alternate_and_are_rendered_as_they_are_asked_for(wording: Wording, byte_tokenizer: Any) -> None:
    renderer = Renderer(orders_tokenizer() if wording is LETTERS else byte_tokenizer(), wording.template)
    golds = [row for split in SIZES for row in orders(3, split, seed=1, wording=wording)]
    rows = [{"prompt": row["prompt"], "draft": with_total(row["gold"], 999), "revision": row["gold"]} for row in golds]
    contexts = [
        {tuple(renderer.draft(row["prompt"])): renderer.answer(row["draft"]) for row in rows},
        {tuple(renderer.revision(row["prompt"], row["draft"])): renderer.answer(row["revision"]) for row in rows},
    ]
    seen = set()
    for turn, batch in zip(range(8), roles_in_turn(rows, renderer, 4, seed=0), strict=False):
        for ids, labels, same in zip(*batch[:3], strict=True):
            assert torch.equal(labels, same)
            answer = labels[labels != -100].tolist()
            begin = int((labels != -100).nonzero()[0]) + 1
            context = tuple(ids[:begin].tolist())
            assert contexts[turn % 2][context] == answer
            assert ids[begin : begin + len(answer) - 1].tolist() == answer[:-1]
            seen.add((turn % 2, context))
    assert len(seen) > 6  # both roles, several orders


def test_own_pairs_join_a_right_and_a_wrong_total_of_the_same_order(tmp_path: Path) -> None:
    golds = [first_total(row["gold"]) or 0 for row in orders(4, "in", seed=PAIRS)]
    slips = ((0, 1, 5, 0), (9, 0, 6, 1))
    drawn = [[f"{gold + slip:03}:x" for gold, slip in zip(golds, each, strict=True)] for each in slips]
    stage = scripted(tmp_path, [[], *drawn], pair_prompts=4, draws=2)
    command.own_pairs(stage, tmp_path)
    pairs = written(tmp_path)  # the third order has no right total among its draws, the fourth has wrong lines
    assert [first_total(pair["chosen"]) for pair in pairs] == golds[:2]
    assert [first_total(pair["rejected"]) for pair in pairs] == [golds[0] + 9, golds[1] + 1]
    assert all(last_total(Pair(**pair).rejected) == gold for pair, gold in zip(pairs, golds, strict=False))


def test_steps_without_usablebase_batch_stop(tmp_path: Path) -> None:
    stage = scripted(tmp_path, [[], ["no total"], ["no total"]], role_prompts=1, pair_prompts=1, draws=2)
    with pytest.raises(SystemExit, match="step 2: no draft of the base works a total out"):
        command.role_rows(stage, tmp_path)
    with pytest.raises(SystemExit, match="step 3: no order has a draft with the right total"):
        command.own_pairs(stage, tmp_path)


def test_a_gate_stops_the_command_or_is_ignored_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path, 0, "", Sizes())
    stage.expect(True, "never shown")
    with pytest.raises(SystemExit, match=r"seed 0: too few; the numbers are in .*gates\.json"):
        stage.expect(False, "too few")
    Stage(tmp_path, 0, "", Sizes(), strict=False).expect(False, "too few")
    assert capsys.readouterr().out == "seed 0: gate ignored: too few\n"


def test_step_one_wants_lines_and_no_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "base_in_cycles", lambda stage, folder: None)
    n = 20

    def run(name: str, wrong: float, spoilt: int) -> None:
        class Drafting(Stage):
            def drafts(self, name: str, rows: object, heat: float, **how: object) -> list[list[str]]:
                split = next(each for each in SPLITS if rows == self.rows(n, each, GATES))
                answers = [row["gold"] for row in orders(n, split, seed=GATES, wrong=wrong)]
                return [[*answers[spoilt:], *["000:"] * spoilt]]

            def rows(self, n: int, split: str, first: int, **how: object) -> list[dict[str, str]]:
                return orders(n, split, seed=first)[spoilt:] + orders(spoilt, split, seed=first)

        command.draft_base(Drafting(tmp_path / name, 0, "", Sizes(labelled=n)))

    run("good", 1.0, 0)
    with pytest.raises(SystemExit, match=r"100% of the drafts open with the right total \(in\): one pass suffices"):
        run("known", 0.0, 0)
    with pytest.raises(SystemExit, match=r"85% of the drafts work the total out \(in\), fewer than 90%"):
        run("spoilt", 1.0, 3)
    noted = json.loads((tmp_path / "known" / "gates.json").read_text("utf-8"))["1 drafts"]
    assert noted["right total, greedy, out"] == 1.0


@pytest.mark.parametrize(
    ("lines_right", "wanted"),
    [
        ([(93, 73)], 1),
        ([(91, 90), (93, 71), (93, 73), (99, 99)], 3),  # 90 and 70 %, and 2 points more, each
        ([(0, 0)] * 9, 4),
    ],
)
def test_a_base_trains_on_until_its_lines_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_right: list[tuple[int, int]], wanted: int
) -> None:
    monkeypatch.setattr(command, "base_cycle", lambda stage, at, folder: trained.append(folder.name))
    gates = [row for split in SPLITS for row in orders(300, split, seed=GATES)]
    trained: list[str] = []

    class Drafting(Stage):
        def drafts(self, name: str, rows: Sequence[Mapping[str, str]], heat: float, **how: object) -> list[list[str]]:
            assert not any(row in gates for row in rows)
            out = dict(zip(("in", "out"), lines_right[int(name.removeprefix("cycle"))], strict=True))
            share = next(out[split] for split in out if rows == self.rows(100, split, READY))
            return [[row["gold"] if at < share else "000:x11000" for at, row in enumerate(rows)]]

    stage = Drafting(tmp_path, 0, "", Sizes(ready=100, cycles=4))
    for _ in range(2):  # the second time every cycle is reused
        command.base_in_cycles(stage, tmp_path / "base")
    assert trained == [f"cycle{at}" for at in range(wanted)]
    kept = json.loads((tmp_path / "base" / "cycles.json").read_text("utf-8"))
    assert kept == [{"in": a / 100, "out": b / 100} for a, b in lines_right[:wanted]]
    assert not (tmp_path / "base" / "stage.json").exists()  # written last, by the stage itself


def test_a_cycle_starts_from_the_one_before_on_other_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def tiny(config: OrdersConfig, model: Any = None) -> Iterator[Any]:
        seeds.append(config.seed)
        yield from train_base(OrdersConfig(24, 1, 2, steps=2, batch=2, seed=config.seed), model)

    monkeypatch.setattr(command.task, "train_base", tiny)
    stage = Stage(tmp_path, 1, "", Sizes(base_steps=2))
    for at in range(2):
        command.base_cycle(stage, at, tmp_path / f"cycle{at}")
    assert seeds == [1, 1 + command.CYCLE]
    first, second = (LlamaForCausalLM.from_pretrained(tmp_path / f"cycle{at}").state_dict() for at in range(2))
    moved = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert 0 < moved < 0.02  # two steps of at most the learning rate, 0.002, and a decay; not other random weights


def test_a_pretrained_model_learns_orders_in_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(folder(tmp_path / "model", "Gemma3"))
    stage = Stage(tmp_path / "run", 0, model, Sizes(base_steps=10, batch=2))
    for at in range(2):
        stage.done(f"cycle{at}", partial(command.pretrained_cycle, stage, at))
    before, first, second = (load_model(str(stage.run / name)) for name in ("pretrained", "cycle0", "cycle1"))
    moved = [
        max(float((a - b).abs().max().detach()) for a, b in zip(old.parameters(), new.parameters(), strict=True))
        for old, new in ((before, first), (first, second))
    ]
    assert all(0 < each < 0.01 for each in moved)
    assert capsys.readouterr().out.count("step 10 of 10, loss ") == 2
    assert "Corrected:" in (stage.run / "cycle1" / "revision_template.json").read_text("utf-8")


def test_batches_of_a_pretrained_model_hold_orders_in_words(byte_tokenizer: Any) -> None:
    renderer, seen = Renderer(byte_tokenizer(), WORDS.template), set()
    batches = pretrained_batches(OrdersConfig(batch=8), renderer, WORDS)
    for _, batch in zip(range(6), batches, strict=False):
        for ids, labels, _ in zip(*batch[:3], strict=True):
            begin = int((labels != -100).nonzero()[0]) + 1
            prompt = renderer.tokenizer.decode(ids[:begin], skip_special_tokens=True)
            answer = renderer.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
            value, running = worked_out(prompt)
            assert len(running) == 3
            assert last_total(total_moved_first(answer) if "Lines" in prompt else answer) == value
            seen.add(("Lines" in prompt, first_total(answer) == value))
    assert seen == {(True, False), (False, True), (False, False)}


# ---------------------------------------------------------------------- a smaller vocabulary


TEXTS = ["Wh the is ac", "is the +é"]


def test_a_pruned_model_writes_what_the_whole_one_writes(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", "Gemma3")
    prune_vocabulary(model, tmp_path / "small", TEXTS)
    answers, sizes = [], []
    for each in (model, str(tmp_path / "small")):
        loaded, tokenizer = load_model(each), load_tokenizer(each)
        kept = load_tokenizer(str(tmp_path / "small")).get_vocab()
        ids = tokenizer("the is", return_tensors="pt").input_ids
        logits = loaded(ids).logits[0, -1].tolist()
        best = max(kept, key=lambda word: logits[tokenizer.get_vocab()[word]])
        answers.append((best, tokenizer.convert_ids_to_tokens(ids[0])))
        sizes.append(len(tokenizer))
        assert loaded.get_input_embeddings().weight.shape[0] == loaded.config.vocab_size == len(tokenizer)
        assert loaded.config.eos_token_id == tokenizer.eos_token_id
        assert tokenizer.decode(tokenizer(TEXTS[1]).input_ids) == TEXTS[1]
    assert answers[0] == answers[1]
    assert "▁is" in answers[0][1]
    assert sizes[1] < sizes[0] - 15


def test_a_wrong_cut_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(tmp_path / "model", "Gemma3")
    monkeypatch.setattr(pruned, "cut", lambda whole, ids, special: cut(whole, [*ids[:4], *reversed(ids[4:])], special))
    with pytest.raises(ValueError, match="logits of the pruned model differ by"):
        prune_vocabulary(model, tmp_path / "small", TEXTS)


class Changing(Stage):
    """A stage whose work leaves empty files; the settings of each stage that is done are noted."""

    def done(self, name: str, work: Any, *names: str) -> float:
        def instead(folder: Path) -> None:
            works.append(name)
            for file in ("pairs.jsonl", "trails.jsonl", "rows.jsonl"):
                (folder / file).write_text("", "utf-8")
            (folder / "srpo_gate.json").write_text(
                '{"verdict": "", "rates": {"right": [0, 0, 0], "mend": [1, 1, 1], "keep": [1, 1, 1]}}'
            )

        return super().done(name, instead, *names)

    def drafts(self, name: str, rows: Any, heat: float, **how: Any) -> list[list[str]]:
        return [["000:"] * len(rows)]


works: list[str] = []


def steps_of(run: Path, model: str, **sizes: float) -> list[str]:
    """Stages that a run with these sizes does anew."""
    works.clear()
    stage = Changing(run, 0, model, Sizes(labelled=2, **sizes), strict=False)
    command.draft_base(stage)
    command.second_role(stage)
    command.methods(stage, ["srpo", "sft_reviser"])
    chain(stage, "base", "in", 0.0, lines_first=True)
    chain(stage, "role", "in", 0.0)
    chain(stage, "srpo", "in", 1.0)
    chain(stage, "role", "in", 1.0, drafter="srpo")
    return list(works)


def test_each_stage_is_done_again_where_its_model_changes(tmp_path: Path) -> None:
    every = steps_of(tmp_path / "words", "model")
    assert len(every) == 14
    assert steps_of(tmp_path / "words", "model") == []
    assert steps_of(tmp_path / "words", "model", base_learning_rate=1.0) == every
    every = steps_of(tmp_path / "letters", "")
    trained = ["srpo", "sft_reviser", "chains/srpo.own.in.T1", "chains/role.srpo.in.T1"]
    assert steps_of(tmp_path / "letters", "", learning_rate=1.0) == trained
    gates = {f"gate.base.{split}" for split in SPLITS}
    without = {"base", "role_rows", *gates, "chains/base.lines_first.in.T0"}
    more = steps_of(tmp_path / "letters", "", learning_rate=1.0, role_steps=7)
    assert more == [each for each in every if each not in without]


def test_a_resumed_run_keeps_its_seconds_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 40))
    monkeypatch.setattr("srpo.tasks.stages.time.perf_counter", lambda: next(clock))
    for _ in range(2):
        steps_of(tmp_path, "")
        noted = json.loads((tmp_path / "gates.json").read_text("utf-8"))["3 srpo"]
        assert noted["seconds of training"] == 40
        assert "right total, greedy" in noted


def test_seeds_without_a_gap_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["orders", "--output_dir", str(tmp_path), "--seeds", "1", "2"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("system", "choice", "same"),
    [
        ("srpo/greedy", True, False),
        ("dpo/best_of_vote", True, False),
        ("srpo/reference", False, False),
        ("srpo_if_preferred", False, True),
        ("before_greedy", False, False),
        ("sft_reviser", False, False),
        ("lines_first", False, False),
    ],
)
def test_opponents_are_told_apart(system: str, choice: bool, same: bool) -> None:
    nothing = Difference("pool", 1, 0.0, 0.0, 0.0, 0.0, 0.0)
    each = SystemComparison(Side("srpo_greedy", 1), Side(system, 1), "in", 1.0, nothing, ())
    assert (is_choice(each), is_same_model(each)) == (choice, same)
    assert plain("srpo_select_vote") == "srpo"


def test_each_chain_is_compared_with_the_model_before_it_in_the_same_decoding() -> None:
    def compared(a: str, b: str) -> SystemComparison:
        seeds = tuple(Difference(seed, 50, 0.5, 0.5, gain, 0.0, 0.0) for seed, gain in enumerate((0.02, -0.06)))
        pool = Difference("pool", 100, 0.78, 0.8, -0.02, -0.05, 0.01, higher=3, lower=5)
        return SystemComparison(Side(a, 1), Side(b, 1), "in", 1.0, pool, seeds)

    systems = ["srpo", "srpo/greedy", "srpo_greedy", "before", "before_greedy", "ipo", "lines_first", "sft_reviser"]
    every = [compared(a, b) for a in systems for b in systems if a != b]
    lines = against_before(SimpleNamespace(comparisons=every))  # type: ignore[arg-type]
    assert [text.partition(" after ")[0] for text in lines] == ["- srpo", "- srpo_greedy", "- ipo", "- sft_reviser"]
    numbers = "78.0 against 80.0 for before_greedy, −2.0 (−5.0 to +1.0) points; n = 100, 3 better, 5 worse"
    assert lines[1].endswith(f"{numbers}; each seed +2.0 −6.0")
