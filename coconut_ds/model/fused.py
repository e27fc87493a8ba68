"""Fused activation functions in place of transformers' unfused ones.

transformers computes GPT-2's ``gelu_new`` in eight elementwise operations, each of which reads and writes the widest
activation of the model. ``nn.GELU(approximate="tanh")`` computes the same function in one kernel; results agree up to
rounding.
"""

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation


def fuse_activations(model: PreTrainedModel) -> None:
    """Replaces unfused activation modules by fused ones, in place. Parameters and configuration do not change."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
