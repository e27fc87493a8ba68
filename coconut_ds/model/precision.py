"""In what numbers a model computes.

A CPU without instructions for bf16 multiplies such matrices a hundred times slower than fp32 ones: 0.5 against 60
GFLOPS on two cores with AVX2 alone; with AVX-512 or AMX bf16 is the faster one. So on such a CPU a model that
is asked for in bf16 gets weights rounded to bf16, and computes with them in fp32.
"""

import torch
from torch import nn

SLOW_BF16 = "this CPU has no instructions for bf16"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are worth having on a device."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cast(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Rounds the parameters to ``dtype``, and holds them in the type that ``device`` is quick at.

    Parameters only: rotary tables stay in fp32, as in training.
    """
    rounded_only = dtype == torch.bfloat16 and not multiplies_bf16(device)
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded.float() if rounded_only else rounded


def describe(dtype: torch.dtype, model: nn.Module) -> str:
    """In words, what was asked for and what ``model`` computes in."""
    name, held = (str(one).removeprefix("torch.") for one in (dtype, next(model.parameters()).dtype))
    return name if name == held else f"{name} weights, computed in {held} ({SLOW_BF16})"
