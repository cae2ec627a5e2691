"""Drafting and revising: contexts of training, stops without loss, confidence by Eq. 9, keyed draws."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo import Pair, Renderer, Reviser, RevisionTemplate, Trail, progress
from srpo.data.read import read_prompts
from srpo.errors import ConfigError, InputError
from srpo.model.weights.quantised import TRAINING_FILE
from srpo.revise.settings import RevisionSettings
from srpo.tasks.carry import TEMPLATE, carry_tokenizer
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.revise import tiny
from tests.revise.tiny import PROMPTS, Recording, Scripted, carry_llama, ids_of, reviser
from tests.train.plain import flat_logp

EOS = carry_tokenizer().eos_token_id
BOS = carry_tokenizer().bos_token_id
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def texts(trails: list[Trail]) -> list[list[str]]:
    return [[answer.text for answer in trail.answers] for trail in trails]


def without_seconds(trail: Trail) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(trail.to_json())
    for answer in row["answers"]:
        del answer["seconds"]
    return row


# ---------------------------------------------------------------------- contexts


def test_contexts_equal_those_of_training() -> None:
    subject = reviser()
    engine = Recording.put_into(subject)
    (trail,) = subject.revise(["12+34="], 2, max_new_tokens=5)
    draft, revision = trail.answers[0].text, trail.answers[1].text
    six = subject.renderer.six(Pair("12+34=", chosen=draft, rejected=revision))
    assert engine.contexts == [six[0].context, six[2].context, six[4].context]
    # Spelled out: the prompt, what was drafted, the mark that asks for a revision.
    assert engine.contexts[1] == [BOS, *ids_of("12+34=" + draft + "?")]
    assert draft != revision


def test_the_cost_is_announced_after_the_drafts_of_the_first_batch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.0)
    subject = reviser(batch_size=2)
    with caplog.at_level("INFO", "srpo"):
        trails = subject.trails(read_prompts([{"prompt": text} for text in PROMPTS[:3]]), RevisionSettings(2))
        next(trails)
    at = caplog.messages.index("srpo: 3 prompts, a draft and at most 2 revisions of each: at most 9 answers")
    assert re.match(r"srpo: the first 2 of 9 answers took \S+ s, \S+ s each; ", caplog.messages[at + 1])
    assert re.match(r"srpo: about .* more, until \d\d:\d\d$", caplog.messages[at + 2])
    trails.close()  # type: ignore[attr-defined]
    assert progress._forecasts == []


@pytest.mark.parametrize("form", ["quote", "turn"])
def test_chat_contexts_equal_those_of_training(form: str) -> None:
    tokenizer = make_byte_tokenizer(chat_template=CHAT)
    subject = Reviser(make_tiny_llama(initializer_range=0.2), tokenizer, RevisionTemplate.preset(form))
    engine = Recording.put_into(subject)
    prompt = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "2+2"},
    ]
    (trail,) = subject.revise([prompt], 2, max_new_tokens=6)
    renderer = Renderer(tokenizer, RevisionTemplate.preset(form))  # as a trainer makes it
    six = renderer.six(Pair(prompt, chosen=trail.answers[0].text, rejected=trail.answers[1].text))
    assert engine.contexts == [six[0].context, six[2].context, six[4].context]


# ---------------------------------------------------------------------- stopping


def greedy(model: Any, context: list[int], tokens: int) -> str:
    """One greedy answer as text, by the plainest way."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < tokens and EOS not in written:
            written.append(int(model(torch.tensor([context + written])).logits[0, -1].argmax()))
    text: str = carry_tokenizer().decode(written, skip_special_tokens=True)
    return text


def test_stopping_at_a_fixed_point_changes_no_answer() -> None:
    model = carry_llama()
    trails = reviser(model).revise(PROMPTS, 6, temperature=0.0, max_new_tokens=4)
    for prompt, trail in zip(PROMPTS, trails, strict=True):
        plain = [greedy(model, [BOS, *ids_of(prompt)], 4)]
        for _ in range(6):
            plain.append(greedy(model, [BOS, *ids_of(prompt + plain[-1] + "?")], 4))
        assert [trail.after(k).text for k in range(7)] == plain
        repeats = [k for k in range(1, 7) if plain[k] == plain[k - 1]]
        assert trail.stopped == ("fixed point" if repeats else "revisions")
        assert len(trail.answers) == (repeats[0] + 1 if repeats else 7)
    # Both kinds are there, else this would show little.
    assert {trail.stopped for trail in trails} == {"revisions", "fixed point"}


