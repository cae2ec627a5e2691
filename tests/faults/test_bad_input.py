"""Faults 1 to 4 and 9: bad files, bad rows, bad lengths and bad settings end with their code and say what to do.

Each case is a command that succeeds but for one thing, which the first test shows; then that thing is broken. Nothing
is left behind that looks like a result.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srpo.cli.main import run
from srpo.errors import SRPOError
from srpo.revise.trail import Trail
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.warm_command import srpo_in_a_fork

GOOD = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(4)]
QUICK = {"max_steps": 1, "report_to": "none", "use_cpu": "true", "save_strategy": "no", "disable_tqdm": "true"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny_llama(max_position_embeddings=64).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


class Place:
    """A folder in which a `train` and a `revise` would work, until something in it is broken."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.pairs, self.prompts = folder / "pairs.jsonl", folder / "prompts.jsonl"
        self.out, self.trails = folder / "out", folder / "trails.jsonl"
        self.pairs.write_text("".join(json.dumps(row) + "\n" for row in GOOD), "utf-8")
        self.prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in GOOD), "utf-8")
        self.flags: dict[str, dict[str, Any]] = {
            "train": {"model_name_or_path": model, "dataset_name": self.pairs, "output_dir": self.out, **QUICK},
            "revise": {
                "model_name_or_path": model,
                "input": self.prompts,
                "output": self.trails,
                "revisions": 1,
                "max_new_tokens": 4,
                "revision_template": "plain",
            },
        }

    def words(self, verb: str, **changes: Any) -> list[str]:
        flags = {**self.flags[verb], **changes}
        return [verb, *(word for key, value in flags.items() for word in (f"--{key}", str(value)))]


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Place:
    return Place(model, tmp_path)


def failure(words: list[str]) -> SRPOError:
    """The error a command ends with."""
    with pytest.raises(SRPOError) as caught:
        run(words)
    return caught.value


def nothing_left(place: Place) -> bool:
    """No model, and no trail."""
    trails = place.trails.exists() and place.trails.stat().st_size > 0
    return not trails and not (place.out / "model.safetensors").exists()


@pytest.mark.parametrize("verb", ["train", "revise"])
def test_control_both_verbs_work_with_good_input(verb: str, place: Place) -> None:
    assert run(place.words(verb)) == 0
    assert not nothing_left(place)


# ---------------------------------------------------------------------- fault 1: files

