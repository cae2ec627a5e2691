"""Chooses the dtype of a frozen base under an adapter: bfloat16 where the device multiplies it in hardware."""

from __future__ import annotations


def has_fast_bfloat16(device: str) -> bool:
    """True if the device multiplies bfloat16 matrices in hardware; emulation is slower than float32.

    Args:
        device: "cpu", or a CUDA device such as "cuda" or "cuda:1".
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    # Instructions by name, AVX512_BF16, AMX_BF16 or Arm's BF16; older torch knows the first two only.
    if hasattr(torch.cpu, "get_capabilities"):
        return any(name.endswith("bf16") and value is True for name, value in torch.cpu.get_capabilities().items())
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


def base_dtype(asked: str, *, adapter: bool, device: str) -> tuple[str, str]:
    """Returns the dtype in which to load a model for training, and a sentence for the log that gives the reason.

    Weights in training stay in float32: a step of a typical learning rate is lost in 16 bits. An adapter's base is
    frozen, so bfloat16 halves its memory and loses nothing that is trained.

    Args:
        asked: the user's dtype, or "" if it is unset.
        adapter: only an adapter is trained.
        device: "cpu", or a CUDA device such as "cuda" or "cuda:1".

    Example:
        >>> base_dtype("", adapter=False, device="cpu")
        ('float32', 'weights in float32, because all of them are trained')
    """
    if asked:
        return asked, f"weights in {asked}, as given"
    if not adapter:
        return "float32", "weights in float32, because all of them are trained"
    if has_fast_bfloat16(device):
        return "bfloat16", "frozen base in bfloat16; --dtype float32 takes twice the memory and about twice the time"
    return (
        "float32",
        f"base in float32: {device} has no fast bfloat16; --dtype bfloat16 halves its memory and is slower",
    )
