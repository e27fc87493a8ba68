"""Checks of ``model.attn_implementation``, torch's fused kernel, and a switch to an attention function of our own."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from coconut_ds.errors import ModelError
from coconut_ds.model.support import WINDOWS

PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Attention kernels that need a package, a CUDA device and half precision, with that package."""
REMEDIES = {
    "flash_attn": "pip install --no-build-isolation 'flash-attn>=2.8'",
    "flash_attn_interface": "build it from the folder hopper of the flash-attention repository",
}
"""How each of these packages is installed."""
BUILT_IN = ("sdpa", "eager")
"""Attention kernels that always work."""
UNLIMITED = 2**31 - 1
"""The size of a window that never has an effect."""


NO_SHARED_KEYS = ("cuda",)
"""Devices whose fused fp32 kernel needs as many key heads as query heads. Where heads share keys, torch would fall back
to the kernel ``math``, which is slow and stores all scores."""


def check_attention(name: str, dtype: torch.dtype | None = None) -> None:
    """Refuses an attention kernel that is unknown or not available here, before any model is loaded.

    Args:
        name: see ``model.attn_implementation``.
        dtype: the type that the model will compute in; None: it is not known yet.

    Raises:
        ModelError: says what is missing.
    """
    if name in BUILT_IN:
        return
    if name not in PACKAGES:
        raise ModelError(
            f"model.attn_implementation={name}: unknown; expected one of {', '.join([*BUILT_IN, *PACKAGES])}"
        )
    if dtype == torch.float32:
        raise ModelError(
            f"attn_implementation={name} computes in half precision, but the model in float32; set dtype to bfloat16, "
            "or attn_implementation=sdpa"
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


def fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **options: Any,
) -> Tensor:
    """Attention with torch's fused kernel. Returns the output [B, Q, H, E] for queries [B, H, Q, E].

    Args:
        module: the attention layer.
        query: [B, H, Q, E].
        key: [B, K, S, E]; H / K query heads share each key head.
        value: [B, K, S, E].
        attention_mask: as in transformers; None: causal attention, if Q > 1.
        dropout: probability that a weight is dropped.
        scaling: factor of the scores; None: 1 / sqrt(E).
        options: further arguments of transformers' ``sdpa_attention_forward``.
    """
    groups = query.shape[1] // key.shape[1]
    layer: Any = module
    if groups > 1 and query.dtype == torch.float32 and query.device.type in NO_SHARED_KEYS:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        # transformers reads from the layer how many query heads share a key head.
        layer = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    output, _ = sdpa_attention_forward(layer, query, key, value, attention_mask, dropout, scaling, **options)
    return output


def check_attention_used(model: PreTrainedModel, name: str) -> None:
    """Refuses a model for which transformers chose another attention kernel than the requested one.

    Raises:
        ModelError: names the kernel that is used.
    """
    used = model.config._attn_implementation
    if used != name:
        raise ModelError(
            f"model.attn_implementation={name}: transformers uses {used} for {type(model).__name__} instead; set "
            f"model.attn_implementation={used} or one of {', '.join(BUILT_IN)}"
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
