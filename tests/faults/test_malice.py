"""Fault 17: models that would run something. It never runs, and the message names the file and the safe way.

The canaries are real: each control unpickles or imports one and finds that it has sung.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srpo.cli.main import run
from srpo.errors import InputError, SRPOError
from srpo.model.weights.load import load_model
from srpo.model.weights.untrusted import inside
from srpo.tasks.carry import TEMPLATE
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.warm_command import srpo_in_a_fork

CONVERT = "`srpo convert` makes safetensors of them"
SUNG = "srpo_canary"


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter on it, pairs and prompts, none of them evil."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("clean")
    make_tiny_llama(num_hidden_layers=1).save_pretrained(folder / "model")
    adapter = get_peft_model(load_model(str(folder / "model")), LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapter.save_pretrained(folder / "adapter")
    for saved in (folder / "model", folder / "adapter"):
        make_byte_tokenizer().save_pretrained(saved)
        TEMPLATE.save(saved)
    (folder / "adapter" / "srpo_training.json").write_text('{"beta": 0.1}', "utf-8")
    rows = [{"prompt": f"p{i} ", "chosen": "yes", "rejected": "no"} for i in range(2)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture
def place(clean: Path, tmp_path: Path) -> Path:
    """A copy of it, whose adapter names the copied model."""
    shutil.copytree(clean, tmp_path / "place")
    rewrite(
        tmp_path / "place" / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "place/model")
    )
    return tmp_path / "place"


def rewrite(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changed}), "utf-8")


def words(verb: str, place: Path, model: str = "model") -> list[str]:
    pairs, out = str(place / "pairs.jsonl"), str(place / f"out-{verb}")
    quick = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--save_strategy", "no"]
    return {
        "check": ["check", "--dataset_name", pairs],
        "train": ["train", "--dataset_name", pairs, "--output_dir", out, *quick],
        "revise": ["revise", "--input", pairs, "--output", out, "--revisions", "0", "--max_new_tokens", "2"],
        "reference": ["revise", "--input", pairs, "--output", out, "--reference", str(place / model)],
    }[verb] + ["--model_name_or_path", str(place / ("model" if verb == "reference" else model))]


def refusal(argv: list[str]) -> str:
    with pytest.raises(SRPOError) as caught:
        run(argv)
    assert caught.value.exit_code == 66
    return str(caught.value)


def pickle_weights(place: Path, model: str, name: str) -> None:
    """Puts a canary in the place of a model's weights."""
    for file in (place / model).glob("*.safetensors"):
        file.unlink()
    torch.save({"model.norm.weight": Canary(place / SUNG)}, place / model / name)


@pytest.mark.parametrize("verb", ["check", "train", "revise"])
def test_control_without_malice_every_verb_works(verb: str, place: Path) -> None:
    assert run(words(verb, place)) == 0


# ---------------------------------------------------------------------- pickles

DOORS = [
    ("train", "model", "pytorch_model.bin"),
    ("train", "model", "model.pt"),
    ("train", "adapter", "adapter_model.bin"),
    ("revise", "model", "pytorch_model.bin"),
    ("revise", "adapter", "adapter_model.bin"),
    ("reference", "adapter", "adapter_model.bin"),
]


@pytest.mark.parametrize(("verb", "model", "name"), DOORS)
def test_pickled_weights_do_not_run(verb: str, model: str, name: str, place: Path) -> None:
    pickle_weights(place, model, name)
    message = refusal(words(verb, place, model))
    assert name in message
    assert CONVERT in message
    assert not (place / SUNG).exists()


def test_an_adapter_on_a_pickled_base(place: Path) -> None:
    pickle_weights(place, "model", "pytorch_model.bin")
    assert "only pytorch_model.bin" in refusal(words("revise", place, "adapter"))
    assert not (place / SUNG).exists()


def test_pickled_weights_do_not_run_and_end_the_command(place: Path) -> None:
    pickle_weights(place, "model", "pytorch_model.bin")
    done = srpo_in_a_fork(*words("train", place))
    assert (done.returncode, done.stdout) == (66, "")
    *_, line = done.stderr.splitlines()  # after lines of progress
    assert line.startswith(f"srpo: error: {place / 'model'}: no model: only pytorch_model.bin; weights must be")
    assert not (place / SUNG).exists()


def test_pickles_beside_good_weights_do_not_run(place: Path) -> None:
    for model in ("model", "adapter"):
        for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "pytorch_model.bin", "adapter_model.bin"):
            torch.save(Canary(place / SUNG), place / model / name)
    for verb in ("check", "train", "revise"):
        assert run(words(verb, place, "adapter")) == 0
    assert not (place / SUNG).exists()


def test_control_the_canary_runs_when_unpickled(place: Path) -> None:
    pickle_weights(place, "model", "pytorch_model.bin")
    torch.load(place / "model" / "pytorch_model.bin", weights_only=False)
    assert (place / SUNG).exists()


