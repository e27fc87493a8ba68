"""Checks of ``model.attn_implementation``, and a switch to one of this project's own attention functions."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from coconut_ds.errors import ModelError

PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Attention kernels that need a package, a CUDA device and half precision, with that package."""
REMEDIES = {
    "flash_attn": "pip install --no-build-isolation 'flash-attn>=2.8'",
    "flash_attn_interface": "build it from the folder hopper of the flash-attention repository",
}
"""How each of these packages is installed."""
BUILT_IN = ("sdpa", "eager")
"""Attention kernels that always work."""


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
        missing.append(f"the package {PACKAGES[name]} ({REMEDIES[PACKAGES[name]]})")
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if missing:
        raise ModelError(
            f"model.attn_implementation={name}: {' and '.join(missing)} is missing; set model.attn_implementation=sdpa"
        )


def takes_attention(model: PreTrainedModel) -> bool:
    """Whether the model's layers look up their attention function in transformers' ``AttentionInterface``."""
    return bool(model.base_model._supports_attention_backend)


class AttentionSwitch:
    """Within ``with switch:`` the model uses the attention function registered as ``name``.

    It changes the model's configuration meanwhile, so only one thread may use the model.
    """

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