ROW = json.dumps(GOOD[0]).encode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"garbage", ":3:1: not JSON: Expecting value"),
        (ROW[: len(ROW) // 2], ": not JSON: "),
        (b"\x00\x00\x00", ":3:1: not JSON: "),
        (ROW.replace(b"yes", b"\xe9"), "not UTF-8: byte 0xe9"),
        (b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', ":3: key 'prompt' occurs twice"),
        (ROW.replace(b'"yes"', b"NaN"), ":3: not JSON: NaN is not a JSON number"),
        (b"[" * 100_000, ":3: not usable: nested too deeply"),
        (b'"text"', ":3: expected an object with prompt, chosen and rejected, got a string"),
        (b"[1, 2]", ":3: expected an object"),
    ],
    ids=["garbage", "torn", "NUL", "latin-1", "duplicate key", "NaN", "deep", "string", "list"],
)
def test_lines_that_are_not_rows(line: bytes, said: str, place: Place) -> None:
    place.pairs.write_bytes(ROW + b"\n\n" + line + b"\n" + ROW.replace(b"p0", b"p9"))
    error = failure(place.words("train"))
    assert error.exit_code == 65
    assert "1 of 3 rows cannot be used as pairs" in str(error)
    assert f"{place.pairs}:3" in str(error)
    assert said in str(error)
    assert "--bad_rows skip" in str(error)
    assert nothing_left(place)
    assert run(place.words("train", bad_rows="skip")) == 0


def test_a_bom_crlf_and_blank_lines_are_accepted(place: Place) -> None:
    place.pairs.write_bytes(b"\xef\xbb\xbf" + ROW + b"\r\n\r\n   \r\n" + ROW.replace(b"p0", b"p1") + b"\r\n")
    assert run(place.words("train")) == 0


def test_ten_lines_are_named_and_the_rest_counted(place: Place) -> None:
    place.pairs.write_bytes(b"garbage\n" * 17 + ROW + b"\n")
    said = str(failure(place.words("train")))
    assert "17 of 18 rows cannot be used" in said
    assert said.count("not JSON") == 10
    assert "… and 7 more" in said


@pytest.mark.parametrize(
    ("verb", "key"), [("train", "dataset_name"), ("train", "eval_dataset_name"), ("revise", "input")]
)
def test_a_missing_file(verb: str, key: str, place: Place, tmp_path: Path) -> None:
    error = failure(place.words(verb, **{key: tmp_path / "nowhere.jsonl"}))
    assert error.exit_code == 66
    assert str(error) == f"{tmp_path / 'nowhere.jsonl'}: no such file; expected a JSONL file"
    assert nothing_left(place)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file(content: bytes, place: Place) -> None:
    place.pairs.write_bytes(content)
    place.prompts.write_bytes(content)
    for verb, noun, file in (("train", "pairs", place.pairs), ("revise", "prompts", place.prompts)):
        error = failure(place.words(verb))
        assert error.exit_code == 65
        assert str(error) == f"{file}: no {noun}; expected at least one JSON object per line"
        assert nothing_left(place)


def test_a_folder_instead_of_a_file(place: Place, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    error = failure(place.words("revise", input=tmp_path / "folder.jsonl"))
    assert (error.exit_code, error.what) == (66, "cannot be read: Is a directory")


# ---------------------------------------------------------------------- faults 2 and 3: rows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rejected": ...}, "no 'rejected'; this row has 'prompt', 'chosen'"),
        ({"chosen": ...}, "no 'chosen'; this row has 'prompt', 'rejected'"),
        ({"prompt": ...}, "no 'prompt'; this row has 'chosen', 'rejected'"),
        ({"chosen": None}, "'chosen' is null; want a string, as in the other rows"),
        ({"chosen": 4}, "'chosen' is a number; want a string, as in the other rows"),
        ({"prompt": [1, 2]}, "'prompt' is a list of numbers; want a string, as in the other rows"),
        ({"prompt": {"text": "a"}}, "'prompt' is an object; want a string, as in the other rows"),
        ({"chosen": [{"role": "assistant", "content": "a"}]}, "'chosen' is a list of objects; want a string"),
        ({"chosen": [{"role": "assistant"}], "rejected": [{"role": "assistant", "content": "a"}]}, "want a string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rows_that_are_not_pairs(changes: dict[str, Any], said: str, place: Place) -> None:
    broken = {key: value for key, value in {**GOOD[0], **changes}.items() if value is not ...}
    place.pairs.write_text(json.dumps(GOOD[1]) + "\n" + json.dumps(broken) + "\n", "utf-8")
    error = failure(place.words("train"))
    assert error.exit_code == 65
    assert f"{place.pairs}:2: " in str(error)
    assert said in str(error)
    assert nothing_left(place)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": ""}, "1 × 'chosen' is empty"),
        ({"rejected": "   "}, "1 × 'rejected' is empty"),
        ({"rejected": "yes"}, "1 × chosen and rejected are identical, so neither is preferred"),
    ],
)
def test_rows_without_a_preference_are_left_out_and_counted(
    changes: dict[str, Any], said: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.pairs.write_text(json.dumps(GOOD[1]) + "\n" + json.dumps({**GOOD[0], **changes}) + "\n", "utf-8")
    with caplog.at_level("INFO", "srpo"):
        assert run(place.words("train")) == 0
    assert f"1 of 2 rows left out: {said}" in caplog.text
    place.pairs.write_text(json.dumps({**GOOD[0], **changes}) + "\n", "utf-8")
    error = failure(place.words("train"))
    assert error.exit_code == 65
    assert f"1 of 1 rows cannot be used as pairs:\n  {place.pairs}:1: {said[4:]}" in str(error)


def test_a_file_without_usable_rows_is_an_error_under_skip(place: Place) -> None:
    place.pairs.write_text(json.dumps({**GOOD[0], "rejected": "yes"}) + "\n" + "nonsense\n", "utf-8")
    error = failure(place.words("train", bad_rows="skip"))
    assert error.exit_code == 65
    assert "2 of 2 rows cannot be used as pairs" in str(error)


# ---------------------------------------------------------------------- fault 4: lengths


def test_a_pair_longer_than_the_context(place: Place) -> None:
    with place.pairs.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**GOOD[0], "prompt": "x" * 70}) + "\n")
        file.write(json.dumps({**GOOD[0], "chosen": "y" * 40}) + "\n")  # fits as a draft, not after one
    error = failure(place.words("train"))
    assert error.exit_code == 65
    assert "2 of 6 rows are too long" in str(error)
    assert f"{place.pairs}:5: " in str(error)
    assert f"{place.pairs}:6: 102 tokens, over the limit of 64 (as drafts [44, 6], as revisions [102, " in str(error)
    assert "bad_rows=skip" in str(error)
    assert nothing_left(place)
    assert run(place.words("train", bad_rows="skip")) == 0


