"""Merging: what is written is what the adapter was, or is not kept; and what is saved needs no srpo to be loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from srpo import Reviser
from srpo.cli.main import run
from srpo.errors import ConfigError, DataError, InputError, SRPOError
from srpo.model.weights import merge as merging
from srpo.model.weights.card import MARK, Card, licence_of, portable, portable_command, write_card
from srpo.model.weights.load import load_model, load_processor
from srpo.model.weights.merge import MERGE_FILE, _compare_in_float32, compare, measure, merge
from srpo.model.weights.quantised import TRAINING_FILE
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.sequences.pictured import idefics_processor, model_for, png

ROWS = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(4)]
QUICK = ["--max_steps", "3", "--learning_rate", "0.05", "--report_to", "none", "--use_cpu", "true"]


def save_base(folder: Path, **settings: Any) -> Path:
    make_tiny_llama(num_hidden_layers=1, initializer_range=0.1, **settings).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and what `srpo train` made of it: all weights in `full`, an adapter in `adapter`."""
    folder = tmp_path_factory.mktemp("place")
    base = save_base(folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", "utf-8")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    for out, more in (("full", []), ("adapter", ["--use_peft", "--lora_r", "4"])):
        words = ["train", "--model_name_or_path", str(base), "--dataset_name", str(folder / "pairs.jsonl")]
        assert run([*words, "--output_dir", str(folder / out), "--logging_steps", "1", *QUICK, *more]) == 0
    return folder


@pytest.fixture(scope="module")
def merged(place: Path) -> Path:
    words = ["merge", "--model_name_or_path", str(place / "adapter"), "--output_dir", str(place / "merged")]
    assert run([*words, "--prompts", str(place / "pairs.jsonl"), "--max_new_tokens", "8"]) == 0
    return place / "merged"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[1, 2, 3, 200]])).logits
    return found


# ---------------------------------------------------------------------- merging


def test_a_merged_model_is_the_adapter_on_its_base(place: Path, merged: Path) -> None:
    adapter, model = load_model(str(place / "adapter")), load_model(str(merged))
    assert not hasattr(model, "peft_config")
    torch.testing.assert_close(logits(model), logits(adapter), rtol=1e-4, atol=1e-5)
    with adapter.disable_adapter():
        assert not torch.allclose(logits(model), logits(adapter), atol=1e-2)
    record = json.loads((merged / MERGE_FILE).read_text("utf-8"))
    assert (record["prompts"], record["generated"], record["other_tokens"]) == (4, 32, 0)
    assert record["difference"] < record["tolerance"] == 1e-4 < record["effect"]
    assert (record["adapter"], record["base"], record["dtype"]) == ("adapter", "base", "float32")
    assert sorted(path.name for path in place.glob("merged*")) == ["merged"]


def test_a_merged_model_revises(place: Path, merged: Path) -> None:
    prompts = ["p0 ", "p1 "]
    settings = {"revisions": 2, "max_new_tokens": 4, "temperature": 0}
    ours = Reviser(str(merged), reference=str(place / "base")).revise(prompts, **settings)
    theirs = Reviser(str(place / "adapter")).revise(prompts, **settings)
    assert [[a.text for a in trail.answers] for trail in ours] == [[a.text for a in trail.answers] for trail in theirs]
    for ours_, theirs_ in zip(ours[0].answers[1:], theirs[0].answers[1:], strict=True):
        assert ours_.preferred == pytest.approx(theirs_.preferred, abs=1e-4)
    record = json.loads((merged / TRAINING_FILE).read_text("utf-8"))
    assert (record["reference"], record["merged"]) == ("frozen copy", {"reference": "adapter off"})
    # Control: without a reference there is no confidence, for there is no adapter to switch off.
    assert not Reviser(str(merged)).has_confidence


def test_random_tokens_replace_missing_prompts(place: Path, tmp_path: Path) -> None:
    compared = merge(str(place / "adapter"), str(tmp_path / "out"), max_new_tokens=2)
    assert (compared.prompts, compared.positions, compared.generated) == (4, 4 * 18, 8)
    assert compared.same
    assert "8 of 8 greedy tokens equal; logits differ by" in str(compared)