def test_a_longer_cycle_is_not_a_fixed_point() -> None:
    subject = reviser()
    engine = Scripted(subject, lambda context: "7" if context.endswith("=4?") else "4")
    (trail,) = subject.revise(["2+2="], 5, temperature=0.0, max_new_tokens=4)
    assert texts([trail]) == [["4", "7", "4", "7", "4", "7"]]
    assert (trail.stopped, engine.asked) == ("revisions", 6)


def test_sampling_has_no_fixed_point() -> None:
    subject = reviser()
    Scripted(subject, lambda context: "4")
    for temperature, answers, stopped in ((0.0, 2, "fixed point"), (1.0, 5, "revisions")):
        (trail,) = subject.revise(["2+2="], 4, temperature=temperature, max_new_tokens=4)
        assert (len(trail.answers), trail.stopped) == (answers, stopped)


def test_a_rejected_greedy_revision_is_a_fixed_point() -> None:
    # Reference and model are one, so nothing is ever preferred; greedily the same revision would come for ever.
    model = carry_llama()
    subject = reviser(model, reference=copy.deepcopy(model), beta=0.1)
    Scripted(subject, lambda context: "9" if context.endswith("?") else "4")
    for temperature, answers in ((0.0, 2), (1.0, 5)):
        (trail,) = subject.revise(["2+2="], 4, temperature=temperature, policy="if_preferred", max_new_tokens=4)
        assert len(trail.answers) == answers
        assert trail.after(4).text == "4"
    # Control: taken always, it is a fixed point one revision later.
    (trail,) = subject.revise(["2+2="], 4, temperature=0.0, max_new_tokens=4, policy="always")
    assert texts([trail]) == [["4", "9", "9"]]


def test_zero_revisions_give_drafts_only() -> None:
    trails = reviser().revise(PROMPTS, 0, max_new_tokens=4)
    assert [len(trail.answers) for trail in trails] == [1] * len(PROMPTS)


# ---------------------------------------------------------------------- confidence


def eq9(model: Any, reference: Any, prompt: str, old: str, new: str, beta: float, *, mean: bool = False) -> float:
    """½ + β[h(new|old) − h(old|old)] from plain forward passes."""
    context = [BOS, *ids_of(prompt + old + "?")]
    h = []
    with torch.no_grad():
        for text in (new, old):
            answer = [*ids_of(text), EOS]
            ratio = flat_logp(model, context, answer) - flat_logp(reference, context, answer)
            h.append(float(ratio) / (len(answer) if mean else 1))
    return 0.5 + beta * (h[0] - h[1])