# ---------------------------------------------------------------------- the safe way


def convert(place: Path, model: str) -> list[str]:
    return ["convert", "--model_name_or_path", str(place / model), "--output_dir", str(place / "converted")]


@pytest.mark.parametrize("parts", [1, 2])
def test_honest_pickles_are_converted(parts: int, place: Path) -> None:
    before = load_model(str(place / "model"))
    (place / "model" / "model.safetensors").unlink()
    items = list(before.state_dict().items())
    for part in range(parts):
        name = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        torch.save(dict(items[part::parts]), place / "model" / name)
    (place / "model" / "theirs.py").write_text("1 / 0\n", "utf-8")
    assert run(convert(place, "model")) == 0
    after = load_model(str(place / "converted"))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert not [path for path in (place / "converted").iterdir() if path.suffix in (".bin", ".py")]
    # What the message promised: the same command on the converted folder.
    assert run(words("revise", place, "converted")) == 0


def test_an_honest_adapter_is_converted(place: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(place / "adapter" / "adapter_model.safetensors")
    (place / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(weights, place / "adapter" / "adapter_model.bin")
    assert run(convert(place, "adapter")) == 0
    assert run(words("revise", place, "converted")) == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file, sung: torch.save({"a": Canary(sung)}, file), "would run code when unpickled, and was not"),
        (lambda file, sung: torch.save([torch.zeros(1)], file), "not a mapping of names to tensors"),
        (lambda file, sung: file.write_bytes(b"torn"), "not a pickle of tensors"),
        (lambda file, sung: None, "no pickled weights"),
    ],
    ids=["canary", "list", "torn", "none"],
)
def test_other_pickles_are_not_converted(make: Callable[[Path, Path], Any], said: str, place: Path) -> None:
    make(place / "model" / "pytorch_model.bin", place / SUNG)
    assert said in refusal(convert(place, "model"))
    assert not (place / SUNG).exists()
    assert not (place / "converted").exists()


# ---------------------------------------------------------------------- code that comes along


def bring_code(place: Path, kind: str) -> None:
    """A repository whose model or tokenizer is code of its own, which makes a file when it is imported."""
    code = f"from pathlib import Path\nPath({str(place / SUNG)!r}).touch()\nclass Theirs: pass\n"
    (place / "model" / "theirs.py").write_text(code, "utf-8")
    if kind == "model":
        auto_map = {"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Theirs"}
        rewrite(place / "model" / "config.json", model_type="theirs", auto_map=auto_map)
    else:
        auto_map = {"AutoTokenizer": ["theirs.Theirs", None]}
        rewrite(place / "model" / "tokenizer_config.json", tokenizer_class="Theirs", auto_map=auto_map)


CODE = [
    ("check", "tokenizer"),
    ("train", "model"),
    ("train", "tokenizer"),
    ("revise", "model"),
    ("revise", "tokenizer"),
]


@pytest.mark.parametrize(("verb", "kind"), CODE)
def test_code_of_a_repository_does_not_run(verb: str, kind: str, place: Path) -> None:
    bring_code(place, kind)
    message = refusal(words(verb, place))
    assert "without running theirs.py (named in " in message
    assert "read it first; --trust_remote_code" in message
    assert not (place / SUNG).exists()


@pytest.mark.parametrize("verb", ["check", "train", "revise"])
def test_control_trusted_code_runs(verb: str, place: Path) -> None:
    """Each door has the flag, and behind it the canary sings; it then is no tokenizer, which ends the command."""
    bring_code(place, "tokenizer")
    (place / "model" / "theirs.py").write_text(
        f"from pathlib import Path\nPath({str(place / SUNG)!r}).touch()\n"
        "class Theirs:\n    @classmethod\n    def from_pretrained(cls, *a, **k): raise OSError('no')\n"
        "    @classmethod\n    def register_for_auto_class(cls, *a): pass\n",
        "utf-8",
    )
    assert "no tokenizer" in refusal([*words(verb, place), "--trust_remote_code"])
    assert (place / SUNG).exists()


def test_code_named_for_a_model_that_is_known_does_not_run(place: Path) -> None:
    bring_code(place, "model")
    assert run(words("check", place)) == 0  # it needs the tokenizer alone
    rewrite(place / "model" / "config.json", model_type="llama")
    assert run(words("revise", place)) == 0
    assert not (place / SUNG).exists()


def test_attention_from_the_hub_is_code_too(place: Path) -> None:
    rewrite(place / "model" / "config.json", attn_implementation="someone/kernel")
    message = refusal(words("revise", place))
    assert 'config.json: attn_implementation "someone/kernel" is code from the hub' in message