def test_a_prompt_longer_than_the_context(place: Place) -> None:
    place.prompts.write_text(json.dumps({"prompt": "p"}) + "\n" + json.dumps({"prompt": "x" * 62}) + "\n", "utf-8")
    error = failure(place.words("revise"))
    assert error.exit_code == 65
    assert str(error).startswith(f"{place.trails}: 1 of 2 prompts failed: 1 × ")
    assert "max_new_tokens=4; shorten these prompts" in str(error)
    lines = place.trails.read_text("utf-8").splitlines()  # the prompt with room has its trail
    assert [bool(Trail.from_json(line, where="").failed) for line in lines] == [False, True]


# ---------------------------------------------------------------------- fault 9: settings, and models and folders


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": -1}, "beta: -1.0; expected above 0"),
        ({"beta": 0}, "beta: 0.0; expected above 0"),
        ({"beta": "nan"}, "beta: nan; expected above 0"),
        ({"beta": "inf"}, "beta: inf; expected above 0"),
        ({"alpha": -0.5}, "alpha: -0.5; expected 0 or more and at most 1"),
        ({"alpha": 2}, "alpha: 2.0; expected 0 or more and at most 1"),
        ({"alpha": "nan"}, "alpha: nan; expected 0 or more and at most 1"),
        ({"alpha": 0}, "alpha: 0; the drafting policy is then not identified"),
        ({"alpha": 1}, "alpha: 1; Eq. 16, the only term that trains drafts"),
        ({"max_length": 0}, "max_length: 0; expected 2 or more"),
        (
            {"objective": "spro"},
            "objective: 'spro'; expected one of srpo, dpo, ipo, sft, sft_reviser; did you mean 'srpo'?",
        ),
        ({"backend": "fast"}, "backend: 'fast'; expected one of auto, path, flex, cache, flat"),
        ({"preset": "paper-tldrr"}, "preset: 'paper-tldrr'"),
        ({"save_total_limit": -1}, "save_total_limit: -1; expected 1 or more"),
        ({"max_steps": 0}, "max_steps: 0; expected 1 or more, or -1"),
        ({"num_train_epochs": 0}, "num_train_epochs: 0.0; expected above 0"),
        ({"num_train_epochs": -1}, "num_train_epochs: -1.0; expected above 0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1; expected one of 0.0"),
        ({"adam_beta1": 2}, "adam_beta1: 2.0; expected 0 or more and below 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers: -1; expected 0 or more"),
        ({"seed": -1}, "seed: -1; expected 0 or more"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: 'group_by_length'; expected one of"),
        ({"lr_scheduler_kwargs": "nonsense"}, "lr_scheduler_kwargs: 'nonsense'; expected a JSON object"),
        ({"deepspeed": "nope.json"}, "deepspeed: 'nope.json'; expected a JSON object or a file of one"),
        ({"accelerator_config": "nope.json"}, "accelerator_config: 'nope.json'; expected"),
        ({"accelerator_config": '{"foo": 1}'}, "settings: AcceleratorConfig"),
        ({"attn_implementation": "sdpaa"}, "attn_implementation: 'sdpaa'; expected one of eager, "),
        ({"lora_r": 4}, "lora_r: given without use_peft, which trains all weights; add `--use_peft`"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules: given without use_peft"),
        ({"eval_judge": "exact_match"}, "eval_judge: no drafts are drawn for it; add `--eval_revisions"),
        ({"resume_from_checkpoint": "run/checkpoint-1"}, "resume_from_checkpoint: 'run/checkpoint-1' is ignored"),
        (
            {"metric_for_best_model": "nope", "eval_strategy": "steps"},
            "metric_for_best_model: 'nope'; expected one of answer_tokens, ",
        ),
    ],
)
def test_bad_settings_are_found_before_weights_and_data(changes: dict[str, Any], said: str, place: Place) -> None:
    absent = {"model_name_or_path": "/no/such/model", "dataset_name": "/no/such/pairs.jsonl"}
    error = failure(place.words("train", **absent, **changes))
    assert error.exit_code == 78
    assert str(error).startswith(said)
    assert not place.out.exists()
    # Control: with the setting as it should be, the model is what is missing.
    assert failure(place.words("train", **absent)).exit_code == 66


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"report_to": "tensorboard"}, "report_to: TensorBoardCallback requires tensorboard"),
        ({"report_to": "nope"}, "report_to: nope is not supported"),
        ({"use_liger_kernel": "true"}, "use_liger_kernel: liger-kernel is not installed; leave it out"),
        ({"optim": "galore_adamw"}, "optim: You need to install `galore_torch`"),
        ({"optim_args": "nonsense"}, "optim_args: "),
        (
            {"lr_scheduler_kwargs": '{"foo": 1}', "lr_scheduler_type": "cosine_with_min_lr"},
            "lr_scheduler_kwargs: get_cosine_with_min_lr_schedule_with_warmup() got an unexpected",
        ),
        ({"push_to_hub": "true"}, "push_to_hub: the hub cannot be reached"),
    ],
)
def test_settings_that_libraries_reject_are_found_before_weights(
    changes: dict[str, Any], said: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = {"tensorboard": "tensorboard", "use_liger_kernel": "liger_kernel", "galore_adamw": "galore_torch"}
    for word, library in missing.items():
        if word in (*changes, *changes.values()) and importlib.util.find_spec(library):
            pytest.skip(f"{library} is installed")
    error = failure(place.words("train", model_name_or_path=tmp_path / "no-model", **changes))
    assert error.exit_code == 78
    assert str(error).startswith(said)


@pytest.mark.parametrize("name", ["model_name_or_path", "ref_model_name_or_path"])
def test_a_run_does_not_overwrite_the_model_it_starts_from(name: str, place: Place, model: Path) -> None:
    absent = {"model_name_or_path": "/no/such/model"}
    error = failure(place.words("train", **{**absent, name: model}, output_dir=f"{model}/."))
    assert error.exit_code == 78
    assert str(error).startswith(f"{name}: {model} is output_dir: the run would overwrite the model")


def test_alpha_one_can_be_allowed(place: Place) -> None:
    assert run(place.words("train", alpha=1, allow_unidentified="true")) == 0


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("beat: 0.1\n", 78, "unknown key 'beat'; did you mean 'beta'?"),
        ("beta: -1\n", 78, "beta: -1.0; expected above 0"),
        ("beta: [\n", 78, "not YAML"),
        (None, 66, "no such file; expected a YAML file of settings"),
        ("beta: 0.1\nalpha: 0.5\nbeta: 0.2\n", 78, ":3: key 'beta' stands twice, first in line 1"),
        ("logging_steps: [1]\n", 78, "logging_steps: [1]; expected a number"),
        ("gradient_accumulation_steps: null\n", 78, "gradient_accumulation_steps: None; expected a whole number"),
        ("per_device_train_batch_size: [2]\n", 78, "per_device_train_batch_size: [2]; expected a whole number"),
        ("map: {prompt: instruction}\n", 78, "map: {'prompt': 'instruction'}; expected text"),
        ("preset: [paper-tldr]\n", 78, "preset: ['paper-tldr']; expected one of paper-tldr"),
        ("optim_args: [1]\n", 78, "optim_args: [1]; expected text"),
        ("lora_target_modules: [q_proj, 3]\n", 78, "lora_target_modules: ['q_proj', 3]; expected a list, each text"),
        ("lr_scheduler_type: lineer\n", 78, "lr_scheduler_type: 'lineer'; expected one of linear, "),
        ("resume: [yes]\n", 78, "resume: [True]; expected true or false"),
    ],
)
def test_settings_files(text: str | None, code: int, said: str, place: Place, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text, "utf-8")
    error = failure(place.words("train", config=file))
    assert error.exit_code == code
    assert said in str(error)
    assert not place.out.exists()