def test_no_more_logits_are_kept_than_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = [[1] * 10, [1] * 30, [1] * 5]
    bytes_of_two = 8 * 100 * (12 + 32)
    monkeypatch.setattr(merging, "LOGITS", bytes_of_two)
    with caplog.at_level("INFO", "srpo"):
        assert merging._that_fit(contexts, 2, 100) == contexts[:2]
    assert "takes 2 of 3 prompts" in caplog.text
    monkeypatch.setattr(merging, "LOGITS", bytes_of_two - 1)
    assert merging._that_fit(contexts, 2, 100) == contexts[:1]
    monkeypatch.setattr(merging, "LOGITS", 1)
    assert merging._that_fit(contexts, 2, 100) == contexts[:1]


def test_a_merged_model_can_be_shown_pictures_if_the_adapter_can(tmp_path: Path) -> None:
    processor = idefics_processor()
    base = model_for(processor)
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=r".*text_model.*q_proj"))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    processor.tokenizer.save_pretrained(tmp_path / "adapter")
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"), max_new_tokens=1)
    assert hasattr(load_processor(str(tmp_path / "merged")), "image_processor")
    (tmp_path / "red.png").write_bytes(png())
    (tmp_path / "pictured.jsonl").write_text('{"prompt": "What?", "image": "red.png"}\n')
    with pytest.raises(DataError, match="the comparison is not shown pictures"):
        merge(str(tmp_path / "adapter"), str(tmp_path / "other"), prompts=str(tmp_path / "pictured.jsonl"))


def test_a_merged_model_that_differs_is_refused(tmp_path: Path) -> None:
    """Tied weights: an adapter on the head alone, merged, would move the embeddings with it."""
    base = save_base(tmp_path / "base", tie_word_embeddings=True)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(load_model(str(base)), config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    make_byte_tokenizer().save_pretrained(tmp_path / "adapter")
    words = ["merge", "--model_name_or_path", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "out")]
    for dtype in ("float32", "bfloat16"):  # bfloat16 is checked in float32, too
        with pytest.raises(SRPOError, match=r"the merged model is another one: .* tokens equal.*; logits differ by"):
            run([*words, "--dtype", dtype])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_one_changed_weight_is_detected(place: Path, merged: Path) -> None:
    model, changed = load_model(str(merged)), load_model(str(merged))
    ids = [1, 2, 3, 200, 5]
    with torch.no_grad():
        before = [(ids, model(torch.tensor([ids])).logits[0])]
        assert compare(before, model, [before[0][1]], [3]).difference == 0
        changed.model.layers[0].mlp.down_proj.weight[0, 0] += 0.5
        found = compare(before, changed, [before[0][1]], [3])
        assert found.difference > found.tolerance
        assert not found.same
        changed.model.norm.weight[0] = float("nan")
        assert not compare(before, changed, [before[0][1]], [3]).same


def test_a_check_in_float32_sees_the_rounding_of_weights_alone(tmp_path: Path) -> None:
    base = make_tiny_llama(num_hidden_layers=2, initializer_range=0.1).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(str(tmp_path / "base"), dtype="auto"), config).save_pretrained(tmp_path / "adapter")
    make_byte_tokenizer().save_pretrained(tmp_path / "adapter")
    assert merge(str(tmp_path / "adapter"), str(tmp_path / "out")).dtype == "bfloat16"
    contexts, options = [[1, 2, 3, 200, 5]], {"trust_remote_code": False, "base_model": None}
    given, answered, base_SV = measure(load_model(str(tmp_path / "adapter"), dtype="auto").eval(), contexts, 4)
    half = compare(answered, load_model(str(tmp_path / "out"), dtype="auto").eval(), base_SV, given)

    def again(folder: Path) -> Any:
        return _compare_in_float32(str(tmp_path / "adapter"), folder, contexts, 4, torch.bfloat16, options)

    found = again(tmp_path / "out")
    assert found.same
    assert (found.dtype, found.tolerance) == ("bfloat16", half.tolerance)
    assert 0 < found.difference < half.difference / 2
    # Control: one other weight in the file.
    changed = load_model(str(tmp_path / "out"), dtype="auto")
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight[0] += 2
    changed.save_pretrained(tmp_path / "changed")
    assert not again(tmp_path / "changed").same