@pytest.mark.parametrize("option", ["use_safetensors", "weights_only", "trust_remote_code"])
def test_no_loading_option_enables_remote_code(option: str, place: Path) -> None:
    pickle_weights(place, "model", "pytorch_model.bin")
    with pytest.raises(SRPOError) as caught:
        run([*words("train", place), "--model_init_kwargs", json.dumps({option: False})])
    assert caught.value.exit_code == 78
    assert option in str(caught.value)
    assert not (place / SUNG).exists()


# ---------------------------------------------------------------------- names that lead outside

OUTSIDE = ["../secret.safetensors", "/etc/passwd", "a/../../b", "", "..", "C:\\b", "a\\..\\b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_outside_the_folder_is_refused(name: str, place: Path) -> None:
    with pytest.raises(InputError, match="which is not inside"):
        inside(place, name, where="manifest.json")


@pytest.mark.parametrize("verb", ["train", "revise"])
def test_an_index_of_weights_cannot_lead_outside(verb: str, place: Path) -> None:
    weights, outside = place / "model" / "model.safetensors", place / "outside.safetensors"
    names = load_model(str(place / "model")).state_dict().keys()
    index = place / "model" / "model.safetensors.index.json"
    weights.rename(place / "model" / "part.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}), "utf-8")
    assert run(words(verb, place)) == 0  # control: an index as such is fine
    (place / "model" / "part.safetensors").rename(outside)
    rewrite(index, weight_map=dict.fromkeys(names, "../outside.safetensors"))
    (place / "out-revise").unlink(missing_ok=True)
    assert "names '../outside.safetensors', which is not inside" in refusal(words(verb, place))


# ---------------------------------------------------------------------- checkpoints that somebody else made


@pytest.fixture(scope="module")
def begun(clean: Path) -> Path:
    """A run of two steps that has a checkpoint after the first."""
    place = clean / "begun"
    place.mkdir()
    words = ["train", "--model_name_or_path", str(clean / "model"), "--dataset_name", str(clean / "pairs.jsonl")]
    words += ["--output_dir", str(place / "run"), "--max_steps", "2", "--report_to", "none", "--use_cpu", "true"]
    assert run([*words, "--save_steps", "1", "--per_device_train_batch_size", "1"]) == 0
    shutil.rmtree(place / "run" / "checkpoint-2")
    (place / "run" / "manifest.json").unlink()
    return place / "run"


def resume(clean: Path, out: Path) -> list[str]:
    words = ["train", "--model_name_or_path", str(clean / "model"), "--dataset_name", str(clean / "pairs.jsonl")]
    words += ["--output_dir", str(out), "--max_steps", "2", "--report_to", "none", "--use_cpu", "true"]
    return [*words, "--save_steps", "1", "--per_device_train_batch_size", "1", "--resume"]


def sealed_again(folder: Path, **names: str) -> None:
    """Writes a manifest that is right in every sum, as an attacker can; `names` renames files in it."""
    from srpo.train.durable.checkpoint import MANIFEST, Manifest, seal

    body = json.loads((folder / MANIFEST).read_text("utf-8"))
    kept = {key: body[key] for key in ("step", "of", "identity", "accepted", "resumable")}
    (folder / MANIFEST).unlink()
    made = seal(folder, Manifest(**kept))
    files = {names.get(Path(name).stem, name): value for name, value in made.files.items()}
    (folder / MANIFEST).write_bytes(Manifest(**{**vars(made), "files": files}).sealed())


def test_control_a_resealed_checkpoint_resumes(clean: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    sealed_again(tmp_path / "run" / "checkpoint-1")
    assert run(resume(clean, tmp_path / "run")) == 0


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../secret.json"])
def test_a_manifest_cannot_lead_outside(name: str, clean: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run" / "secret.json").write_text("{}", "utf-8")
    sealed_again(tmp_path / "run" / "checkpoint-1", trainer_state=name)
    with pytest.raises(SRPOError, match="no valid checkpoint: checkpoint-1: ") as caught:
        run(resume(clean, tmp_path / "run"))
    assert caught.value.exit_code == 74


def test_a_checkpoint_holds_no_symlink(clean: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    state = tmp_path / "run" / "checkpoint-1" / "trainer_state.json"
    state.rename(tmp_path / "elsewhere.json")
    state.symlink_to(tmp_path / "elsewhere.json")
    sealed_again(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(SRPOError, match=r"no valid checkpoint: checkpoint-1: trainer_state\.json is a link"):
        run(resume(clean, tmp_path / "run"))


def test_a_pickle_in_a_checkpoint_does_not_run(clean: Path, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-1"
    pickles = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert pickles
    for path in pickles:
        torch.save(Canary(tmp_path / SUNG), path)
    torch.save(Canary(tmp_path / SUNG), checkpoint / "training_args.bin")
    sealed_again(checkpoint)
    with pytest.raises(SRPOError, match=r"checkpoint-1: optimizer\.pt would run code when unpickled") as caught:
        run(resume(clean, tmp_path / "run"))
    assert caught.value.exit_code == 74
    assert not (tmp_path / SUNG).exists()
