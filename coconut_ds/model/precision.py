"""The floating point type that a model computes in.

A CPU without bf16 instructions multiplies bf16 matrices about a hundred times slower than fp32 matrices: 0.5 against
60 GFLOPS on two cores that have only AVX2. With AVX-512 or AMX, bf16 is faster than fp32. So if bf16 is requested on a
CPU without these instructions, the weights are rounded to bf16, but stored and computed with in fp32. GPUs before
Ampere (V100, T4) have no instructions for bf16 either, and are treated likewise.

GPUs from Ampere on multiply fp32 matrices many times faster in TF32, which reads 10 of the 23 bits of the mantissa and
adds in fp32. NVIDIA's data sheet of the A100 gives 19.5 TFLOP/s in fp32, 156 in TF32 and 312 in bf16. TF32 is off
unless a setting switches it on, because it changes the numbers.
"""

import torch
from torch import nn

AMPERE = (8, 0)
"""Compute capability of the first GPUs that multiply in TF32 and bf16."""
TF32_GAIN = "an A100 multiplies at most 156 instead of 19.5 TFLOP/s"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices natively, that is, at least as fast as fp32 ones."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    capability = capability_of(device)
    return capability is None or capability >= AMPERE


def no_bf16(device: torch.device) -> str:
    """Says why ``multiplies_bf16`` is False."""
    return f"this {'CPU' if device.type == 'cpu' else 'GPU'} has no instructions for bf16"


def use_tf32(name: str, tf32: bool, bf16: bool, device: torch.device) -> str | None:
    """Makes products of fp32 matrices on CUDA use TF32 or not, in the whole process.

    Returns what to tell the user, if anything; for the arguments see ``tf32_note``.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return tf32_note(name, tf32, bf16, capability_of(device))


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA device; None for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def tf32_note(name: str, tf32: bool, bf16: bool, capability: tuple[int, int] | None) -> str | None:
    """What to tell the user about TF32: what the setting gives, would give, or why it has no effect.

    Args:
        name: of the setting, as the user types it.
        tf32: its value.
        bf16: whether the model computes in bf16.
        capability: of the device, see ``capability_of``.
    """
    if tf32 and capability is None:
        return f"{name} has no effect: only CUDA devices have TF32"
    if tf32 and bf16:
        return f"{name} has no effect: the products are computed in bf16"
    if tf32 and capability is not None and capability < AMPERE:
        return f"{name} has no effect: this GPU has no TF32, which came with Ampere (A100)"
    if tf32:
        return f"{name}: products of fp32 matrices in TF32, with 10 bits of mantissa instead of 23; {TF32_GAIN}"
    if capability is not None and capability >= AMPERE and not bf16:
        return f"fp32 without TF32; with {name}, {TF32_GAIN} (10 bits of mantissa instead of 23)"
    return None


def cast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Rounds the parameters to ``dtype`` in place, and stores them in the type that ``device`` computes fast in.

    Buffers such as rotary tables stay in fp32, as in training.
    """
    rounded_only = dtype == torch.bfloat16 and not multiplies_bf16(device)
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded.float() if rounded_only else rounded


def describe(dtype: torch.dtype, model: nn.Module, device: torch.device) -> str:
    """The type in which ``model`` computes on ``device``, and the requested ``dtype`` if it differs, for the user.

    The text is part of the identity of results, so it says everything about precision that changes a number.
    """
    name, held = (str(each).removeprefix("torch.") for each in (dtype, next(model.parameters()).dtype))
    if name != held:
        return f"{name} weights, computed in {held} ({no_bf16(device)})"
    capability = capability_of(device)
    has_tf32 = capability is not None and capability >= AMPERE and torch.get_float32_matmul_precision() != "highest"
    return f"{name}, products in TF32" if has_tf32 and dtype == torch.float32 else name