@pytest.mark.parametrize("policy", ["always", "if_preferred"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_confidence_equals_eq_9_and_decides(policy: str, reduction: str) -> None:
    model, reference = carry_llama(0), carry_llama(1)
    subject = reviser(model, reference=reference, beta=0.3, logps_reduction=reduction)
    trails = subject.revise(PROMPTS, 3, max_new_tokens=4, policy=policy)
    seen = set()
    for trail in trails:
        in_hand = trail.answers[0].text
        assert trail.answers[0].preferred is None
        for answer in trail.answers[1:]:
            plain = eq9(model, reference, trail.prompt, in_hand, answer.text, 0.3, mean=reduction == "mean")
            assert answer.preferred == pytest.approx(plain, abs=1e-4)
            same = answer.text == in_hand
            assert answer.kept == (policy == "always" or same or plain > 0.5)
            seen.add(answer.kept)
            if answer.kept:
                in_hand = answer.text
        assert trail.after(3).text == in_hand
    assert seen == ({True} if policy == "always" else {True, False})
    # Control: the reduction is not the other one's number.
    first = trails[0].answers
    other = eq9(model, reference, trails[0].prompt, first[0].text, first[1].text, 0.3, mean=reduction == "sum")
    assert first[1].preferred != pytest.approx(other, abs=1e-3)


def test_a_rejected_revision_is_not_revised() -> None:
    subject = reviser(reference=carry_llama(1), beta=0.3)
    engine = Recording.put_into(subject)
    (trail,) = subject.revise(["12+34="], 6, max_new_tokens=4, policy="if_preferred", seed=3)
    expected = [[BOS, *ids_of("12+34=")]]
    expected += [[BOS, *ids_of("12+34=" + trail.after(k).text + "?")] for k in range(6)]
    assert engine.contexts == expected
    assert {answer.kept for answer in trail.answers} == {True, False}


def test_confidence_of_an_untrained_model_is_one_half() -> None:
    model = carry_llama()
    trails = reviser(model, reference=copy.deepcopy(model), beta=0.7).revise(PROMPTS, 2, max_new_tokens=4)
    assert {answer.preferred for trail in trails for answer in trail.answers[1:]} == {0.5}


def test_the_base_is_the_reference_of_an_adapter() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(carry_llama(), peft.LoraConfig(r=4, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    subject = reviser(model, beta=0.3)
    assert subject.has_confidence
    (trail,) = subject.revise(["12+34="], 1, max_new_tokens=4)
    draft, revision = trail.answers
    plain = eq9(model, carry_llama(), "12+34=", draft.text, revision.text, 0.3)
    assert revision.preferred == pytest.approx(plain, abs=1e-4)
    assert abs(plain - 0.5) > 0.01


def test_without_a_reference_there_is_no_confidence() -> None:
    subject = reviser()
    assert not subject.has_confidence
    trails = subject.revise(PROMPTS[:2], 2, max_new_tokens=4)
    assert {answer.preferred for trail in trails for answer in trail.answers} == {None}
    with pytest.raises(ConfigError, match="if_preferred needs the model's own confidence") as caught:
        subject.revise(PROMPTS[:2], 2, policy="if_preferred")
    assert caught.value.exit_code == 78
    with pytest.raises(ConfigError, match="no reference"):
        subject.log_ratios([[([1], [2])]])


def test_an_adapter_of_another_trainer_revises_without_confidence(caplog: pytest.LogCaptureFixture) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(carry_llama(), peft.LoraConfig(r=4, task_type="CAUSAL_LM")).eval()
    subject = reviser(model)
    with caplog.at_level("INFO", "srpo"):
        (trail,) = subject.revise(["12+34="], 1, max_new_tokens=4, policy="always")
    assert trail.answers[1].preferred is None
    assert "confidence is off: no β is saved with the model; every revision is kept" in caplog.text
    with pytest.raises(ConfigError, match="if_preferred needs the model's own confidence: no β is saved"):
        subject.revise(["12+34="], 1, policy="if_preferred")
    # Control: with a β, the base under the adapter is the reference.
    (trail,) = reviser(model, beta=0.1).revise(["12+34="], 1, max_new_tokens=4)
    assert trail.answers[1].preferred == 0.5


def test_a_reference_needs_a_beta() -> None:
    with pytest.raises(ConfigError, match="beta: a reference but no β"):
        reviser(reference=carry_llama(1))


# ---------------------------------------------------------------------- draws


def test_trails_do_not_depend_on_their_batch() -> None:
    def drawn(size: int, **settings: Any) -> list[Trail]:
        subject = reviser(reference=carry_llama(1), beta=0.3, batch_size=size)
        return subject.revise(PROMPTS, 3, max_new_tokens=4, policy="if_preferred", **settings)

    one, four, all_ = (drawn(size) for size in (1, 4, 32))
    assert texts(one) == texts(four) == texts(all_)
    assert texts(drawn(4, seed=1)) != texts(four)
    for few, many in zip(one, all_, strict=True):
        for ours, theirs in zip(few.answers, many.answers, strict=True):
            assert (ours.kept, ours.tokens, ours.finished) == (theirs.kept, theirs.tokens, theirs.finished)
            assert ours.preferred == pytest.approx(theirs.preferred, abs=1e-4)


@pytest.mark.parametrize("skip", [0, 1, 3, 4, 5, 8, 9])
def test_skipping_leaves_other_trails_bit_equal(skip: int) -> None:
    subject = reviser(reference=carry_llama(1), beta=0.3, batch_size=4)
    from srpo.data.read import read_prompts

    rows = read_prompts([{"prompt": prompt, "n": i} for i, prompt in enumerate(PROMPTS)])
    settings = RevisionSettings(2, max_new_tokens=4)
    whole = [without_seconds(trail) for trail in subject.trails(rows, settings)]
    assert [row["meta"]["n"] for row in whole] == list(range(len(PROMPTS)))
    assert [without_seconds(trail) for trail in subject.trails(rows, settings, skip=skip)] == whole[skip:]


def test_equal_prompts_get_different_draws() -> None:
    subject = reviser()
    twice = texts(subject.revise(["12+34="] * 4, 2, max_new_tokens=6))
    assert len({tuple(row) for row in twice}) == 4
    # The first of them draws as if it were alone; greedily they are all the same.
    assert texts(subject.revise(["12+34="], 2, max_new_tokens=6)) == twice[:1]
    assert len({tuple(row) for row in texts(subject.revise(["12+34="] * 4, 2, temperature=0.0, max_new_tokens=6))}) == 1


def test_a_prompts_draws_do_not_depend_on_the_others() -> None:
    subject = reviser()
    order = [3, 0, 6]
    all_ = texts(subject.revise(PROMPTS, 2, max_new_tokens=4))
    assert texts(subject.revise([PROMPTS[i] for i in order], 2, max_new_tokens=4)) == [all_[i] for i in order]


def test_revisions_are_further_draws_not_the_drafts_again() -> None:
    # With the same numbers a model that ignores its context would write its draft again.
    subject = reviser()
    Recording.put_into(subject)
    trails = subject.revise(PROMPTS, 1, max_new_tokens=6)
    assert sum(trail.answers[0].text != trail.answers[1].text for trail in trails) > len(PROMPTS) // 2


# ---------------------------------------------------------------------- counts, rows, limits


def test_forward_tokens_are_counted() -> None:
    subject = reviser(reference=carry_llama(1), beta=0.3)
    (trail,) = subject.revise(["12+34="], 2, max_new_tokens=4)
    prompt = 1 + len("12+34=")
    assert trail.answers[0].forward_tokens == prompt + trail.answers[0].tokens
    for old, new in zip(trail.answers, trail.answers[1:], strict=False):
        context = prompt + len(old.text) + 1
        a, b = [*old.text, "<eos>"], [*new.text, "<eos>"]
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        scored = 2 * (context + len(a) + len(b) - shared)  # under policy and reference, shared tokens once
        assert new.forward_tokens == context + new.tokens + scored
    (alone,) = reviser().revise(["12+34="], 1, max_new_tokens=4)
    assert alone.answers[1].forward_tokens == prompt + len(alone.answers[0].text) + 1 + alone.answers[1].tokens


def test_rows_keep_their_columns_and_their_order() -> None:
    rows = [{"prompt": prompt, "gold": str(i), "meta": {"n": i}} for i, prompt in enumerate(PROMPTS)]
    trails = reviser(batch_size=2).revise(rows, 1, max_new_tokens=4)
    assert [trail.prompt for trail in trails] == PROMPTS
    assert [trail.meta for trail in trails] == [{"gold": str(i), "meta": {"n": i}} for i in range(len(PROMPTS))]
    assert all(answer.seconds > 0 for trail in trails for answer in trail.answers)
    assert all(answer.tokens <= 4 for trail in trails for answer in trail.answers)


def test_finished_answers_end_with_a_terminator() -> None:
    trails = reviser().revise(PROMPTS, 2, max_new_tokens=5, seed=1)
    drawn = [answer for trail in trails for answer in trail.answers]
    assert all(answer.tokens == 5 for answer in drawn if not answer.finished)
    assert all(answer.tokens >= len(answer.text) + 1 for answer in drawn if answer.finished)
    assert {answer.finished for answer in drawn} == {True, False}


def test_a_prompt_without_room_fails_alone() -> None:
    long = "1" * 50 + "+1="
    found = reviser().revise(["1+1=", long, "2+2="], 1, max_new_tokens=20)
    assert [trail.failed for trail in found] == [
        "",
        "a context of 54 tokens leaves 10 of the model's 64 for max_new_tokens=20",
        "",
    ]
    assert [len(trail.answers) for trail in found] == [2, 0, 2]
    # A draft may have room where its revision does not: the draft stays.
    Scripted(subject := reviser(), lambda context: "1" * (20 if context.startswith("3") else 1))
    found = subject.revise(["30+1" + "0" * 20 + "=", "1+1="], 1, max_new_tokens=20)
    assert [len(trail.answers) for trail in found] == [1, 2]
    assert found[0].stopped.startswith("impossible: a context of")
    assert not found[0].can_retry
    # Control: with fewer new tokens the same prompt has room.
    assert not subject.revise(["30+1" + "0" * 20 + "="], 1, max_new_tokens=10)[0].failed


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"policy": "if_prefered"},
            "policy: 'if_prefered'; expected one of always, if_preferred, if_preferred_and_likelier, until_worse, "
            "until_unchanged, fixed:K, drafts, greedy, vote, auto; did you mean 'if_preferred'?",
        ),
        ({"revisions": -1}, "revisions: -1; expected 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; expected 1 or more"),
        ({"temperature": -0.1}, "temperature: -0.1; expected 0 or more"),
        ({"temperature": math.nan}, "temperature: nan; expected 0 or more"),
    ],
)
def test_settings_out_of_range_are_rejected(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RevisionSettings(**settings)
    assert str(caught.value) == line


# ---------------------------------------------------------------------- saved models


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tiny.saved(tmp_path, carry_llama())


def record(folder: Path, **changes: Any) -> None:
    training = {"format": 1, "objective": "srpo", "beta": 0.3, "alpha": 0.8, "logps_reduction": "sum"}
    (folder / TRAINING_FILE).write_text(json.dumps({**training, **changes}), "utf-8")


def test_a_saved_model_brings_tokenizer_template_beta_and_reduction(saved: Path) -> None:
    record(saved, logps_reduction="mean")
    subject = Reviser(str(saved), reference=carry_llama(1))
    assert subject.renderer.template == TEMPLATE
    assert (subject.beta, subject.logps_reduction) == (0.3, "mean")
    always: dict[str, Any] = {"max_new_tokens": 4, "policy": "always"}
    assert texts(subject.revise(PROMPTS, 2, **always)) == texts(reviser().revise(PROMPTS, 2, **always))
    # What is passed wins, and a reference may be a path.
    other = Reviser(str(saved), template="plain", reference=str(saved), beta=2.0, logps_reduction="sum")
    assert (other.renderer.template.name, other.beta, other.logps_reduction) == ("plain", 2.0, "sum")
    assert other.has_confidence


def test_an_adapter_trained_from_an_adapter_has_no_base_reference(saved: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(saved)
    tiny.saved(folder, peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM")))
    for kind, has in (("adapter off", True), ("frozen adapter", False), ("given", False)):
        record(folder, reference=kind)
        assert Reviser(str(folder)).has_confidence == has


def test_a_model_of_another_objective_has_no_confidence(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    for objective, has in (("dpo", False), ("ipo", False), ("srpo", True)):
        record(saved, objective=objective)
        subject = Reviser(str(saved), reference=carry_llama(1))
        assert subject.has_confidence == has
        (trail,) = subject.revise(["12+34="], 1, max_new_tokens=4)
        assert (trail.answers[1].preferred is not None) == has
        assert subject.log_ratios([[([1], [2])]]).shape == (1, 1)  # which choose the best of several drafts


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"beta": "much"}', '{"beta": null}'])
def test_a_damaged_record_of_training_is_rejected(saved: Path, text: str) -> None:
    (saved / TRAINING_FILE).write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"srpo_training\.json: not a record of training"):
        Reviser(str(saved))


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Reviser(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="logps_reduction: 'most'; expected one of sum, mean"):
        reviser(logps_reduction="most")
    (saved / "revision_template.json").unlink()
    with pytest.raises(InputError, match=r"no revision template; .*--revision_template"):
        Reviser(str(saved))
