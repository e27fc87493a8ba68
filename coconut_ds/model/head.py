"""The product with the vocabulary, by the library that is quickest at it.

On the CPU torch gives products in fp32 to MKL, which packs the whole weight anew for each call: for the few states of a
step of generation, packing is most of the time. oneDNN reads the weight as it lies, and takes half the time for 8 to 64
states over 50,260 tokens (``benchmarks/head.py``).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coconut_ds.distributed.zero import is_sharded


def vocabulary_product(head: nn.Module, states: Tensor) -> Tensor:
    """``head(states)``: logits [..., V] of states [..., D]."""
    # Not ``head.weight``: under ZeRO-3 whoever looks at it outside of the module has it fetched.
    parameters = dict(head.named_parameters(recurse=False))
    if _is_plain(head, parameters, states):
        weight, bias = parameters["weight"], parameters.get("bias")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return product
    logits: Tensor = head(states)
    return logits


def _is_plain(head: nn.Module, parameters: Mapping[str, nn.Parameter], states: Tensor) -> bool:
    """Whether nothing but the product is asked for: no gradient, no adapter, no weight that ZeRO-3 has to fetch."""
    return (
        type(head) is nn.Linear
        and not torch.is_grad_enabled()
        and states.device.type == "cpu"
        and all(one.dtype == torch.float32 and not is_sharded(one) for one in parameters.values())
        and states.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and states.numel() > 0
    )