def test_adapters_that_cannot_be_merged_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json here"):
        merge(str(place / "base"), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="is not empty"):
        merge(str(place / "adapter"), str(place))
    (tmp_path / "notes").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="notes: is a file; expected a folder; name another --output_dir"):
        merge(str(place / "adapter"), str(tmp_path / "notes"))
    tuned = get_peft_model(load_model(str(place / "base")), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    tuned.save_pretrained(tmp_path / "tuned")
    make_byte_tokenizer().save_pretrained(tmp_path / "tuned")
    with pytest.raises(ConfigError, match="a PROMPT_TUNING adapter has no weights to merge"):
        merge(str(tmp_path / "tuned"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- elsewhere

PLAIN = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def expect_no_srpo():
    assert not [name for name in sys.modules if name.split(".")[0] == "srpo"]

def logits_of(name):
    folder = base = Path(name)
    if name == "adapter":
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    if name == "adapter":
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, folder)
    assert "form" in json.loads((folder / "revision_template.json").read_text())
    assert AutoTokenizer.from_pretrained(folder)("p0 ")["input_ids"]
    expect_no_srpo()
    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 2, 3, 200]])).logits.tolist()

print(json.dumps({name: logits_of(name) for name in ("full", "merged", "adapter")}))
import srpo
expect_no_srpo()  # control: raises
"""


@pytest.mark.usefixtures("merged")
def test_saved_models_load_without_srpo(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, cwd=place)
    assert done.stdout, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert torch.equal(torch.tensor(found), logits(load_model(str(place / name)))), name
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "AssertionError"


# ---------------------------------------------------------------------- the card


@pytest.mark.parametrize("name", ["full", "adapter", "merged"])
def test_a_card_describes_the_training(name: str, place: Path, merged: Path) -> None:
    from huggingface_hub import ModelCard

    text = (place / name / "README.md").read_text("utf-8")
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"  # the base's card says so
    assert card.data.library_name == ("peft" if name == "adapter" else "transformers")
    for told in (
        "| beta | 0.01 |",
        "| pairs | 4 |",
        "| data sha256, of the token trees | ",
        "| loss | ",
        "srpo train --model_name_or_path base --dataset_name pairs.jsonl",
        "arXiv:2406.01660",
        f"torch {version('torch')}",  # which is not `torch.__version__` where that tells a build for CUDA
    ):
        assert told in text
    assert str(place) not in text
    assert ("Merged from an adapter by `srpo merge`" in text) == (name == "merged")
    record = json.loads((place / "adapter" / "run.json").read_text("utf-8"))
    assert f"| {record['data']['sha256']} |" in text


def test_a_card_written_by_a_person_is_never_changed(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    own = b"---\nlicense: mit\n---\n# My model\r\n"
    (out / "README.md").write_bytes(own)
    words = ["train", "--model_name_or_path", str(place / "base"), "--dataset_name", str(place / "pairs.jsonl")]
    with caplog.at_level("INFO", "srpo"):
        assert run([*words, "--output_dir", str(out), "--use_peft", "--save_strategy", "no", *QUICK]) == 0
    assert (out / "README.md").read_bytes() == own  # PEFT, left to itself, writes into it
    assert MARK in (out / "SRPO_CARD.md").read_text("utf-8")
    assert "is not srpo's and stays; the card is SRPO_CARD.md" in caplog.text


def test_a_card_of_srpo_is_rewritten(tmp_path: Path) -> None:
    write_card(tmp_path, Card("a/b", False, {"beta": 1}, {}), None)
    before = (tmp_path / "README.md").read_bytes()
    write_card(tmp_path, Card("a/b", False, {"beta": 2}, {}), before)
    assert "| beta | 2 |" in (tmp_path / "README.md").read_text("utf-8")
    assert 'base_model: "a/b"' in (tmp_path / "README.md").read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_card_has_no_path_of_the_machine(tmp_path: Path) -> None:
    words = ["srpo", "train", "--output_dir", "/home/me/run", "--dataset_name=/data/x.jsonl", "--map", "a b"]
    assert portable_command(words) == 'srpo train --output_dir run --dataset_name=x.jsonl --map "a b"'
    words = ["--model_init_kwargs", '{"cache_dir": "/home/me/cache"}', "org/name", "https://a.b/c/d", "runs/a/b"]
    told = '--model_init_kwargs "{\\"cache_dir\\": \\"cache\\"}" org/name https://a.b/c/d runs/a/b'
    assert portable_command(words) == told
    assert "planted" not in Card("", False, {}, {"data": "https://me:planted@host/pairs.jsonl"}).text()
    paths = {"~/a": "a", "../a/b": "b", "org/name": "org/name", "C:\\x\\y": "y", "/a/b/": "b", "": ""}
    assert {path: portable(path) for path in paths} == paths
    assert licence_of(str(tmp_path)) == licence_of("org/name") == "unknown"
