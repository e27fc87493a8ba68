"""Liger's kernels for the layers of some model families: RMSNorm, SwiGLU and rotary embeddings, each in one kernel.

transformers computes each of them in about five elementwise operations. Liger
(https://github.com/linkedin/Liger-Kernel) computes the same functions in Triton; results agree up to rounding. The
kernels are put into the modules of one model, which keep their names, parameters and hooks; Liger's own patches would
replace functions of transformers for every model of the process. Other families are left as they are.
"""

from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Families whose layers compute exactly what Liger's kernels do; their classes have names such as ``LlamaMLP``."""
ROTATE = "apply_rotary_pos_emb"
"""The function of transformers that rotates queries and keys; the module of each family has its own copy."""


def fuse_layers(model: PreTrainedModel) -> None:
    """Makes the layers of ``model`` compute with Liger's kernels, in place, where the model's family has them."""
    for module in model.modules():
        family, kind = _kind_of(module)
        if family not in FAMILIES:
            continue
        if kind == "RMSNorm":
            module.forward = MethodType(_norm, module)
        elif kind == "MLP" and isinstance(module.act_fn, (SiLUActivation, nn.SiLU)):
            module.forward = MethodType(_gated_mlp, module)
        elif kind == "Attention":
            module.forward = MethodType(_with_rotation(type(module).forward), module)


def has_fused_layers(model: PreTrainedModel) -> bool:
    """Whether ``fuse_layers`` changes anything in this model."""
    return any(_kind_of(module)[0] in FAMILIES for module in model.modules())


def _kind_of(module: nn.Module) -> tuple[str, str]:
    """Family and kind in the name of a module's class: ``Llama`` and ``MLP`` for ``LlamaMLP``."""
    name = type(module).__name__
    kind = next((each for each in ("RMSNorm", "MLP", "Attention") if name.endswith(each)), "")
    return (name.removesuffix(kind), kind) if kind else ("", "")


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    """``LlamaRMSNorm.forward``."""
    from liger_kernel.ops import LigerRMSNormFunction

    # Not in place: the backward pass would write into the gradient of its output, which others may read.
    weight, eps, offset, in_place = module.weight, module.variance_epsilon, 0.0, False
    normed: Tensor = LigerRMSNormFunction.apply(hidden_states, weight, eps, offset, "llama", in_place)
    return normed


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    """``LlamaMLP.forward``."""
    from liger_kernel.ops import LigerSiLUMulFunction

    down: Tensor = module.down_proj(LigerSiLUMulFunction.apply(module.gate_proj(x), module.up_proj(x)))
    return down


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb``. Overwrites the storage of ``q`` and ``k``, which only the rotation reads."""
    from liger_kernel.ops import LigerRopeFunction

    queries, keys = (_WithRows.apply(each) for each in LigerRopeFunction.apply(q, k, cos, sin))
    return queries, keys


class _WithRows(torch.autograd.Function):
    """The identity on [B, H, Q, E]; its gradient has the strides of a contiguous [B, Q, H, E].

    The backward of Liger's rotation reads the distance of two positions from the strides. If Q is 1, torch regards a
    tensor with any such stride as contiguous, and the kernel would read and write other numbers.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_tensor: Tensor) -> Tensor:
        rows = d_tensor.transpose(1, 2)
        if rows.stride(1) != rows.shape[2] * rows.shape[3]:
            rows = rows.clone(memory_format=torch.contiguous_format)
        return rows.transpose(1, 2)


def _with_rotation(forward: Any) -> FunctionType:
    """The ``forward`` of an attention class, with ``_rotate`` in place of the function that its module defines."""
    assert ROTATE in forward.__code__.co_names, "the attention of these families rotates with a function of its module"
    names = {**forward.__globals__, ROTATE: _rotate}
    fused = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    fused.__kwdefaults__ = forward.__kwdefaults__
    return fused
