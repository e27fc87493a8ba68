"""LoRA: frozen weights with trained differences of low rank (arXiv 2106.09685), through ``peft``; off by default.

Adapters are put into the Hugging Face model in place: module and method names stay, so that the latent loop, fused
activations and the thinking engine see the model they know. The rows of the markers learn beside them. What is saved
is merged: a plain Hugging Face folder of the frozen model's shape.
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
from coconut_ds.settings import LoraConfig

ADAPTER = "default"
"""The name by which peft keeps the adapter."""
DOWN, UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"
FROZEN = ".base_layer"
"""What adapters put into the names of the weights that they stand around."""


def add_adapters(model: PreTrainedModel, markers: MarkerIds, settings: LoraConfig) -> None:
    """Freezes the model and gives it adapters, drawn from torch's global generator, and marker rows that learn.

    Raises:
        ModelError: peft is not installed, or no layer has a name of ``settings.targets``.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"model.lora.rank={settings.rank}: the package peft is missing; install it with "
            "pip install 'coconut-ds[lora]', or set model.lora.rank=0"
        )
    from peft import LoraConfig as Adapter
    from peft import inject_adapter_in_model

    adapter = Adapter(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        # GPT-2's layers keep their matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        inject_adapter_in_model(adapter, model, ADAPTER)
    except ValueError as error:
        known = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
        raise ModelError(
            f"model.lora.targets={list(settings.targets)}: {str(error).splitlines()[0]}; the model's layers are "
            f"{', '.join(sorted(known))}"
        ) from error
    train_marker_rows(model, markers.all())


@torch.no_grad()
def merged(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the model without adapters that computes the same.

    Args:
        model: with adapters or without; its parameters may lie in shards.
        state: all its parameters, whole, on the CPU; is used up.
    """
    add_differences(model, state)
    for key in [key for key in state if key.endswith(DOWN)]:
        name = key.removesuffix(DOWN)
        layer: Any = model.get_submodule(name)
        difference = state.pop(name + UP).float() @ state.pop(key).float() * layer.scaling[ADAPTER]
        weight = state[f"{name}{FROZEN}.weight"]
        weight += (difference.t() if layer.fan_in_fan_out else difference).to(weight.dtype)
    return {key.replace(FROZEN, ""): value for key, value in state.items()}
