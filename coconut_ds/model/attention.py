"""Checks of ``model.attn_implementation``, and a switch to one of this project's own attention functions."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import ModelError
from coconut_ds.model.support import WINDOWS

PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Attention kernels that need a package, a CUDA device and half precision, with that package."""
BUILT_IN = ("sdpa", "eager")
"""Attention kernels that always work."""
UNLIMITED = 2**31 - 1
"""The size of a window that never has an effect."""


def check_attention(name: str) -> None:
    """Refuses an attention kernel that is unknown or not available here, before any model is loaded.

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
    """Whether the model's layers look up their attention function in transformers' ``AttentionInterface``."""
    return bool(model.base_model._supports_attention_backend)


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configurations that the model's modules read, each once."""
    found = [
        module.config for module in model.modules() if isinstance(getattr(module, "config", None), PreTrainedConfig)
    ]
    return list({id(config): config for config in found}.values())


class AttentionSwitch:
    """Within ``with switch:`` the model uses the attention function registered as ``name``.

    It changes the model's configuration meanwhile, so only one thread may use the model.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self._configs = _configs(model)
        self._name = name
        self._before: list[list[str]] = []

    def __enter__(self) -> None:
        self._before.append([config._attn_implementation for config in self._configs])
        for config in self._configs:
            config._attn_implementation = self._name

    def __exit__(self, *error: object) -> None:
        for config, before in zip(self._configs, self._before.pop(), strict=True):
            config._attn_implementation = before


class FullAttention:
    """Within ``with full:`` transformers makes masks without an attention window.

    Sequences are no longer than the window (``support.context_length``), so it has no effect on them alone. But a mask
    counts columns, and the padding of a batch would use up a part of the window.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        found = [(config, key, getattr(config, key, None)) for config in _configs(model) for key in WINDOWS.values()]
        self._windows = [(config, key, size) for config, key, size in found if size is not None]

    def __enter__(self) -> None:
        for config, key, _ in self._windows:
            setattr(config, key, UNLIMITED)

    def __exit__(self, *error: object) -> None:
        for config, key, size in self._windows:
            setattr(config, key, size)
