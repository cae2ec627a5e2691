"""Loading: what is taken, what is refused and with which words, and that no pickle and no foreign code ever runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from srpo.errors import ConfigError, InputError
from srpo.model.weights.load import load_model, load_tokenizer, model_context
from tests.conftest import make_byte_tokenizer, make_tiny_llama

SAFETENSORS_ONLY = "weights must be .safetensors; pickled ones are not read: `srpo convert` makes safetensors of them"


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model with its tokenizer."""
    folder = tmp_path / "model"
    make_tiny_llama().save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A LoRA that changes something, on the saved model."""
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(load_model(str(saved)), config)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def refused(path: Path | str, load: Callable[..., Any] = load_model, **settings: Any) -> str:
    """The one-line refusal to load it."""
    with pytest.raises(InputError) as error:
        load(str(path), **settings)
    assert error.value.exit_code == 66
    assert error.value.__context__ is None or error.value.__suppress_context__  # no traceback of the library's
    message = str(error.value)
    assert message.startswith(f"{path}: ") or str(path) == ""
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- what is taken


def test_a_model_and_its_tokenizer(saved: Path) -> None:
    model = load_model(str(saved))
    assert not model.training
    for ours, theirs in zip(model.parameters(), make_tiny_llama().parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert model_context(model) == 512
    assert load_tokenizer(str(saved))("é", add_special_tokens=False) == make_byte_tokenizer()("é")


@pytest.mark.parametrize(("dtype", "found"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("auto", "bfloat16")])
def test_dtypes(dtype: str, found: str, tmp_path: Path) -> None:
    make_tiny_llama().bfloat16().save_pretrained(tmp_path)
    assert next(load_model(str(tmp_path), dtype=dtype).parameters()).dtype == getattr(torch, found)


@pytest.mark.parametrize("dtype", ["bf16", "float64", "", "int8"])
def test_dtypes_that_do_not_exist(dtype: str) -> None:
    # Found before anything is read: there is no such folder, and nobody says so.
    with pytest.raises(ConfigError, match=f"no dtype '{dtype}'; expected auto, float32, bfloat16 or float16"):
        load_model("/nowhere", dtype=dtype)


def test_an_adapter_comes_with_its_base(adapter: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    frozen, trainable = load_model(str(adapter)), load_model(str(adapter), trainable=True)
    for model, opened in ((frozen, False), (trainable, True)):
        assert isinstance(model, PeftModel)
        assert {p.requires_grad for name, p in model.named_parameters() if "lora" in name} == {opened}
        assert not any(p.requires_grad for name, p in model.named_parameters() if "lora" not in name)
        assert model_context(model) == 512
    with torch.no_grad():
        assert torch.equal(frozen(ids).logits, trainable(ids).logits)
        with frozen.disable_adapter():
            base = frozen(ids).logits
        assert torch.equal(base, make_tiny_llama()(ids).logits)
        assert not torch.equal(base, frozen(ids).logits)


# ---------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_missing_folders(load: Callable[..., Any], tmp_path: Path) -> None:
    for path in (tmp_path / "none", "./none", "~/none-of-that-name", "runs/none/final", "tests/final"):
        assert "no such folder; expected a saved model, or a hub name" in refused(path, load)


@pytest.mark.parametrize("name", ["some-org/some-model", "some-model", "not a name!", ""])
def test_hub_names_without_a_network(name: str) -> None:
    for load, said in ((load_model, "no model: "), (load_tokenizer, "no tokenizer: ")):
        assert said in refused(name, load)
        # Both readings of a name with one slash, say, are told.
        assert "no folder of that name is here, so it was looked for on the hub" in refused(name, load)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    assert "no model: Unrecognized model" in refused(tmp_path)
    assert "no tokenizer: " in refused(tmp_path, load_tokenizer)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("{", "not a valid JSON file"),
        ("[]", "no model: "),  # the rest is transformers' own words, and differs by version
        ('{"model_type": "zork"}', "does not recognize this architecture"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_torn_configurations(config: str, why: str, saved: Path) -> None:
    (saved / "config.json").write_text(config)
    message = refused(saved)
    assert why in message
    assert SAFETENSORS_ONLY not in message  # the weights are fine


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_torn_weights(keep: int, saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "no model: " in refused(saved)


def test_weights_of_another_model(saved: Path) -> None:
    # transformers would make up what is missing and go on with a warning.
    rewrite(saved / "config.json", num_hidden_layers=3)
    assert "9 of the model's weights are not there: model.layers.2." in refused(saved)
    rewrite(saved / "config.json", num_hidden_layers=2, hidden_size=64)
    assert "no model: " in refused(saved)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    make_tiny_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_torn_tokenizers(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{")
    assert "no tokenizer: " in refused(saved, load_tokenizer)


def test_settings_the_model_does_not_know(saved: Path) -> None:
    assert "zork" in refused(saved, zork=1)
    assert "zork" in refused(saved, attn_implementation="zork")


def test_torn_adapters(adapter: Path, tmp_path: Path) -> None:
    config = adapter / "adapter_config.json"
    text = config.read_text()
    for broken in ("{", "[]", "{}"):
        config.write_text(broken)
        with pytest.raises(InputError, match="not an adapter configuration"):
            load_model(str(adapter))
    config.write_text(text)
    rewrite(config, base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base model"):
        load_model(str(adapter))
    rewrite(config, base_model_name_or_path=str(tmp_path / "moved"))
    with pytest.raises(InputError, match="moved, which is not here; name the base with base_model"):
        load_model(str(adapter))
    config.write_text(text)
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    assert "no model: " in refused(adapter)


# ---------------------------------------------------------------------- what would run

PICKLES = ["pytorch_model.bin", "model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"]


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_weights_are_refused_unread(name: str, saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Canary(tmp_path / "ran")}, saved / name)
    if "00001" in name:
        (saved / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert SAFETENSORS_ONLY in refused(saved)
    assert not (tmp_path / "ran").exists()


def test_pickled_adapters_are_refused_unread(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"lora_A": Canary(tmp_path / "ran")}, adapter / "adapter_model.bin")
    assert SAFETENSORS_ONLY in refused(adapter)
    # Nor an honest pickle: PEFT itself would take it.
    torch.save({"lora_A": torch.zeros(1)}, adapter / "adapter_model.bin")
    assert SAFETENSORS_ONLY in refused(adapter)
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_good_weights_are_left_alone(saved: Path, adapter: Path, tmp_path: Path) -> None:
    for folder, names in ((saved, [*PICKLES, "training_args.bin", "optimizer.pt"]), (adapter, ["adapter_model.bin"])):
        for name in names:
            torch.save(Canary(tmp_path / "ran"), folder / name)
        load_model(str(folder))
    load_tokenizer(str(saved))
    assert not (tmp_path / "ran").exists()


def test_control_an_unsafe_load_runs_the_pickle(tmp_path: Path) -> None:
    torch.save(Canary(tmp_path / "ran"), tmp_path / "canary.bin")
    torch.load(tmp_path / "canary.bin", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_code_beside_the_weights_does_not_run(saved: Path, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (saved / "theirs.py").write_text(code)
    shutil.copytree(saved, tmp_path / "tokenizer")
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    rewrite(saved / "config.json", model_type="theirs", auto_map=auto_map)
    assert "no model without running theirs.py (named in config.json); read it first; --trust" in refused(saved)
    settings = tmp_path / "tokenizer" / "tokenizer_config.json"
    rewrite(settings, tokenizer_class="Theirs", auto_map={"AutoTokenizer": ["theirs.Theirs", None]})
    (tmp_path / "tokenizer" / "config.json").unlink()
    refused(tmp_path / "tokenizer", load_tokenizer)
    assert not (tmp_path / "ran").exists()
