"""The product with the vocabulary, by the library that is quickest at it.

On the CPU torch gives products in fp32 to MKL, which packs the whole weight anew for each call: for the few states of a
step of generation, packing is most of the time. oneDNN reads the weight as it lies, and takes half the time for 8 to 64
states over 50,260 tokens (``benchmarks/head.py``).
"""

import torch
from torch import Tensor, nn


def vocabulary_product(head: nn.Module, states: Tensor) -> Tensor:
    """``head(states)``: logits [..., V] of states [..., D]."""
    if _is_plain(head, states):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, head.weight, head.bias, "none", [], "")
        return product
    logits: Tensor = head(states)
    return logits


def _is_plain(head: nn.Module, states: Tensor) -> bool:
    """Whether nothing but the product is asked for: no gradient, no adapter, no weight that is elsewhere (ZeRO-3)."""
    return (
        type(head) is nn.Linear
        and not torch.is_grad_enabled()
        and states.device.type == "cpu"
        and states.dtype == head.weight.dtype == torch.float32
        and head.weight.dim() == 2
        and torch.backends.mkldnn.is_available()
        and states.numel() > 0
    )
