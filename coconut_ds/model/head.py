"""The language model head (the product of states with the output embedding), by the fastest library.

On a CPU, torch gives fp32 products to MKL, which repacks the whole weight in each call. In a generation step, which has
only a few states, repacking takes most of the time. oneDNN reads the weight in place and takes half the time for 8 to
64 states and a vocabulary of 50,260 tokens (``benchmarks/head.py``). With more states there is less to gain, and oneDNN
keeps compiled code for up to 1,024 numbers of states, which took 150 MB in a server with prompts of all lengths.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coconut_ds.distributed.zero import is_sharded

MOST_STATES = 64
"""Largest number of states whose product oneDNN computes."""


def vocabulary_product(head: nn.Module, states: Tensor) -> Tensor:
    """Returns ``head(states)``: logits [..., V] for states [..., D]."""
    # Not ``head.weight``: under ZeRO-3, reading that attribute outside of the module gathers the weight.
    parameters = dict(head.named_parameters(recurse=False))
    if _is_plain(head, parameters, states):
        weight, bias = parameters["weight"], parameters.get("bias")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return product
    logits: Tensor = head(states)
    return logits


def _is_plain(head: nn.Module, parameters: Mapping[str, nn.Parameter], states: Tensor) -> bool:
    """Whether oneDNN can do it: an fp32 product on a CPU without gradient, adapter or a weight sharded by ZeRO-3."""
    return (
        type(head) is nn.Linear
        and not torch.is_grad_enabled()
        and states.device.type == "cpu"
        and all(one.dtype == torch.float32 and not is_sharded(one) for one in parameters.values())
        and states.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and 0 < states.numel() <= MOST_STATES * states.shape[-1]
    )
