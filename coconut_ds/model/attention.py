"""Names of attention kernels, checked before anything is loaded; and a switch to one of our own functions."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import ModelError

PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Kernels that need a package, a CUDA device and half precision."""
BUILT_IN = ("sdpa", "eager")


def check_attention(name: str) -> None:
    """Refuses a kernel that is unknown or not to be had here.

    Raises:
        ModelError: says what is missing.
    """
    if name in BUILT_IN:
        return
    if name not in PACKAGES:
        raise ModelError(
            f"model.attn_implementation={name}: unknown; expected one of {', '.join([*BUILT_IN, *PACKAGES])}"
        )
    missing = []
    if importlib.util.find_spec(PACKAGES[name]) is None:
        missing.append(f"the package {PACKAGES[name]} (pip install 'coconut-ds[gpu]')")
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if missing:
        raise ModelError(
            f"model.attn_implementation={name}: {' and '.join(missing)} is missing; set model.attn_implementation=sdpa"
        )


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether the model's layers ask for an attention function, as transformers' ``AttentionInterface`` has it."""
    return bool(model.base_model._supports_attention_backend)


class AttentionSwitch:
    """``with switch:`` a model attends by the function ``name``, and as before afterwards. One thread at a time."""

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        configs = [
            module.config for module in model.modules() if isinstance(getattr(module, "config", None), PreTrainedConfig)
        ]
        self._configs: list[Any] = list({id(config): config for config in configs}.values())
        self._name = name
        self._before: list[list[str]] = []

    def __enter__(self) -> None:
        self._before.append([config._attn_implementation for config in self._configs])
        for config in self._configs:
            config._attn_implementation = self._name

    def __exit__(self, *error: object) -> None:
        for config, before in zip(self._configs, self._before.pop(), strict=True):
            config._attn_implementation = before
