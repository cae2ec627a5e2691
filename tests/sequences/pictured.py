"""Processors of pictures and text, built by hand over the byte-level tokenizer, with tiny models that fit them."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw

from tests.conftest import make_byte_tokenizer

# Content is text or a list of parts, as in the templates of Qwen's vision-language models.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}PLACE{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Content is a list of parts, always, as in SmolVLM's template.
PARTS = CHAT.replace("m.content is string", "false").replace("p.text", "p['text']")
TILE = 8  # pixels


def picture(color: str = "red", size: tuple[int, int] = (TILE, TILE), corner: str = "blue") -> Image.Image:
    """A picture of one colour with a corner of another."""
    made = Image.new("RGB", size, color)
    ImageDraw.Draw(made).rectangle((0, 0, 2, 2), fill=corner)
    return made


def png(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    (image or picture()).save(held, kind, **options)
    return held.getvalue()


def _tokenizer(template: str, place: str, special: list[str]) -> Any:
    tokenizer = make_byte_tokenizer(bos=False, chat_template=template.replace("PLACE", place))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]})
    return tokenizer


def idefics_processor(*, parts: bool = False) -> Any:
    """Idefics3's processor, with tiles of 8 × 8 pixels that fill 4 image tokens each."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    grid = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *grid]
    tokenizer = _tokenizer(PARTS if parts else CHAT, "<image>", special)
    sizes = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    return Idefics3Processor(
        Idefics3ImageProcessorPil(**sizes), tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template
    )


def qwen_processor() -> Any:
    """Qwen2.5-VL's processor without the part for videos, which needs torchvision; patches of 2 × 2 pixels."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class OfPictures(Qwen2_5_VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    special = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer = _tokenizer(CHAT, "<|vision_start|><|image_pad|><|vision_end|>", special)
    sizes = {"patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 16, "longest_edge": 256}}
    return OfPictures(Qwen2VLImageProcessorPil(**sizes), tokenizer, None, chat_template=tokenizer.chat_template)


def gemma_processor() -> Any:
    """Gemma 3's processor, with pictures of 8 × 8 pixels that fill 4 image tokens; three line ends are one token."""
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    special = {"boi": "<start_of_image>", "image": "<image_soft_token>", "eoi": "<end_of_image>"}
    tokenizer = _tokenizer(CHAT, special["boi"], [*special.values()])
    tokenizer.add_tokens(["\n\n\n"])
    for name, token in special.items():
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    made = Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE}, do_pan_and_scan=False)
    return Gemma3Processor(made, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)


PROCESSORS = {"idefics3": idefics_processor, "qwen2_5_vl": qwen_processor, "gemma3": gemma_processor}


def model_for(processor: Any) -> Any:
    """A tiny model of the processor's family, with the vocabulary of its tokenizer."""
    from tests.model.pictured import build

    name = type(processor).__name__
    kind = "qwen2_5_vl" if "OfPictures" in name else "gemma3" if "Gemma3" in name else "idefics3"
    image = processor.tokenizer.image_token_id if kind == "gemma3" else processor.image_token_id
    return build(kind, vocabulary=len(processor.tokenizer), image=image)
