"""The floating point type that a model computes in.

A CPU without bf16 instructions multiplies bf16 matrices about a hundred times slower than fp32 matrices: 0.5 against
60 GFLOPS on two cores that have only AVX2. With AVX-512 or AMX, bf16 is faster than fp32. So if bf16 is requested on a
CPU without these instructions, the weights are rounded to bf16, but stored and computed with in fp32.
"""

import torch
from torch import nn

SLOW_BF16 = "this CPU has no instructions for bf16"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices natively, that is, at least as fast as fp32 ones."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Rounds the parameters to ``dtype`` in place, and stores them in the type that ``device`` computes fast in.

    Buffers such as rotary tables stay in fp32, as in training.
    """
    rounded_only = dtype == torch.bfloat16 and not multiplies_bf16(device)
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded.float() if rounded_only else rounded


def describe(dtype: torch.dtype, model: nn.Module) -> str:
    """The requested type and, where it differs, the type that ``model`` computes in, as text for the user."""
    name, held = (str(each).removeprefix("torch.") for each in (dtype, next(model.parameters()).dtype))
    return name if name == held else f"{name} weights, computed in {held} ({SLOW_BF16})"
