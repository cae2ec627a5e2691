"""Training with pictures: both layouts agree, the tower is frozen, the cache knows content, the processor is saved."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from srpo.check.inspection import inspect
from srpo.errors import ConfigError, DataError
from srpo.model.packed.forward import sequence_logps
from srpo.model.weights.load import load_model, load_processor, load_tokenizer
from srpo.train.config import SRPOConfig
from srpo.train.dataset import TreeDataset, collate
from srpo.train.trainer import SRPOTrainer
from tests.conftest import make_byte_tokenizer, make_tiny_llama
from tests.model.pictured import plain_logps
from tests.sequences.pictured import gemma_processor, idefics_processor, model_for, picture, png, qwen_processor
from tests.sequences.test_pictures import renderer_for, row
from tests.warm_command import srpo_in_a_fork

COLOURS = ("red", "green", "black", "white")
SUPPORTED = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear")


def rows() -> list[dict[str, Any]]:
    """Six rows: four pictures, text alone, and two pictures; equal texts of the prompts with pictures."""
    found = [row(images=[picture(colour)], chosen=colour, rejected="blue") for colour in COLOURS]
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Two?"}]
    both = row(prompt=[{"role": "user", "content": parts}], images=[picture("red"), picture("green", (16, 8))])
    return [*found, both, {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "ho", "rejected": "hum"}]


def config(folder: Path, **more: Any) -> SRPOConfig:
    fixed = {
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "seed": 1,
        "save_strategy": "no",
    }
    return SRPOConfig(output_dir=str(folder), report_to="none", use_cpu=True, **{**fixed, **more})


def trained(folder: Path, processor: Any, **more: Any) -> SRPOTrainer:
    peft = more.pop("peft_config", None)
    trainer = SRPOTrainer(
        more.pop("model", None) or model_for(processor),
        args=config(folder, **more),
        train_dataset=rows(),
        processing_class=processor,
        peft_config=peft,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [idefics_processor, qwen_processor, gemma_processor])
def test_trees_of_a_data_set_score_as_the_model_itself_does(make: Any) -> None:
    processor = make()
    data = TreeDataset.build(rows(), renderer_for(processor), max_length=None)
    batch = collate([data[i] for i in range(len(data))])
    assert [len(tree.pictures) for tree in batch["trees"]] == [1, 1, 1, 1, 2, 0]
    model = model_for(processor)
    plain = plain_logps(model, batch["trees"])
    for backend in ("flat",) if make is gemma_processor else ("path", "flat"):
        torch.testing.assert_close(sequence_logps(model, batch["trees"], backend), plain, rtol=0, atol=1e-4)
    assert len({round(value, 3) for value in plain[:4, 0].tolist()}) == 4
    contents = [data.row_content(i) for i in range(len(data))]
    assert contents == [tree.content for tree in batch["trees"]]
    assert len(set(contents)) == 6


def test_data_of_other_pictures_is_other_data() -> None:
    renderer = renderer_for(idefics_processor())
    digests = []
    for colour in ("red", "red", "green"):
        data = TreeDataset.build([row(images=[picture(colour)])], renderer, max_length=None)
        digests.append((data.digest(), data.content))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] != digests[2][1]


def test_lora_trains_the_language_model_and_saves_the_processor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "srpo"):
        trainer = trained(tmp_path, idefics_processor(), peft_config=SUPPORTED)
        trainer.save_model()
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert all("text_model" in name for name in names), sorted(names)[:3]
    assert any(
        "frozen without one: model.vision_model, model.connector" in record.getMessage() for record in caplog.records
    )
    assert any("packed log-probs within" in record.getMessage() for record in caplog.records)
    assert (tmp_path / "processor_config.json").is_file()
    assert load_processor(str(tmp_path)).image_seq_len == 4
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".jsonl", ".md", ".html"):
            assert png(picture("red"))[:60] not in file.read_bytes()


def test_a_model_whose_image_tokens_see_later_ones_is_trained_on_flat_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(tmp_path, gemma_processor(), peft_config=SUPPORTED)
    assert any("tokens of a picture see later ones" in record.getMessage() for record in caplog.records)
    moved = [float(p.detach().abs().max()) for name, p in trainer.model.named_parameters() if "lora_B" in name]
    assert moved
    assert min(moved) > 0
    # The configuration of the test before, whose tower has another name, was not written into.
    assert (SUPPORTED.exclude_modules, SUPPORTED.target_modules) == (None, "all-linear")
    assert not any("vision" in name for name, p in trainer.model.named_parameters() if p.requires_grad)


def test_full_training_leaves_the_tower_of_a_loaded_model_unchanged(tmp_path: Path) -> None:
    processor = idefics_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    trainer = trained(tmp_path / "out", None, model=str(tmp_path / "model"))
    before = load_model(str(tmp_path / "model")).state_dict()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("text_model" in name for name in changed)
    assert not any("vision" in name or "connector" in name for name in changed)


def test_cached_log_probs_belong_to_a_picture(tmp_path: Path) -> None:
    processor = idefics_processor()
    more = {"precompute_ref_log_probs": True, "reference_cache": str(tmp_path / "cache")}
    first = trained(tmp_path / "a", processor, **more)
    assert first.reference.scored == len(first.pairs) == 6
    again = SRPOTrainer(
        model_for(processor), args=config(tmp_path / "b", **more), train_dataset=rows(), processing_class=processor
    )
    again.train()
    assert again.reference.scored == 0
    others = [{**each, "images": [picture("yellow")]} if len(each.get("images", [])) == 1 else each for each in rows()]
    third = SRPOTrainer(
        model_for(processor), args=config(tmp_path / "c", **more), train_dataset=others, processing_class=processor
    )
    third.train()
    assert third.reference.scored == 4
    live = trained(tmp_path / "d", processor)
    for name in ("loss", "logps/chosen"):
        logged = [[log[name] for log in each.state.log_history if name in log] for each in (first, again, live)]
        assert logged[0] == pytest.approx(logged[2], abs=1e-3)
        assert logged[1] == pytest.approx(logged[2], abs=1e-3)


def test_a_text_model_refuses_pictures_before_weights_are_read(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}<eos>")
    with pytest.raises(DataError, match="text model cannot be shown them"):
        SRPOTrainer(make_tiny_llama(), args=config(tmp_path), train_dataset=rows(), processing_class=tokenizer)
    trainer = SRPOTrainer(
        make_tiny_llama(),
        args=config(tmp_path, bad_rows="skip"),
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    assert len(trainer.pairs) == 1
    assert len(trainer.pairs.rejects) == 5


def test_a_data_set_can_be_pickled() -> None:
    data = TreeDataset.build(rows(), renderer_for(idefics_processor()), max_length=None)
    again = pickle.loads(pickle.dumps(data))
    assert again.digest() == data.digest()
    assert again.tree(0).pictures == data.tree(0).pictures != ()


def test_the_tokenizer_that_was_trained_with_is_saved(tmp_path: Path) -> None:
    processor = idefics_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "ASSISTANT: ")
    trainer = SRPOTrainer(
        str(tmp_path / "model"), args=config(tmp_path / "out"), train_dataset=rows(), processing_class=tokenizer
    )
    trainer.save_model()
    assert load_tokenizer(str(tmp_path / "out")).chat_template == tokenizer.chat_template
    assert load_processor(str(tmp_path / "out")).image_seq_len == 4


def test_workers_send_pictures_with_their_trees(tmp_path: Path) -> None:
    trainer = trained(tmp_path, idefics_processor(), dataloader_num_workers=1, max_steps=1)
    assert trainer.state.global_step == 1


def test_an_adapter_on_the_tower_is_refused(tmp_path: Path) -> None:
    tower = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=r".*vision_model.*(fc1|fc2)")
    with pytest.raises(ConfigError, match="excluded modules"):
        trained(tmp_path, idefics_processor(), peft_config=tower)


def test_the_command_line_checks_trains_and_refuses(tmp_path: Path) -> None:
    processor = idefics_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(picture(colour)))
    lines = [
        {"prompt": "Which colour?", "image": f"{colour}.png", "chosen": colour, "rejected": "blue"}
        for colour in (*COLOURS, "lost")
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in lines))
    common = ["--dataset_name", str(data), "--model_name_or_path", str(tmp_path / "model")]
    assert srpo_in_a_fork("check", *common).returncode == 0
    assert srpo_in_a_fork("plan", *common).returncode == 78  # the vision tower's memory is not counted
    run = ["train", *common, "--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu"]
    run += [
        "--per_device_train_batch_size",
        "2",
        "--report_to",
        "none",
        "--use_peft",
        "--lora_target_modules",
        "all-linear",
    ]
    assert srpo_in_a_fork(*run).returncode == 65
    assert srpo_in_a_fork(*run, "--bad_rows", "skip").returncode == 0
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "no file: " in rejected
    assert "lost.png" in rejected


def test_a_text_model_given_by_path_refuses_pictures_as_bad_rows(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}<eos>")
    tokenizer.save_pretrained(tmp_path / "model")
    make_tiny_llama().save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="text model cannot be shown them"):
        SRPOTrainer(str(tmp_path / "model"), args=config(tmp_path / "out"), train_dataset=rows())


def test_examples_of_check_carry_the_pictures_of_their_rows() -> None:
    given = [row(images=[picture(colour)]) for colour in ("red", "green")]
    found = inspect(given, renderer_for(idefics_processor()), examples=2, num_proc=1)
    shown = [[each.image().getpixel((7, 7)) for each in example.pictures] for example in found.examples]
    assert shown == [[(255, 0, 0)], [], [(0, 128, 0)], []]  # a pair's draft shows them, its revision does not again


def test_pictures_after_text_take_a_layout_of_their_own(tmp_path: Path) -> None:
    """Gemma 3 packs text and takes pictures in flat rows: a run that begins with text does not end at a picture."""
    processor = gemma_processor()
    how = {"max_steps": 2, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    data = [rows()[-1], rows()[0]]
    trainer = SRPOTrainer(
        model_for(processor), args=config(tmp_path, **how), train_dataset=data, processing_class=processor
    )
    assert trainer.train().global_step == 2
    assert trainer._backends == {False: "path", True: "flat"}


def test_padded_pictures_are_refused_before_the_first_step(tmp_path: Path) -> None:
    processor = idefics_processor()
    with pytest.raises(ConfigError, match="pad_to_multiple_of: rows with pictures are not padded; leave it out"):
        SRPOTrainer(
            model_for(processor),
            args=config(tmp_path, pad_to_multiple_of=64),
            train_dataset=[rows()[-1], rows()[0]],
            processing_class=processor,
        )
