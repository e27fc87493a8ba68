"""Fused kernels in place of transformers' operations and of this project's: which are used, and what they replace.

transformers computes GPT-2's ``gelu_new`` in eight elementwise operations, each of which reads and writes the widest
activation of the model. ``nn.GELU(approximate="tanh")`` computes the same function in one kernel; results agree up to
rounding. It is always used. The kernels of ``Kernels`` need CUDA and packages, and the user chooses them with
``model.fused_kernels``.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from coconut_ds.errors import ModelError
from coconut_ds.model.liger import has_fused_layers

REMEDIES = {"triton": "pip install triton", "liger_kernel": "pip install 'liger-kernel>=0.8'"}
"""The packages of the fused kernels, and how each is installed. torch for CUDA comes with triton."""


@dataclass(frozen=True)
class Kernels:
    """Which fused kernels a latent loop computes with."""

    layers: bool = False
    """Liger's RMSNorm, SwiGLU and rotary embeddings (``liger.py``)."""
    attention: bool = False
    """The Triton kernels of the attention to prefix and later positions (``triton_attention.py``)."""

    def describe(self, model: PreTrainedModel) -> str:
        """The kernels that ``model`` is trained with, as text for the log; "" if there are none."""
        config = model.config.get_text_config()
        # The plain way is taken where attention weights are dropped.
        drops = any(getattr(config, name, 0) for name in ("attn_pdrop", "attention_dropout"))
        names = ["Liger's RMSNorm, SwiGLU and rotary embeddings"] if self.layers and has_fused_layers(model) else []
        has_attention = self.attention and model.config._attn_implementation == "sdpa" and not drops
        names += ["part attention in Triton"] if has_attention else []
        return f"fused kernels: {', '.join(names)}" if names else ""


PLAIN = Kernels()
"""No fused kernels."""


def choose_kernels(setting: Literal["off", "auto", "on"], device: torch.device) -> Kernels:
    """The fused kernels that ``model.fused_kernels`` asks for on this device.

    Raises:
        ModelError: the setting is ``on``, and a package or a CUDA device is missing.
    """
    if setting == "off":
        return PLAIN
    missing = [name for name in REMEDIES if importlib.util.find_spec(name) is None]
    if setting == "auto":
        # Liger's kernels are written in Triton.
        has_triton = device.type == "cuda" and "triton" not in missing
        return Kernels(layers=has_triton and "liger_kernel" not in missing, attention=has_triton)
    problems = [f"the package {name} is missing ({REMEDIES[name]})" for name in missing]
    if device.type != "cuda":
        problems.append(f"they need a CUDA device, and this process computes on {device.type}")
    if problems:
        raise ModelError(f"model.fused_kernels=on: {'; '.join(problems)}; set model.fused_kernels=auto or off")
    return Kernels(layers=True, attention=True)


def fuse_activations(model: PreTrainedModel) -> None:
    """Replaces unfused activation modules by fused ones, in place. Parameters and configuration do not change."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
