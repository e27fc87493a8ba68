"""LoRA: freezes the weights and trains low-rank differences (arXiv 2106.09685), with ``peft``; off by default.

The adapters are injected into the Hugging Face model in place. Its modules and methods keep their names, so the latent
loop, the fused activations and the thinking engine work as without adapters. The embedding rows of the markers are
trained as well (``marker_rows.py``). Checkpoints are saved with the adapters merged: as plain Hugging Face folders of
the original architecture.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coconut_ds.errors import ModelError
from coconut_ds.methods.base import MarkerIds
from coconut_ds.model.marker_rows import add_differences, train_marker_rows
from coconut_ds.packages import install_line
from coconut_ds.settings import LoraConfig

ADAPTER = "default"
"""The adapter's name within peft."""
DOWN, UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
"""Ends of the names of an adapter's two matrices."""
FROZEN = ".base_layer"
"""What an adapter inserts into the names of the weights that it wraps."""


def add_adapters(model: PreTrainedModel, markers: MarkerIds, settings: LoraConfig) -> None:
    """Freezes the model, and adds adapters and trained marker rows, in place.

    The adapters' initial weights are drawn from torch's global generator.

    Raises:
        ModelError: peft is not installed, or no layer matches ``settings.targets``.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"model.lora.rank={settings.rank}: the package peft is missing; set model.lora.rank=0, or install it with: "
            f"{install_line('lora')}"
        )
    from peft import LoraConfig as Adapter
    from peft import inject_adapter_in_model

    adapter = Adapter(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        # GPT-2's ``Conv1D`` layers store their matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        inject_adapter_in_model(adapter, model, ADAPTER)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
        raise ModelError(
            f"model.lora.targets={list(settings.targets)}: {str(error).splitlines()[0]}; the model's layers are named "
            f"{', '.join(sorted(names))}"
        ) from error
    train_marker_rows(model, markers.all())


@torch.no_grad()
def merged_state(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the equivalent model without adapters.

    Args:
        model: the model, with adapters or without; its parameters may be sharded.
        state: the state dict of ``model``, with whole tensors on the CPU. It is changed; do not use it afterwards.
    """
    add_differences(model, state)
    for key in [key for key in state if key.endswith(DOWN)]:
        name = key.removesuffix(DOWN)
        layer: Any = model.get_submodule(name)
        difference = state.pop(name + UP).float() @ state.pop(key).float() * layer.scaling[ADAPTER]
        weight = state[f"{name}{FROZEN}.weight"]
        weight += (difference.t() if layer.fan_in_fan_out else difference).to(weight.dtype)
    return {key.replace(FROZEN, ""): value for key, value in state.items()}