def test_the_config_flag_may_be_given_only_once(place: Place, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("beta: 0.1\n", "utf-8")
    words = place.words("train", config=tmp_path / "s.yaml")
    for more, said in (
        (["--config", str(tmp_path / "s.yaml")], "--config is repeated; expected one of them"),
        (["--config", ""], "--config needs a value"),
        (["--config="], "--config needs a value"),
        (["--config"], "--config needs a value"),
    ):
        error = failure([*words, *more])
        assert (error.exit_code, str(error)) == (64, f"srpo train: {said}")


def test_a_device_is_chosen_by_other_flags(place: Place) -> None:
    error = failure(place.words("train", device="gpu"))
    assert error.exit_code == 64
    assert "`--use_cpu` or CUDA_VISIBLE_DEVICES" in str(error)
    assert "did you mean" not in str(error)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revisions": -1}, "revisions: -1; expected 0 or more"),
        ({"temperature": -1}, "temperature: -1.0; expected 0 or more"),
        ({"temperature": "nan"}, "temperature: nan; expected 0 or more"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; expected 1 or more"),
        (
            {"policy": "if_prefered"},
            "policy: 'if_prefered'; expected one of always, if_preferred, if_preferred_and_likelier, until_worse, "
            "until_unchanged, fixed:K, drafts, greedy, vote, auto; did you mean",
        ),
    ],
)
def test_bad_settings_of_revise_are_found_before_weights(changes: dict[str, Any], said: str, place: Place) -> None:
    error = failure(place.words("revise", model_name_or_path="/no/such/model", **changes))
    assert error.exit_code == 78
    assert str(error).startswith(said)
    assert not place.trails.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size: 0; expected 1 or more"),
        ({"policy": "if_preferred"}, "policy: if_preferred needs the model's own confidence"),
        (
            {"revision_template": "quotte"},
            "no preset 'quotte'; expected a file, or one of quote, turn, plain, paper-tldr, paper-xsum; did you mean",
        ),
        (
            {"revision_template": "quote"},
            "revision template 'quote': its form is 'quote' but the tokenizer",
        ),
        ({"reference": "MODEL"}, "beta: a reference but no β; pass the β the model was trained with"),
    ],
)
def test_settings_of_revise_that_do_not_fit_the_model(
    changes: dict[str, Any], said: str, place: Place, model: Path
) -> None:
    error = failure(
        place.words("revise", **{key: model if value == "MODEL" else value for key, value in changes.items()})
    )
    assert error.exit_code == 78
    assert str(error).startswith(said)
    assert nothing_left(place)


@pytest.mark.parametrize("verb", ["train", "revise"])
def test_a_missing_model(verb: str, place: Place, tmp_path: Path) -> None:
    error = failure(place.words(verb, model_name_or_path=tmp_path / "nowhere"))
    assert error.exit_code == 66
    assert str(error) == f"{tmp_path / 'nowhere'}: no such folder; expected a saved model, or a hub name"
    (tmp_path / "empty").mkdir()
    error = failure(place.words(verb, model_name_or_path=tmp_path / "empty"))
    assert error.exit_code == 66
    assert nothing_left(place)
    # What failed for want of a model does not stand in the way of the same command with the right one.
    assert run(place.words(verb)) == 0


@pytest.mark.parametrize(("verb", "key"), [("train", "output_dir"), ("revise", "output")])
def test_output_that_cannot_be_written(verb: str, key: str, place: Place) -> None:
    target = place.pairs / "below a file"
    # Found out before the model is read: it is not there either.
    error = failure(place.words(verb, **{key: target}, model_name_or_path="/no/such/model"))
    assert error.exit_code == 74
    assert error.where == str(target)
    assert "cannot be written" in error.what


# ---------------------------------------------------------------------- as a user sees it


def break_line(place: Place) -> list[str]:
    place.pairs.write_bytes(ROW + b"\n" + b"garbage\n")
    return place.words("train")


def break_beta(place: Place) -> list[str]:
    return place.words("train", model_name_or_path="/no/such/model", beta=-1)


def break_prompt(place: Place) -> list[str]:
    place.prompts.write_text(json.dumps({"prompt": 5}) + "\n", "utf-8")
    return place.words("revise")


@pytest.mark.parametrize(("broken", "code"), [(break_line, 65), (break_beta, 78), (break_prompt, 65)])
def test_a_process_exits_with_the_code_and_no_traceback(
    broken: Callable[[Place], list[str]], code: int, place: Place
) -> None:
    words = broken(place)
    done = srpo_in_a_fork(*words)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("srpo: error: ")]
    assert len(errors) == 1
    assert nothing_left(place)
